"""Fake clocks, and rows of fake measurements."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.measure.runners import EAGER, IDLE, ZOO, Candidate, Results
from benchmarks.measure.throughput import tiny_config
from benchmarks.measure.throughput_rows import rows
from benchmarks.measure.timing import measure

MACHINE = {
    **{"cpu": "a processor", "cores": 8, "isa": ["avx2"], "torch": "2.13", "blas": "a library"},
    **{"gpu": None, "driver": None, "last_cache_bytes": None, "kernels": {}},
}


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Ticking(Clock):
    """A clock whose every reading is one second after the previous one."""

    def __call__(self) -> float:
        self.now += 1
        return self.now


def time_alike(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Makes every run that these modules measure take one second."""
    for module in modules:
        monkeypatch.setattr(module, "measure", lambda *args, **options: measure(*args, **options, clock=Ticking()))


def fake_rows(models: Sequence[BenchmarkModel], seconds: Sequence[float] = (0.9, 0.001, 1e-4)) -> list[dict[str, Any]]:
    """The rows of the main command if every run had taken these seconds."""
    candidates = [Candidate(model, ZOO, EAGER, IDLE) for model in models]
    results = Results(tiny_config(0), candidates)
    for candidate in candidates:
        for work in results.config.workloads:
            results.samples[candidate.key(work)] = list(seconds)
            results.warmups[candidate.key(work)] = [1.0] * 4
    return rows(results)
