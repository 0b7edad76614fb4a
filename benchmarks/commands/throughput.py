"""Measured speed of models on this machine, beside what it would have allowed."""

from enum import StrEnum
from typing import Annotated

import torch
import typer

from benchmarks.measure.benchmark_models import Variant, benchmark_models
from benchmarks.measure.runners import COMPILED, EAGER, workloads
from benchmarks.measure.throughput import measure_throughput, throughput_config
from benchmarks.options import (
    Batch,
    Layers,
    Repeat,
    ReportOptions,
    Seed,
    Strings,
    SwapOptions,
    Tiny,
    computing_dtype_option,
    flag,
    tokens_or_none_option,
)


class Mode(StrEnum):
    """How a model is run."""

    eager = EAGER
    compiled = COMPILED


class Peer(StrEnum):
    """The implementation that is measured beside the zoo's."""

    transformers = "transformers"


def command(
    *,
    names: Annotated[
        Strings,
        typer.Argument(
            help="Presets, families (their smallest), hub ids or folders with a config.json: with random weights. "
            "Folders with safetensors files, and .gguf files: with theirs. None: the tiny form of each architecture, "
            "in a minute."
        ),
    ] = None,
    prompt: Annotated[int, tokens_or_none_option("--prompt", "-p", help="Of a prefill; 0: none.")] = 512,
    generate: Annotated[int, tokens_or_none_option("--generate", "-n", help="To decode; 0: none.")] = 128,
    depth: Annotated[
        list[int] | None, tokens_or_none_option("--depth", "-d", help="In the cache before. Repeat. [0]")
    ] = None,
    batch: Batch = 1,
    dtype: Annotated[
        torch.dtype | None, computing_dtype_option(help="Of weights and cache. [float32; on a GPU bfloat16]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, help="[torch's own; of tiny forms 1]")
    ] = None,
    mode: Annotated[list[Mode], typer.Option(help="How to run it. Repeat for both, in turns.")] = [Mode.eager],  # noqa: B006
    repeat: Repeat = 5,
    seed: Seed = 0,
    tiny: Tiny = False,
    layers: Layers = None,
    released: Annotated[bool, flag("Presets and hub ids with their released weights.", "--released")] = False,
    peer: Annotated[Peer | None, typer.Option(help="Measure another implementation beside the zoo's.")] = None,
    peer_compiled: Annotated[bool, flag("The peer compiled, with a static cache, too.", "--peer-compiled")] = False,
    changes: SwapOptions,
    to: ReportOptions,
) -> None:
    """Tokens per second, beside what this machine would have allowed.

    Models, modes and peers take turns, after a warm-up that ends when the medians agree. Ctrl-C prints what there is.

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
