"""Candidates of a throughput measurement. They take turns at running workloads, without sampling or text.

A `Workload` defines the timed passes and has a label as in llama-bench. A `Runner` runs a model in one implementation.
A `Candidate` is a model in one implementation and one mode.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.measure.ceilings import Kernel
from benchmarks.measure.observed import Observed
from benchmarks.measure.timing import Samples, Task
from zoo.core.cache import Cache
from zoo.errors import UsageError
from zoo.model.module import Model
from zoo.model.parallel import Ranks

# Largest allowed difference between candidates of one model, as a share of the largest element, by dtype. It guards
# against timing two different models; equality is tested in float64 (weights.parity, zoo.cli.self_check).
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

ZOO, BASELINE = "zoo", "transformers"  # implementations
EAGER, COMPILED = "eager", "compiled"  # modes
FILL_TOKENS = 512  # tokens per untimed pass that fills the cache before a workload

Phase = Literal["prefill", "decode", "train"]
Key = tuple[str, ...]


@dataclass(frozen=True)
class Runner:
    """A model and its passes over its own kind of cache. This base class computes nothing and has no cache."""

    model: Any

    def new_cache(self, batch: int, tokens: int) -> Any:
        """Returns an empty cache for `batch` sequences of up to `tokens` tokens."""

    def __call__(self, tokens: Tensor, cache: Any) -> Any:
        """Passes token ids (batch, new), which follow those in the cache, and returns the logits of the last token."""

    def snapshot(self, cache: Any) -> Callable[[], Any]:
        """Returns a function that restores the cache to its present state after any later passes."""
        return lambda: None

    def train_step(self, tokens: Tensor) -> None:
        """Takes a training step on token ids (batch, t + 1): each of the first t predicts the next."""

    def release(self) -> None:
        """Frees memory, apart from the weights, that stays allocated between tasks."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters, each counted once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())


IDLE = Runner(nn.Module())  # timing it gives the harness overhead


class ZooRunner(Runner):
    """A model of the zoo."""

    def new_cache(self, batch: int, tokens: int) -> Cache:
        return self.model.new_cache(batch, tokens)

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        return self.model(tokens, cache, logits_to_keep=1)

    def snapshot(self, cache: Cache) -> Callable[[], Cache]:
        before = cache.snapshot()

        def restore() -> Cache:
            cache.restore(before)
            return cache

        return restore


@dataclass(frozen=True)
class Workload:
    """A prefill, a decode or a training step.

    Prefill: `tokens` tokens in one pass. Decode: one untimed token, then `tokens` tokens, one at a time. Both run on
    `batch` sequences whose cache already holds `depth` tokens. Train: one training step on `batch` sequences.
    """

    phase: Phase
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def label(self) -> str:
        """The name of the test: pp512, tg128, tg128 @ d4096, train 8x256."""
        if self.phase == "train":
            return f"train {self.batch}x{self.tokens}"
        return f"{'pp' if self.phase == 'prefill' else 'tg'}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def untimed(self) -> int:
        """The number of untimed tokens after the `depth` cached ones: 1 in decode, else 0."""
        return int(self.phase == "decode")

    @property
    def capacity(self) -> int:
        """The tokens per sequence in the cache at the end; in training, the step's tokens and the last target."""
        return self.depth + self.untimed + self.tokens + (self.phase == "train")

    @property
    def passes(self) -> list[tuple[int, int]]:
        """The (past tokens, new tokens) of each timed pass, for one sequence."""
        start, new = self.depth + self.untimed, 1 if self.phase == "decode" else self.tokens
        return [(past, new) for past in range(start, start + self.tokens, new)]


def workloads(prompt: int, generate: int, depths: Sequence[int], batch: int) -> tuple[Workload, ...]:
    """Returns a prefill of `prompt` and a decode of `generate` tokens at each depth; 0 tokens leave a phase out.

    Raises UsageError if both are 0.
    """
    tests: list[tuple[Phase, int]] = [("prefill", prompt), ("decode", generate)]
    found = [Workload(phase, n, depth, batch) for depth in dict.fromkeys(depths) for phase, n in tests if n]
    if not found:
        raise UsageError("--prompt 0 and --generate 0 leave nothing to measure")
    return tuple(found)


