"""Costs, without torch: what a layer's cache keeps, (query, key) pairs of attention, FLOPs of matrix products.

One FLOP convention everywhere: 2 per multiply-add, matrix products only (projections, scores, weighted values, router,
head). Norms, rotations, activations and softmax are not counted, as in Kaplan et al. 2020 (section 2.1) and in torch's
own counter.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm, prod
from typing import Any, ClassVar, Self

BLOCK = 256  # queries per block of sliding-window attention: larger blocks waste pairs, smaller ones need more calls
Breakdown = Mapping[str, int]  # a total by part of the model: "attn", "norm", "routed", ...


def sum_breakdowns(counted: Iterable[tuple[int, Breakdown]]) -> Breakdown:
    """Returns the sum by name of (count, breakdown of one) pairs."""
    total: Counter[str] = Counter()
    for count, parts in counted:
        total.update({name: count * amount for name, amount in parts.items()})
    return dict(total)


@dataclass(frozen=True)
class Reach(ABC):
    """The earlier tokens that a token attends to. One object defines the mask, the tokens that a cache keeps, the pairs
    that FLOPs count, the description and the published name."""

    layer_type: ClassVar[str]  # the name in `layer_types` of a published config.json

    @property
    def limit(self) -> int | None:
        """The maximum number of tokens that a cache keeps; None: no limit."""
        return None

    def bounded(self, size: int) -> Self:
        """Returns this kind of reach over `size` tokens, or itself if it has no limit."""
        changes: dict[str, Any] = {"size": size}
        return self if self.limit is None else replace(self, **changes)

    @abstractmethod
    def sees(self, query: Any, key: Any) -> Any:
        """Whether the token at position `query` attends to the token at position `key`: integers, or tensors that
        broadcast."""

    @abstractmethod
    def held(self, past: int) -> int:
        """The number of cached keys that the next token attends to, after `past` tokens."""

    @abstractmethod
    def pairs(self, past: int, new: int) -> int:
        """The number of visible (query, key) pairs of `new` tokens after `past`. Each token also sees itself."""

    @abstractmethod
    def blocks(self, held: int, new: int) -> Iterator[tuple[int, int, int]]:
        """Yields (start, end, first) for each block of `new` queries after `held` cached keys: queries start to end - 1
        receive the keys from `first` up to the block's last. `first` is 0 where cached keys are in reach."""

    @abstractmethod
    def describe(self) -> str:
        """Returns a short description: full, window 512, chunk 8192."""

    def tokens(self, context: int) -> int:
        """The number of tokens in a cache after `context` tokens."""
        return context if self.limit is None else min(context, self.limit)

    def dense_pairs(self, past: int, new: int) -> int:
        """The number of pairs that a dense masked kernel computes for the same tokens: every query with every key that
        it receives."""
        held = self.held(past)
        if new == 1:
            return held + 1
        return sum((end - start) * (held + end - first) for start, end, first in self.blocks(held, new))


@dataclass(frozen=True)
class Full(Reach):
    """Every earlier token."""

    layer_type = "full_attention"

    def sees(self, query: Any, key: Any) -> Any:
        return key <= query

    def held(self, past: int) -> int:
        return past

    def pairs(self, past: int, new: int) -> int:
        return new * past + new * (new + 1) // 2

    def blocks(self, held: int, new: int) -> Iterator[tuple[int, int, int]]:
        yield 0, new, 0

    def describe(self) -> str:
        return "full"


@dataclass(frozen=True)
class Window(Reach):
    """A sliding window over the last `size` tokens, including the token itself: token i attends to min(i + 1, size)
    keys (Mistral 7B, section 2)."""

    size: int
    layer_type = "sliding_attention"

    @property
    def limit(self) -> int | None:
        return self.size

    def sees(self, query: Any, key: Any) -> Any:
        return (key <= query) & (key > query - self.size)

    def held(self, past: int) -> int:
        return min(past, self.size)

    def pairs(self, past: int, new: int) -> int:
        ramp = min(max(self.size - past, 0), new)
        return ramp * past + ramp * (ramp + 1) // 2 + (new - ramp) * self.size

    def dense_pairs(self, past: int, new: int) -> int:
        if new == 1:
            return min(self.held(past) + 1, self.size)
        return super().dense_pairs(past, new)

    def blocks(self, held: int, new: int) -> Iterator[tuple[int, int, int]]:
        if held == 0 and new <= self.size:
            yield 0, new, 0
            return
        block = min(self.size, BLOCK)
        for start in range(0, new, block):
            first = held + start + 1 - self.size  # all cached keys or none: a ring buffer does not keep their order
            yield start, min(start + block, new), first if first > held else 0

    def describe(self) -> str:
        return f"window {self.size}"


