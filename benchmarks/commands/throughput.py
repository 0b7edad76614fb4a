"""Measured speed of models on this machine, and the share of the machine's ceiling that they reach."""

from enum import StrEnum
from typing import Annotated

import torch
import typer

from benchmarks import options
from benchmarks.measure.benchmark_models import Variant, benchmark_models
from benchmarks.measure.runners import Workload, workloads
from benchmarks.measure.throughput import measure_throughput, throughput_config
from benchmarks.output.report import Report
from zoo.cli.runner import ExpertParallel, TensorParallel, quiet_unless_first, tensor_parallel
from zoo.core import processes
from zoo.errors import UsageError
from zoo.model.parallel import Ranks
from zoo.sharding import require_same_ranks

PROMPT, GENERATE = 512, 128  # tokens
TRAINING_CONTEXT, TRAINING_BATCH = 256, 8  # tokens of a sequence, and sequences

Mode = StrEnum("Mode", ["eager", "compiled"])
Peer = StrEnum("Peer", {"transformers": "transformers", "one_process": "one-process"})  # the baseline


def command(
    *,
    names: Annotated[
        options.Strings,
        typer.Argument(
            help="Presets, hub ids, families (smallest sizes), folders or .gguf files. Folders with safetensors files "
            "and .gguf files have their own weights, all others random weights. Default: the tiny form of each "
            "architecture, which takes a minute."
        ),
    ] = None,
    prompt: Annotated[
        int | None, options.tokens_or_none_option("--prompt", "-p", help="Tokens of the prefill (0: no prefill). [512]")
    ] = None,
    generate: Annotated[
        int | None, options.tokens_or_none_option("--generate", "-n", help="Tokens to decode (0: no decode). [128]")
    ] = None,
    depth: Annotated[
        list[int] | None,
        options.tokens_or_none_option("--depth", "-d", help="Tokens already in the cache (repeatable). [0]"),
    ] = None,
    train: Annotated[bool, options.flag("Measure training steps instead of prefill and decode.", "--train")] = False,
    context: Annotated[
        int | None, options.tokens_option("--context", help="With --train: tokens of each sequence. [256]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Number of sequences. [1; with --train: 8]")] = None,
    dtype: Annotated[
        torch.dtype | None,
        options.computing_dtype_option(help="Dtype of weights and cache. [float32; on a GPU: bfloat16]"),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option("--threads", "-t", min=1, help="Number of torch's threads. [torch's default; tiny forms: 1]"),
    ] = None,
    mode: Annotated[list[Mode], typer.Option(help="Execution mode (repeatable; modes take turns).")] = [Mode.eager],  # noqa: B006
    repeat: options.Repeat = 5,
    seed: options.Seed = 0,
    tiny: options.Tiny = False,
    layers: options.Layers = None,
    released: Annotated[bool, options.flag("Use the released weights of presets and hub ids.", "--released")] = False,
    peer: Annotated[
        Peer | None,
        typer.Option(help="Baseline: transformers or, with --tp, one process with the whole model."),
    ] = None,
    peer_compiled: Annotated[
        bool, options.flag("Also measure transformers compiled, for inference with a static cache.", "--peer-compiled")
    ] = False,
    tp: TensorParallel = 1,
    ep: ExpertParallel = 1,
    changes: options.SwapOptions,
    report: Report,
) -> None:
    """Measured tokens per second, and this machine's ceilings.

    A ceiling is the most tokens per second that the measured memory bandwidth and arithmetic rate allow. --train
    measures training steps: forward, backward and AdamW on --batch sequences of --context tokens.

    Models, modes and baselines take turns, after a warm-up that ends when the medians agree. Ctrl-C prints the results
    so far.

    \b
    python -m benchmarks throughput qwen3-0.6b -d 0 -d 4096
    python -m benchmarks throughput path/to/model.gguf --peer transformers
    python -m benchmarks throughput qwen3-8b --layers 4 --swap 'GQA(window=512)'
    python -m benchmarks throughput qwen3-0.6b --train --peer transformers
    torchrun --nproc-per-node 2 -m benchmarks throughput qwen3-0.6b --tp 2
    """
    tiny = tiny or not names
    works = _workloads(train, prompt, generate, depth, context, batch)
    require_same_ranks(tp, ep)
    _require_peer(tp, train, peer, peer_compiled)
    variant = Variant(tiny, layers, tuple(changes.swap or ()), released)
    models = benchmark_models(names or [], variant, changes.ignore_field or [])
    beside = {
        "modes": mode,
        "baseline": peer is Peer.transformers or peer_compiled,
        "baseline_compiled": peer_compiled,
        "one_process": peer is Peer.one_process,
    }
    with tensor_parallel(device, tp, "benchmarks throughput") as (place, group), quiet_unless_first():
        settings = {"seed": seed, "repetitions": repeat, "ranks": Ranks(group, whole_experts=ep > 1), **beside}
        config = throughput_config(works, dtype, place, threads, tiny, **settings)
        measure_throughput(report if processes.rank() == 0 else Report(), models, config)


def _require_peer(tp: int, train: bool, peer: Peer | None, peer_compiled: bool) -> None:
    """Raises UsageError if --tp, --train and the baselines cannot be combined."""
    if tp > 1 and train:
        raise UsageError("--train with --tp: training divides the data, torchrun -m zoo.train")
    if tp > 1 and (peer is Peer.transformers or peer_compiled):
        raise UsageError("transformers runs in one process; with --tp, --peer is one-process")
    if tp == 1 and peer is Peer.one_process:
        raise UsageError("--peer one-process needs --tp: torchrun --nproc-per-node 2 -m benchmarks ... --tp 2")


def _workloads(
    train: bool,
    prompt: int | None,
    generate: int | None,
    depth: list[int] | None,
    context: int | None,
    batch: int | None,
) -> tuple[Workload, ...]:
    """Returns the workloads to time. Raises UsageError for an option that does not apply to them."""
    if train:
        for name, value in (("--prompt", prompt), ("--generate", generate), ("--depth", depth or None)):
            if value is not None:
                raise UsageError(f"{name} is for prefill and decode; a training step has --context and --batch")
        return (Workload("train", context or TRAINING_CONTEXT, batch=batch or TRAINING_BATCH),)
    if context is not None:
        raise UsageError("--context is for --train; a prefill takes --prompt, with --depth tokens in the cache")
    prompt, generate = PROMPT if prompt is None else prompt, GENERATE if generate is None else generate
    return workloads(prompt, generate, depth or [0], batch or 1)
