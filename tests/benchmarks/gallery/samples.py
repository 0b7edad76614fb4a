"""Samples for a gallery: measured speeds, and a comparison of learning whose runs were never trained.

The scaled-down models and the tables of the comparison are real, and its outcomes are made up.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from base64 import b64decode
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
from zoo.cli.tables import SCHEMA_VERSION, Format, Row

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


def _speed(model: str, implementation: str, phase: str, tokens: int, depth: int, tokens_per_s: float) -> Row:
    """The fields of a row of `python -m benchmarks throughput --json` that a gallery reads."""
    return {
        **{"table": "throughput", "model": model, "swap": None, "implementation": implementation, "tiny": False},
        **{"mode": "eager", "test": f"{phase} test", "phase": phase, "tokens": tokens, "depth": depth, "batch": 1},
        **{"dtype": "bfloat16", "device": "cpu", "tokens_per_s": tokens_per_s},
        **{"tokens_per_s_min": tokens_per_s * 0.9, "tokens_per_s_max": tokens_per_s * 1.1},
        "ceiling_tokens_per_s": tokens_per_s * 1.5,
    }


MEASURED: dict[str, Any] = {
    "schema_version": SCHEMA_VERSION,
    "machine": {"cpu": "A processor", "platform": "Linux", "torch": "2.13.0", "threads": 1, "python": "3.13"},
    "rows": [
        _speed(model, implementation, *test, rate)
        for model, rate in (("gemma3-270m", 40.0), ("qwen3-0.6b", 20.0))
        for implementation in ("zoo", "transformers")
        for test in (("prefill", 512, 0), ("decode", 128, 4096))
    ],
}


def packed(text: str) -> dict[str, Any]:
    """The contents of a page's packed part: data, diagrams, charts and scripts."""
    (content,) = re.findall(r'<script type="text/plain" id="packed">([A-Za-z0-9+/=]*)</script>', text)
    found: dict[str, Any] = json.loads(zlib.decompress(b64decode(content)))
    return found
