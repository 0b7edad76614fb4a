"""What is timed of a model: passes over a cache, and nothing else. No sampling, no text.

A `Runner` is a model as one implementation runs it. A `Workload` says which passes, under the labels of llama-bench.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from benchmarks.measure.timing import Task
from zoo.core.cache import Cache, SlidingWindowCache
from zoo.errors import UsageError
from zoo.model.decoder import Model

Phase = Literal["prefill", "decode"]
FILL = 512  # tokens in one pass while a cache is filled


class Runner(Protocol):
    """Passes of a model over a cache of its own kind."""

    def new_cache(self, batch: int, tokens: int) -> Any:
        """An empty cache for `batch` sequences of up to `tokens` tokens."""

    def __call__(self, tokens: Tensor, cache: Any) -> object:
        """Token ids (batch, new) after those in the cache -> logits of the last of them."""

    def keep(self, cache: Any) -> Callable[[], Any]:
        """A function that gives back the cache as it is now, however often passes are added to it."""

    @property
    def weight_bytes(self) -> int:
        """Of the parameters, each once."""


@dataclass(frozen=True)
class ZooRunner:
    """A model of the zoo."""

    model: Model

    def new_cache(self, batch: int, tokens: int) -> Cache:
        return self.model.new_cache(batch, tokens)

    def __call__(self, tokens: Tensor, cache: Cache) -> object:
        return self.model(tokens, cache, logits_to_keep=1)

    def keep(self, cache: Cache) -> Callable[[], Cache]:
        """Slots that hold every token need their length back, and no more; of rings, what was in them."""
        length = cache.length
        rings = [stream for slot in cache.layers if isinstance(slot, SlidingWindowCache) for stream in slot.streams]
        copies = [ring.clone() for ring in rings]

        def again() -> Cache:
            cache.length = length
            for ring, copy in zip(rings, copies, strict=True):
                ring.copy_(copy)
            return cache

        return again

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())


class Nothing:
    """A model that computes nothing: what is timed with it is the harness itself."""

    def new_cache(self, batch: int, tokens: int) -> None:
        return None

    def __call__(self, tokens: Tensor, cache: None) -> None:
        return None

    def keep(self, cache: None) -> Callable[[], None]:
        return lambda: None

    @property
    def weight_bytes(self) -> int:
        return 0


@dataclass(frozen=True)
class Workload:
    """A prefill of `tokens` tokens in one pass, or as many decoded one at a time after a first one; both of `batch`
    sequences that hold `depth` tokens already."""

    phase: Phase
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def label(self) -> str:
        """pp512, tg128, tg128 @ d4096"""
        return f"{'pp' if self.phase == 'prefill' else 'tg'}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def first(self) -> int:
        """Tokens between the depth and what is timed: decode begins after its first token."""
        return 1 if self.phase == "decode" else 0

    @property
    def capacity(self) -> int:
        """Tokens that the cache of a sequence must hold."""
        return self.depth + self.first + self.tokens

    @property
    def passes(self) -> list[tuple[int, int]]:
        """(tokens before, new tokens) of each pass that is timed, in one sequence."""
        if self.phase == "prefill":
            return [(self.depth, self.tokens)]
        start = self.depth + self.first
        return [(past, 1) for past in range(start, start + self.tokens)]


def workloads(prompt: int, generate: int, depths: Sequence[int], batch: int) -> tuple[Workload, ...]:
    """A prefill and a decode at each depth, of which 0 tokens leave one out. Raises UsageError if that leaves none."""
    tests: list[tuple[Phase, int]] = [("prefill", prompt), ("decode", generate)]
    works = [
        Workload(phase, tokens, depth, batch) for depth in dict.fromkeys(depths) for phase, tokens in tests if tokens
    ]
    if not works:
        raise UsageError("--prompt 0 and --generate 0 leave nothing to measure")
    return tuple(works)


def task(name: tuple[str, ...], runner: Runner, work: Workload, tokens: Tensor) -> Task:
    """Time `work` on `tokens` (batch, capacity). The depth is filled once, and found again before each repetition."""
    past, first, rest = tokens.split([work.depth, work.first, work.tokens], dim=1)
    timed = rest.split(1 if work.phase == "decode" else work.tokens, dim=1)

    @cache
    def filled() -> Callable[[], Any]:
        empty = runner.new_cache(work.batch, work.capacity)
        for part in past.split(FILL, dim=1) if work.depth else ():
            runner(part, empty)
        return runner.keep(empty)

    def prepare() -> Callable[[], None]:
        held = filled()()
        if work.first:
            runner(first, held)

        def run() -> None:
            for new in timed:
                runner(new, held)

        return run

    return Task(name, prepare)


def inputs(work: Workload, vocab: int, seed: int, device: torch.device) -> Tensor:
    """Random tokens (batch, capacity), the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (work.batch, work.capacity), generator=generator).to(device)
