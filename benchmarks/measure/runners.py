"""Runners and workloads: the passes over a cache that are timed, without sampling and without text.

A `Runner` is a model as one implementation runs it. A `Workload` says which passes, under the labels of llama-bench.
"""

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

ZOO, BASELINE = "zoo", "transformers"  # implementations
EAGER, COMPILED = "eager", "compiled"  # modes
FILL_TOKENS = 512  # in one pass while a cache is filled to its depth

Phase = Literal["prefill", "decode"]


class Runner(Protocol):
    """Passes of a model over a cache of its own kind."""

    def new_cache(self, batch: int, tokens: int) -> Any:
        """An empty cache for `batch` sequences of up to `tokens` tokens."""

    def __call__(self, tokens: Tensor, cache: Any) -> object:
        """Token ids (batch, new) after those in the cache -> logits of the last one."""

    def snapshot(self, cache: Any) -> Callable[[], Any]:
        """A function that returns the cache as it is now, whatever passes were added to it."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters, each counted once."""


@dataclass(frozen=True)
class ZooRunner:
    """A model of the zoo."""

    model: Model

    def new_cache(self, batch: int, tokens: int) -> Cache:
        return self.model.new_cache(batch, tokens)

    def __call__(self, tokens: Tensor, cache: Cache) -> object:
        return self.model(tokens, cache, logits_to_keep=1)

    def snapshot(self, cache: Cache) -> Callable[[], Cache]:
        """A full cache needs its length back and nothing else; a sliding-window cache also needs its contents."""
        length = cache.length
        windows = [
            stream for layer in cache.layers if isinstance(layer, SlidingWindowCache) for stream in layer.streams
        ]
        copies = [stream.clone() for stream in windows]

        def restore() -> Cache:
            cache.length = length
            for stream, copy in zip(windows, copies, strict=True):
                stream.copy_(copy)
            return cache

        return restore

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())


class NullRunner:
    """A model that computes nothing: timing it gives the harness overhead."""

    weight_bytes = 0

    def new_cache(self, batch: int, tokens: int) -> None:
        return None

    def __call__(self, tokens: Tensor, cache: None) -> None:
        return None

    def snapshot(self, cache: None) -> Callable[[], None]:
        return lambda: None


@dataclass(frozen=True)
class Workload:
    """Prefill: `tokens` tokens in one pass. Decode: as many, one at a time, after a first one. Both run on `batch`
    sequences whose cache already holds `depth` tokens."""

    phase: Phase
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def label(self) -> str:
        """pp512, tg128, tg128 @ d4096"""
        return f"{'pp' if self.phase == 'prefill' else 'tg'}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def untimed(self) -> int:
        """Tokens between the depth and the timed ones: decode begins after its first token."""
        return 1 if self.phase == "decode" else 0

    @property
    def capacity(self) -> int:
        """Tokens that the cache of one sequence must hold."""
        return self.depth + self.untimed + self.tokens

    @property
    def passes(self) -> list[tuple[int, int]]:
        """(past tokens, new tokens) of each timed pass, for one sequence."""
        start = self.depth + self.untimed
        if self.phase == "prefill":
            return [(start, self.tokens)]
        return [(past, 1) for past in range(start, start + self.tokens)]


def workloads(prompt: int, generate: int, depths: Sequence[int], batch: int) -> tuple[Workload, ...]:
    """A prefill of `prompt` and a decode of `generate` tokens at each depth; 0 tokens leave one out. Raises UsageError
    if nothing is left."""
    tests: list[tuple[Phase, int]] = [("prefill", prompt), ("decode", generate)]
    found = [Workload(phase, n, depth, batch) for depth in dict.fromkeys(depths) for phase, n in tests if n]
    if not found:
        raise UsageError("--prompt 0 and --generate 0 leave nothing to measure")
    return tuple(found)


def task(name: tuple[str, ...], runner: Runner, workload: Workload, tokens: Tensor) -> Task:
    """Time `workload` on `tokens` (batch, capacity). The cache is filled to its depth once, and restored before each
    repetition."""
    past, first, rest = tokens.split([workload.depth, workload.untimed, workload.tokens], dim=1)
    timed = rest.split(1 if workload.phase == "decode" else workload.tokens, dim=1)

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
    """Random token ids (batch, capacity), the same for every model with this vocabulary size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (workload.batch, workload.capacity), generator=generator).to(device)
