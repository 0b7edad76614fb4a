"""Throughput of a model divided over several processes (tensor parallel), beside one process with the whole model.

All processes run the same turns. A run begins when all processes are ready, and ends when the slowest is done. All use
the first process's times, so that they agree on when a warm-up has settled. The exchanges are also timed alone, in the
same turns. Their time, and the time to read weights and cache, predict the time of a step.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.analytic.roofline import Device
from benchmarks.measure.baseline import CHECKED_TOKENS, logits_difference
from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.measure.runners import (
    IDLE,
    Candidate,
    Key,
    ThroughputConfig,
    Workload,
    inference,
    random_tokens,
    zoo_candidates,
)
from benchmarks.measure.timing import Clock, Task
from zoo.cli.tables import Row
from zoo.core import processes
from zoo.core.collectives import Group, exchanged_rows, gathered_columns, summed
from zoo.errors import CheckFailed
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.sharding import Divide, Exchange

PARTS = ("step_seconds", "read_seconds", "compute_seconds", "exchange_seconds", "of_predicted")  # columns of a row
ONE_PROCESS = "one process"  # an implementation: the first process, with the whole model


def ready_clock(clock: Clock) -> Clock:
    """Returns a clock whose reading waits until all processes are ready."""

    def read() -> float:
        processes.wait_for_all()
        return clock()

    return read


def seconds_of_first(seconds: float) -> float:
    """Returns, in every process, the seconds that the first process measured."""
    return processes.from_first(lambda: seconds)


def whole_candidates(model: BenchmarkModel, divided: Model, config: ThroughputConfig) -> list[Candidate]:
    """Returns the candidates that run the whole model in the first process; in other processes they are idle.

    Raises CheckFailed unless the whole model's logits equal those of the `divided` model.
    """
    tokens = random_tokens(Workload("prefill", CHECKED_TOKENS), model.spec.vocab, config.seed, config.device)
    with inference(config.threads):
        logits = divided(tokens)
    if processes.rank() > 0:
        return [Candidate(model, ONE_PROCESS, mode, IDLE) for mode in config.modes]
    whole = model.build(config.device, config.dtype, config.seed)
    with inference(config.threads):
        expected = whole(tokens)
    if problem := logits_difference(model, logits, expected, config, "those of one process"):
        raise CheckFailed(f"{model.label}: in {config.ranks.count} processes, {problem}; nothing was measured")
    return zoo_candidates(model, whole, config.modes, ONE_PROCESS)


def exchange_key(label: str, work: Workload) -> Key:
    """Returns the key of the samples that time the exchanges of a workload."""
    return ("exchanges", label, work.label)


def exchange_tasks(candidates: Sequence[Candidate], config: ThroughputConfig) -> Iterator[Task]:
    """Yields the tasks that run only the exchanges of each workload's passes."""
    for model in {each.model.label: each.model for each in candidates}.values():
        for work in config.workloads:
            yield Task.ready(exchange_key(model.label, work), exchanges_of(model.spec, config, work))


def exchanges_of(spec: Decoder, config: ThroughputConfig, work: Workload) -> Callable[[], None]:
    """Returns a function that runs the exchanges of all passes of a workload, one collective after the other.

    In an all-to-all, each rank gets an equal amount from every other rank.
    """
    ranks, group = config.ranks, config.ranks.group
    assert group is not None
    whole, tokens = ranks.divided(spec), work.batch * work.passes[0][1]
    steps = [_collective(each, tokens, config, group) for each in whole.exchanges(whole.dim, ranks.count)]
    held = [len(rank.held(whole.vocab, Divide.ANY)) for rank in group.rank.all()]
    logits = torch.zeros(work.batch, 1, held[group.rank.index], dtype=config.dtype, device=config.device)
    steps.append(partial(gathered_columns, logits, group, held))

    def run() -> None:
        for _ in work.passes:
            for step in steps:
                step()

    return run


def _collective(exchange: Exchange, tokens: int, config: ThroughputConfig, group: Group) -> Callable[[], Tensor]:
    nbytes = exchange.nbytes(tokens, config.dtype.itemsize) // (group.rank.ranks if exchange.shared else 1)
    dtype = torch.float32 if exchange.in_float32 else config.dtype
    each = max(nbytes // dtype.itemsize // group.rank.ranks, 1)
    rows = [each] * group.rank.ranks
    if exchange.kind == "all-to-all":
        return partial(exchanged_rows, torch.zeros(sum(rows), dtype=dtype, device=config.device), group, rows, rows)
    return partial(summed, torch.zeros(nbytes // dtype.itemsize, dtype=dtype, device=config.device), group)


def parts_of_a_step(row: Row, machine: Device | None, exchange_seconds: list[float] | None, passes: int) -> Row:
    """Returns the PARTS columns of a row, in seconds per pass; all None without measured ceilings or exchanges.

    `step_seconds` is measured. The prediction is the longer of reading weights and cache (`read_seconds`) and computing
    (`compute_seconds`), plus the exchange (`exchange_seconds`). `of_predicted` is the measured time / the prediction.
    """
    if machine is None or exchange_seconds is None:
        return dict.fromkeys(PARTS)
    read = (row["weight_bytes_read"] + row["kv_bytes_read"]) / passes / machine.bandwidth
    compute = row["flops"] / passes / machine.flops
    exchange = median(exchange_seconds) / passes
    step = median(row["seconds"]) / passes
    return dict(zip(PARTS, (step, read, compute, exchange, step / (max(read, compute) + exchange)), strict=True))