def task(name: Key, runner: Runner, workload: Workload, tokens: Tensor) -> Task:
    """Returns the task that runs `workload` on `tokens` (batch, capacity). The cache is filled once, then restored."""
    if workload.phase == "train":
        with torch.inference_mode(False):  # a tensor of inference mode cannot take part in a backward pass
            batch = tokens.clone()
        return Task.ready(name, partial(runner.train_step, batch))
    past, first, rest = tokens.split([workload.depth, workload.untimed, workload.tokens], dim=1)
    timed = rest.split(workload.passes[0][1], dim=1)

    @cache
    def filled() -> Callable[[], Any]:
        empty = runner.new_cache(workload.batch, workload.capacity)
        for part in past.split(FILL_TOKENS, dim=1) if workload.depth else ():
            runner(part, empty)
        return runner.snapshot(empty)

    def prepare() -> Callable[[], None]:
        held = filled()()
        if workload.untimed:
            runner(first, held)

        def run() -> None:
            for new in timed:
                runner(new, held)

        return run

    return Task(name, prepare)


def random_tokens(workload: Workload, vocab: int, seed: int, device: torch.device) -> Tensor:
    """Returns random token ids (batch, capacity), the same for every model with this vocabulary size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (workload.batch, workload.capacity), generator=generator).to(device)


@dataclass(frozen=True)
class ThroughputConfig:
    """Settings that all candidates share.

    `modes`: execution modes of the zoo. `baseline`, `baseline_compiled`: whether transformers takes part, eager
    and compiled. `one_process`: whether the whole model in one process takes part, beside the `ranks` that divide each
    model. `thorough`: whether to measure ceilings, GEMMs alone, memory, experts and overhead too.
    """

    workloads: tuple[Workload, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    threads: int = 1
    seed: int = 0
    repetitions: int = 5
    modes: Sequence[str] = (EAGER,)
    baseline: bool = False
    baseline_compiled: bool = False
    one_process: bool = False
    thorough: bool = True
    ranks: Ranks = Ranks()

    @property
    def trains(self) -> bool:
        """Whether training is measured."""
        return any(work.phase == "train" for work in self.workloads)


@dataclass(frozen=True)
class Candidate:
    """A model in one implementation and one mode."""

    model: BenchmarkModel
    implementation: str
    mode: str
    runner: Runner

    def key(self, workload: Workload) -> Key:
        """Returns the key of the candidate's samples for a workload."""
        return (self.model.label, self.implementation, self.mode, workload.label)

    def task(self, workload: Workload, config: ThroughputConfig) -> Task:
        """Returns the task that runs the workload on random tokens."""
        tokens = random_tokens(workload, self.model.spec.vocab, config.seed, config.device)
        return task(self.key(workload), self.runner, workload, tokens)


@dataclass
class Results:
    """The candidates of a measurement and the results so far. A key is a `Candidate.key` or another task's name."""

    config: ThroughputConfig
    candidates: list[Candidate] = field(default_factory=list)
    samples: Samples = field(default_factory=dict)
    warmups: Samples = field(default_factory=dict)
    observed: dict[Key, Observed] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def timed(self) -> Samples:
        """The samples to report. A task interrupted before its first sample has its warm-up samples instead."""
        return self.warmups | self.samples


def zoo_candidates(
    benchmark_model: BenchmarkModel, model: Model, modes: Iterable[str], implementation: str = ZOO
) -> list[Candidate]:
    """Returns a candidate of the zoo for each mode. All candidates share their weights."""
    modules = ((mode, model if mode == EAGER else compiled_twin(model)) for mode in modes)
    return [Candidate(benchmark_model, implementation, mode, ZooRunner(module)) for mode, module in modules]


def compiled_twin(model: Model) -> Model:
    """Returns a second module with the same weights, compiled."""
    twin = model.twin()
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.compile()
    return twin


@contextmanager
def inference(threads: int) -> Iterator[None]:
    """Runs the block on this many threads, in inference mode."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
