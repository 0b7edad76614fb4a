"""Measured speed: models, implementations and the machine's own ceilings take turns, and every figure is a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import ceilings
from benchmarks.measure.benchmark_models import Subject
from benchmarks.measure.ceilings import Kernel
from benchmarks.measure.devices import clock, meter
from benchmarks.measure.observed import Observed, observe
from benchmarks.measure.runners import Nothing, Runner, Workload, ZooRunner, inputs, task
from benchmarks.measure.timing import MOST_WARMUPS, Clock, Samples, Task, measure
from benchmarks.output.progress import Progress
from zoo.core.linear import linear
from zoo.model.decoder import Model
from zoo.units import dtype_name

ZOO, EAGER, COMPILED = "zoo", "eager", "compiled"
OWN, HARNESS = "own matrices", "harness"
TINY_THREADS = 1  # toy matrices leave a second thread nothing but waiting, which would be measured too
Key = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What holds for all that is measured together. `thorough`: ceilings, memory, experts and overhead, too."""

    works: tuple[Workload, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    threads: int = 1
    seed: int = 0
    repetitions: int = 5
    most_warmups: int = MOST_WARMUPS
    thorough: bool = True


@dataclass(frozen=True)
class Entrant:
    """A model as one implementation runs it in one mode. `watched`: a module of the zoo that shows what it does."""

    subject: Subject
    implementation: str
    mode: str
    runner: Runner
    watched: Model | None = None

    def key(self, work: Workload) -> Key:
        """Its name among the samples of a workload."""
        return (self.subject.label, self.implementation, self.mode, work.label)


@dataclass
class Found:
    """What has been found out so far, by `Entrant.key` or by a name of its own."""

    samples: Samples = field(default_factory=dict)
    warmups: Samples = field(default_factory=dict)
    observed: dict[Key, Observed] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def timed(self) -> Samples:
        """The samples that count; of what was interrupted before it had any, those of its warm-up."""
        return self.warmups | self.samples


def of_zoo(subject: Subject, model: Model, modes: Iterable[str]) -> Iterator[Entrant]:
    """The zoo's own entrants; those of several modes share their weights."""
    for mode in modes:
        if mode == EAGER:
            yield Entrant(subject, ZOO, mode, ZooRunner(model), model)
        else:
            yield Entrant(subject, ZOO, mode, ZooRunner(compiled(model)))


def compiled(model: Model) -> Model:
    """A second module with the same weights, compiled."""
    with torch.device("meta"):
        twin = Model(model.spec).eval()
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.compile()
    return twin


def run(entrants: Sequence[Entrant], setting: Setting, found: Found, bar: Progress, timer: Clock | None = None) -> None:
    """Time everything in turns, filling `found`; entrants of a workload follow on each other."""
    timer = timer or clock(setting.device)
    with threads(setting.threads):
        tasks = {entrant.key(work): _task(entrant, work, setting) for work in setting.works for entrant in entrants}
        beside: list[Task] = []
        if setting.thorough:
            bar.doing("first runs")
            _look(entrants, setting, tasks, found)
            compiles = any(entrant.mode == COMPILED for entrant in entrants)
            found.kernels = ceilings.kernels(setting.device, setting.dtype, timer, compiles)
            beside += [_harness(work, setting) for work in setting.works]
            beside += [_own(key, seen.products) for key, seen in found.observed.items() if seen.products]
            beside += ceilings.tasks(found.kernels)
        bar.doing("measuring")
        measure(
            [*tasks.values(), *beside],
            found.samples,
            warmups=found.warmups,
            repetitions=setting.repetitions,
            most_warmups=setting.most_warmups,
            clock=timer,
            tick=bar.tick,
            expect=bar.expect,
        )


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run on this many threads, and without keeping what gradients would need."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _task(entrant: Entrant, work: Workload, setting: Setting) -> Task:
    tokens = inputs(work, entrant.subject.spec.vocab, setting.seed, setting.device)
    return task(entrant.key(work), entrant.runner, work, tokens)


def _look(entrants: Sequence[Entrant], setting: Setting, tasks: dict[Key, Task], found: Found) -> None:
    """Watch each task once; what is compiled has run before, since compiling takes memory, too. The products of the
    zoo's prefills alone are kept: a decode step is little else than reading the same weights."""
    gauge = meter(setting.device)
    for entrant in entrants:
        for work in setting.works:
            if entrant.mode == COMPILED:
                _task(entrant, work, setting).prepare()()
            seen = observe(tasks[entrant.key(work)], entrant.runner.weight_bytes, gauge, entrant.watched)
            if work.phase == "decode" or entrant.watched is None:
                seen.products.clear()
            found.observed[entrant.key(work)] = seen


def harness_key(work: Workload) -> Key:
    """The name among the samples of a workload that is run with a model that does nothing."""
    return (HARNESS, work.label)


def _harness(work: Workload, setting: Setting) -> Task:
    return task(harness_key(work), Nothing(), work, inputs(work, 1, setting.seed, setting.device))


def own_key(key: Key) -> Key:
    """The name among the samples of the products of a pass."""
    return (OWN, *key)


def _own(key: Key, products: Sequence[tuple[Tensor, int]]) -> Task:
    """Every product of a pass with a weight, one after the other, and nothing between."""
    kinds = {(rows, weight.shape[-1], weight.dtype): weight.device for weight, rows in products}  # routers are float32
    given = {kind: torch.randn(kind[:2], device=device).to(kind[2]) for kind, device in kinds.items()}

    def run() -> None:
        for weight, rows in products:
            linear(given[rows, weight.shape[-1], weight.dtype], weight)

    return Task(own_key(key), lambda: run)


def overhead(work: Workload, seconds: Sequence[float], found: Found) -> float | None:
    """The share of the time taken that is the harness's own: a loop around a model that does nothing."""
    nothing = found.timed.get(harness_key(work))
    return median(nothing) / median(seconds) if nothing else None


def environment_of(setting: Setting) -> dict[str, Any]:
    """What holds for all rows."""
    return {
        "dtype": dtype_name(setting.dtype),
        "device": str(setting.device),
        "threads": setting.threads,
    }
