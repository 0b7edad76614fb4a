"""The rows of a comparison whose runs were never trained: real small forms and tables, made-up outcomes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.learning.comparison import LearnConfig, Results, small_models
from benchmarks.learning.runs import TEXT, Outcome, Point, Run
from benchmarks.learning.tables import tables
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.training import BITS_PER_BYTE, LENGTHS, at_size, beyond
from benchmarks.output.report import Report
from zoo.cli.tables import Format, Row

NAMES = ("llama3", "deepseek-v3")
SWAP = "norm=olmo"


def learned_rows(
    names: Sequence[str] = NAMES, swaps: Sequence[str] = (SWAP,), tasks: Sequence[str] = (TEXT, "length", "recall")
) -> list[Row]:
    """The rows that `python -m benchmarks learn --json` writes for three seeds."""
    tokens = cast(Any, SimpleNamespace(name="a <library>", hash="0123456789abcdef"))
    results = Results(small_models(names, swaps), LearnConfig(tuple(tasks), steps=293, seeds=3), tokens)
    for model, entry in enumerate(results.entries):
        results.rates[entry], results.sweeps[entry] = 8e-3, None
        for task in results.config.trained:
            for seed in range(results.config.seeds):
                run = results.run(entry, task, seed)
                results.outcomes[run] = _outcome(run, random.Random(f"{model} {task} {seed}"), 0.06 * model)
    report = Report(Format.json)
    report.add(*tables(results))
    return report.rows


@cache
def sample() -> list[Row]:
    """The rows of the models and tasks above."""
    return learned_rows()


def _outcome(run: Run, noise: random.Random, offset: float) -> Outcome:
    if run.task != TEXT:
        sizes = TASKS[run.task].sizes
        return Outcome({at_size(size): noise.uniform(0.2, 0.9) for size in sizes}, (), run.tokens, 1.0)
    bits = [5 * (i + 1) ** -0.4 + offset + noise.gauss(0, 0.02) for i in range(8)]
    cost = 3 * run.spec.flops(0, run.context) / run.context
    counts = [run.tokens * (i + 1) // 8 for i in range(8)]
    curve = tuple(
        Point(count, round(count * cost), count / 25_000, each) for count, each in zip(counts, bits, strict=True)
    )
    figures = {BITS_PER_BYTE: bits[-1]} | {beyond(times): bits[-1] + times / 4 for times in LENGTHS}
    return Outcome(figures, curve, run.tokens, run.tokens / 25_000)
