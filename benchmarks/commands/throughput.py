"""Measured speed of models on this machine, beside what it would have allowed."""

from enum import StrEnum
from typing import Annotated

import torch
import typer

from benchmarks import options
from benchmarks.measure.benchmark_models import Variant, benchmark_models
from benchmarks.measure.runners import workloads
from benchmarks.measure.throughput import measure_throughput, throughput_config

Mode = StrEnum("Mode", ["eager", "compiled"])  # how a model is run
Peer = StrEnum("Peer", ["transformers"])  # the implementation that is measured beside the zoo's


def command(
    *,
    names: Annotated[
        options.Strings,
        typer.Argument(
            help="Presets, families (their smallest), hub ids or folders with a config.json: with random weights. "
            "Folders with safetensors files, and .gguf files: with theirs. None: the tiny form of each architecture, "
            "in a minute."
        ),
    ] = None,
    prompt: Annotated[int, options.tokens_or_none_option("--prompt", "-p", help="Of a prefill; 0: none.")] = 512,
    generate: Annotated[int, options.tokens_or_none_option("--generate", "-n", help="To decode; 0: none.")] = 128,
    depth: Annotated[
        list[int] | None, options.tokens_or_none_option("--depth", "-d", help="In the cache before. Repeat. [0]")
    ] = None,
    batch: options.Batch = 1,
    dtype: Annotated[
        torch.dtype | None, options.computing_dtype_option(help="Of weights and cache. [float32; on a GPU bfloat16]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="[torch's own; tiny forms: 1]")] = None,
    mode: Annotated[list[Mode], typer.Option(help="How to run it. Repeat for both, in turns.")] = [Mode.eager],  # noqa: B006
    repeat: options.Repeat = 5,
    seed: options.Seed = 0,
    tiny: options.Tiny = False,
    layers: options.Layers = None,
    released: Annotated[bool, options.flag("Presets and hub ids with their released weights.", "--released")] = False,
    peer: Annotated[Peer | None, typer.Option(help="Measure another implementation beside the zoo's.")] = None,
    peer_compiled: Annotated[
        bool, options.flag("The baseline compiled, with a static cache, too.", "--peer-compiled")
    ] = False,
    changes: options.SwapOptions,
    to: options.ReportOptions,
) -> None:
    """Tokens per second, beside what this machine would have allowed.

    Models, modes and baselines take turns, after a warm-up that ends when the medians agree. Ctrl-C prints what there
    is.

    \b
    python -m benchmarks throughput qwen3-0.6b -d 0 -d 4096
    python -m benchmarks throughput path/to/model.gguf --peer transformers
    python -m benchmarks throughput qwen3-8b --layers 4 --swap 'GQA(window=512)'
    """
    tiny = tiny or not names
    works = workloads(prompt, generate, depth or [0], batch)
    config = throughput_config(works, dtype, device, threads, seed, repeat, tiny)
    variant = Variant(tiny, layers, tuple(changes.swap or ()), released)
    models = benchmark_models(names or [], variant, changes.ignore_field or [])
    with to.report() as report:
        measure_throughput(report, models, config, mode, peer is not None, peer_compiled)
