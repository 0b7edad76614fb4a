"""A throughput measurement: its configuration, the candidates that take part, and the results so far."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.measure.ceilings import Kernel
from benchmarks.measure.observed import Observed
from benchmarks.measure.runners import EAGER, ZOO, Runner, Workload, ZooRunner, random_tokens, task
from benchmarks.measure.timing import Samples, Task
from zoo.model.decoder import Model

Key = tuple[str, ...]


@dataclass(frozen=True)
class ThroughputConfig:
    """What all candidates share. `thorough`: also measure ceilings, GEMMs alone, memory, experts and overhead."""

    workloads: tuple[Workload, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    threads: int = 1
    seed: int = 0
    repetitions: int = 5
    thorough: bool = True


@dataclass(frozen=True)
class Candidate:
    """A model as one implementation runs it in one mode. `watched`: the zoo's module, where it runs eagerly."""

    model: BenchmarkModel
    implementation: str
    mode: str
    runner: Runner
    watched: Model | None = None

    def key(self, workload: Workload) -> Key:
        """Its name among the samples of a workload."""
        return (self.model.label, self.implementation, self.mode, workload.label)

    def task(self, workload: Workload, config: ThroughputConfig) -> Task:
        """The workload on random tokens."""
        tokens = random_tokens(workload, self.model.spec.vocab, config.seed, config.device)
        return task(self.key(workload), self.runner, workload, tokens)


@dataclass
class Results:
    """The candidates of a measurement, and what was measured so far by `Candidate.key` or by a name of its own."""

    config: ThroughputConfig
    candidates: list[Candidate] = field(default_factory=list)
    samples: Samples = field(default_factory=dict)
    warmups: Samples = field(default_factory=dict)
    observed: dict[Key, Observed] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def timed(self) -> Samples:
        """The samples that count; the warm-up's for a task that an interruption left without any."""
        return self.warmups | self.samples


def zoo_candidates(benchmark_model: BenchmarkModel, model: Model, modes: Iterable[str]) -> Iterator[Candidate]:
    """A candidate of the zoo for each mode; all share their weights."""
    for mode in modes:
        if mode == EAGER:
            yield Candidate(benchmark_model, ZOO, mode, ZooRunner(model), model)
        else:
            yield Candidate(benchmark_model, ZOO, mode, ZooRunner(compiled_twin(model)))


def compiled_twin(model: Model) -> Model:
    """A second module with the same weights, compiled."""
    with torch.device("meta"):
        twin = Model(model.spec).eval()
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.compile()
    return twin


@contextmanager
def inference(threads: int) -> Iterator[None]:
    """Run on this many threads, in inference mode."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