@dataclass(frozen=True)
class Chunk(Reach):
    """The earlier tokens of a token's own chunk: positions are cut into chunks of `size`, and the first token of a
    chunk sees only itself (Llama 4)."""

    size: int
    layer_type = "chunked_attention"

    @property
    def limit(self) -> int | None:
        return self.size

    def sees(self, query: Any, key: Any) -> Any:
        return (key <= query) & (key // self.size == query // self.size)

    def held(self, past: int) -> int:
        return past % self.size

    def pairs(self, past: int, new: int) -> int:
        return self._upto(past + new) - self._upto(past)

    def _upto(self, tokens: int) -> int:
        """The number of pairs of the first `tokens` tokens."""
        whole, rest = divmod(tokens, self.size)
        return whole * (self.size * (self.size + 1) // 2) + rest * (rest + 1) // 2

    def blocks(self, held: int, new: int) -> Iterator[tuple[int, int, int]]:
        start, end = 0, min(self.size - held, new)
        yield start, end, 0
        while end < new:
            start, end = end, min(end + self.size, new)
            yield start, end, held + start

    def describe(self) -> str:
        return f"chunk {self.size}"


@dataclass(frozen=True)
class State:
    """A part of a cache whose size does not depend on the number of tokens. `shape` is that of one sequence. States
    that sum over many tokens are kept in float32 (`in_float32`), whatever the model's dtype."""

    name: str
    shape: tuple[int, ...]
    in_float32: bool = False

    def nbytes(self, itemsize: int) -> int:
        """The bytes of the state of one sequence, in a model whose elements take `itemsize` bytes."""
        return prod(self.shape) * (max(4, itemsize) if self.in_float32 else itemsize)


@dataclass(frozen=True)
class Entries:
    """A stream with one entry of (heads, width) elements for each block of `every` tokens, kept for the whole context
    (DeepSeek-V4, section 2.3). A block that is not complete already has its entry."""

    name: str
    shape: tuple[int, int]
    every: int

    def count(self, context: int) -> int:
        """The number of entries after `context` tokens: one per block that has begun."""
        return -(-context // self.every)

    @property
    def elements(self) -> int:
        """Cache elements per entry."""
        return prod(self.shape)


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer: named streams of (heads, width) elements for each token in `reach`, states of a fixed
    size, and streams with an entry for several tokens.

    The cache is allocated from this object and the tables are printed from it, so the two cannot disagree.
    """

    per_token: tuple[tuple[str, tuple[int, int]], ...] = ()
    reach: Reach = Full()
    state: tuple[State, ...] = ()
    entries: tuple[Entries, ...] = ()

    def elements(self) -> int:
        """Cache elements per token in reach, without the entries."""
        return sum(prod(shape) for _, shape in self.per_token)

    @property
    def block(self) -> int:
        """The period of the cache's growth in tokens: 1, or the least common multiple of all block sizes."""
        return lcm(*(each.every for each in self.entries))

    def tokens(self, context: int) -> int:
        """The number of tokens in the cache after `context` tokens: 0 without per-token streams."""
        return self.reach.tokens(context) if self.per_token else 0

    def state_bytes(self, itemsize: int) -> int:
        """Bytes of the states, in a model whose elements take `itemsize` bytes."""
        return sum(state.nbytes(itemsize) for state in self.state)

    def nbytes(self, context: int, itemsize: int) -> int:
        """Bytes of one sequence's cache for `context` tokens."""
        streams = self.elements() * self.tokens(context) + sum(e.elements * e.count(context) for e in self.entries)
        return streams * itemsize + self.state_bytes(itemsize)

    def growth(self, itemsize: int) -> tuple[int, Fraction]:
        """Returns (fixed bytes, bytes per token) of one sequence's cache. They are exact once every window is full, and
        with entries, at multiples of `block` tokens."""
        per_token = self.elements() * itemsize
        limit = self.reach.limit
        fixed = self.state_bytes(itemsize) + per_token * (limit or 0)
        return fixed, self.entry_growth(itemsize) + (per_token if limit is None else 0)

    def entry_growth(self, itemsize: int) -> Fraction:
        """Bytes per token of the entries, exact at multiples of `block` tokens."""
        return sum((Fraction(each.elements * itemsize, each.every) for each in self.entries), Fraction())

    def describe(self) -> str:
        """Returns a short description of the visible tokens: full, window 512, window 128 + 1/4 (one entry per four
        tokens)."""
        steps = dict.fromkeys(each.every for each in self.entries)
        return " + ".join([self.reach.describe(), *(f"1/{every}" for every in steps)])


def whole(number: Fraction) -> int | float:
    """Returns the number as an int if it is whole, else as a float."""
    return number.numerator if number.denominator == 1 else float(number)


def entry_pairs(past: int, new: int, every: int, most: int | None = None) -> int:
    """The number of (query, entry) pairs of `new` tokens after `past`. A token sees the entries of all blocks of
    `every` tokens that are complete once it is there, or at most `most` of them."""

    def upto(tokens: int) -> int:
        blocks, rest = divmod(tokens, every)
        if most is not None and blocks >= most:
            return upto(most * every - 1) + (tokens - most * every + 1) * most
        return every * (blocks * (blocks - 1) // 2) + blocks * (rest + 1)

    return upto(past + new) - upto(past)


def linear_params(fan_in: int, fan_out: int, bias: bool = False) -> int:
    """The number of parameters of a linear map."""
    return fan_in * fan_out + (fan_out if bias else 0)


def linear_flops(tokens: int, fan_in: int, fan_out: int) -> int:
    """FLOPs of a (tokens, fan_in) x (fan_in, fan_out) product."""
    return 2 * tokens * fan_in * fan_out
