"""Measured speed of models on this machine, beside what it would have allowed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import torch
import typer

from benchmarks.measure.benchmark_models import Variant, benchmark_models
from benchmarks.measure.runners import COMPILED, EAGER
from benchmarks.measure.throughput import measure_throughput, throughput_config
from benchmarks.options import (
    AsFormat,
    Batch,
    IgnoreField,
    Layers,
    Repeat,
    Seed,
    Swap,
    Tiny,
    computing_dtype,
    tokens_or_none,
)
from benchmarks.output.report import Report
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Format


class Mode(StrEnum):
    """How a model is run."""

    eager = EAGER
    compiled = COMPILED


class Peer(StrEnum):
    """Whose implementation is measured beside the zoo's."""

    transformers = "transformers"


Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Presets, families (their smallest), hub ids or folders with a config.json: with random weights. Folders "
        "with safetensors files, and .gguf files: with theirs. None: the tiny form of each architecture, in a minute."
    ),
]
Prompt = Annotated[
    int, typer.Option("--prompt", "-p", parser=tokens_or_none, metavar="TOKENS", help="Of a prefill; 0: none.")
]
Generate = Annotated[
    int, typer.Option("--generate", "-n", parser=tokens_or_none, metavar="TOKENS", help="To decode; 0: none.")
]
Depth = Annotated[
    list[int] | None,
    typer.Option("--depth", "-d", parser=tokens_or_none, metavar="TOKENS", help="In the cache before. Repeat. [0]"),
]
DType = Annotated[
    torch.dtype | None,
    typer.Option(
        "--dtype", parser=computing_dtype, metavar="DTYPE", help="Of weights and cache. [float32; on a GPU bfloat16]"
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, help="[torch's own; of tiny forms 1]")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
Modes = Annotated[list[Mode], typer.Option("--mode", help="How to run it. Repeat for both, in turns.")]
Released = Annotated[bool, typer.Option("--released", help="Presets and hub ids with their released weights.")]
WithPeer = Annotated[Peer | None, typer.Option("--peer", help="Measure another implementation beside the zoo's.")]
PeerCompiled = Annotated[bool, typer.Option("--peer-compiled", help="The peer compiled, with a static cache, too.")]


def command(
    names: Names = None,
    prompt: Prompt = 512,
    generate: Generate = 128,
    depth: Depth = None,
    batch: Batch = 1,
    dtype: DType = None,
    device: Device = "cpu",
    threads: Threads = None,
    mode: Modes = [Mode.eager],  # noqa: B006
    repeat: Repeat = 5,
    seed: Seed = 0,
    tiny: Tiny = False,
    layers: Layers = None,
    released: Released = False,
    peer: WithPeer = None,
    peer_compiled: PeerCompiled = False,
    swap: Swap = None,
    ignore_field: IgnoreField = None,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Tokens a second, beside what this machine would have allowed.

    Models, modes and peers take turns, after a warm-up that ends when the medians agree. Ctrl-C prints what there is.

    \b
    python -m benchmarks throughput qwen3-0.6b -d 0 -d 4096
    python -m benchmarks throughput path/to/model.gguf --peer transformers
    python -m benchmarks throughput qwen3-8b --layers 4 --swap 'GQA(window=512)'
    """
    report, tiny = Report.asked(format, json, out), tiny or not names
    config = throughput_config(
        dtype,
        device=device,
        batch=batch,
        prompt=prompt,
        generate=generate,
        depths=depth or [0],
        threads=threads,
        seed=seed,
        repetitions=repeat,
        tiny=tiny,
    )
    variant = Variant(tiny, layers, tuple(swap or ()), released)
    models = benchmark_models(names or [], variant, ignore_field or [])
    try:
        measure_throughput(report, models, config, mode, peer is not None, peer_compiled)
    finally:
        report.finish()
