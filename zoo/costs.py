"""Computes costs without torch: a layer's cache contents, (query, key) pairs of attention, FLOPs of matrix products.

One FLOP convention everywhere: 2 per multiply-add, matrix products only (projections, scores, weighted values, router,
head). Norms, rotations, activations and softmax are not counted, as in Kaplan et al. 2020 (section 2.1) and in torch's
own counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm, prod
from typing import Any, ClassVar, Self

from zoo.classes import add_kind
from zoo.errors import SpecError

BLOCK = 256  # queries per block of sliding-window attention: larger blocks waste pairs, smaller blocks need more calls
Bytes = int | Fraction  # a 4-bit element has Fraction(1, 2)
Breakdown = Mapping[str, int]  # part of the model -> its amount: "attn", "norm", "routed", ...


def sum_breakdowns(counted: Iterable[tuple[int, Breakdown]]) -> Breakdown:
    """Returns the sum of the breakdowns in (count, breakdown) pairs, part by part; each counts `count` times."""
    total: Counter[str] = Counter()
    for count, parts in counted:
        total.update({name: count * amount for name, amount in parts.items()})
    return dict(total)


@dataclass(frozen=True)
class Reach:
    """The rule for which earlier tokens a token attends to. The mask, the cached tokens, the (query, key) pairs in
    FLOPs, descriptions, colours in diagrams and the published name all follow from it.

    Three numbers define it. A token can see the tokens from the last multiple of `period` (None: from the first token)
    up to itself, but at most the last `limit` tokens (None: no limit). Of these it sees every `stride`-th, counted back
    from itself. Each subclass is a kind of reach. Its fields are integers, so that operators of compiled code can take
    a reach as the name of its class and a list of integers.
    """

    kinds: ClassVar[dict[str, type[Reach]]] = {}
    name: ClassVar[str] = ""  # in descriptions, legends and style classes, such as window
    layer_type: ClassVar[str] = ""  # its name in `layer_types` of a published config.json
    size_field: ClassVar[str] = ""  # the field for its limit in a published config.json
    colours: ClassVar[tuple[str, str]] = ("#6f7f1f", "#a9bb45")  # of its layers in diagrams: light theme, dark theme

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        add_kind(Reach.kinds, cls)

    def __post_init__(self) -> None:
        if self.period and self.limit and self.period % self.limit:  # index 0 of a ring buffer starts a period
            raise SpecError(f"{type(self).__name__}: limit={self.limit} must divide period={self.period}")

    @property
    def period(self) -> int | None:
        """The length of a stretch, in tokens: a token sees only its own stretch. None: all tokens are one stretch."""
        return None

    @property
    def limit(self) -> int | None:
        """The maximum number of tokens that a cache keeps; None: no limit."""
        return None

    @property
    def stride(self) -> int:
        """The distance between visible tokens; 1: all are visible."""
        return 1

    @property
    def is_full(self) -> bool:
        """Whether a token sees all earlier tokens."""
        return self.period is None and self.limit is None and self.stride == 1

    @property
    def arguments(self) -> tuple[str, list[int]]:
        """The class name and the fields, as operators of compiled code take them; `reach_of` is the inverse."""
        names: tuple[str, ...] = self.__match_args__
        return type(self).__name__, [getattr(self, name) for name in names]

    def bounded(self, size: int) -> Self:
        """Returns this kind of reach over `size` tokens, or itself if it has no limit."""
        changes: dict[str, Any] = {"size": size}
        return self if self.limit is None else replace(self, **changes)

    def sees(self, query: Any, key: Any) -> Any:
        """Whether the token at position `query` attends to the token at `key`: integers, or tensors that broadcast."""
        seen = key <= query
        if self.period is not None:
            seen = seen & (key // self.period == query // self.period)
        if self.limit is not None and self.limit != self.period:
            seen = seen & (key > query - self.limit)
        return seen & ((query - key) % self.stride == 0) if self.stride > 1 else seen

    def seen(self, context: int) -> int:
        """The number of tokens that the last of `context` tokens sees, itself included."""
        return seen_tokens(context, self.period, self.limit, self.stride)

    def held(self, past: int) -> int:
        """The number of cached tokens that the token after `past` tokens may attend to: the first in a ring buffer."""
        return self.tokens(past if self.period is None else past % self.period)

    def visible(self, past: int) -> int:
        """The number of cached tokens that the token after `past` tokens attends to."""
        return self.seen(past + 1) - 1

    def tokens(self, context: int) -> int:
        """The number of tokens in a cache after `context` tokens."""
        return context if self.limit is None else min(context, self.limit)

    def pairs(self, past: int, new: int) -> int:
        """The number of visible (query, key) pairs of `new` tokens after `past` tokens. Each token sees itself too."""
        return self._pairs_of_first(past + new) - self._pairs_of_first(past)

    def _pairs_of_first(self, count: int) -> int:
        if self.period is None:
            return self._pairs_in_stretch(count)
        whole = count // self.period * self._pairs_in_stretch(self.period)
        return whole + self._pairs_in_stretch(count % self.period)

    def _pairs_in_stretch(self, count: int) -> int:
        """Visible pairs of a stretch's first `count` tokens: every `stride` tokens, one more is seen, up to the
        limit."""
        growing = self.tokens(count)
        steps, rest = growing // self.stride, growing % self.stride  # divmod is not compiled
        growth = self.stride * (steps * (steps + 1) // 2) + rest * (steps + 1)
        return growth + (count - growing) * -(-growing // self.stride)

    def dense_pairs(self, past: int, new: int) -> int:
        """The number of (query, key) pairs that a dense masked kernel computes: all queries and keys of each block."""
        held = self.held(past)
        if new == 1:
            return self.tokens(held + 1)
        return sum((end - start) * (held + end - first) for start, end, first in self.blocks(held, new))

    def blocks(self, held: int, new: int) -> Iterator[tuple[int, int, int]]:
        """Yields (start, end, first) for each block of `new` queries after `held` cached keys. Queries start to end - 1
        take the keys from index `first` to their last own key. `first` is 0 if cached keys are in reach."""
        yield 0, new, 0

    def describe(self) -> str:
        """Returns the reach in words: full, window 512, chunk 8192."""
        return " ".join([self.name, *map(str, self.arguments[1])])

    def clause(self) -> str:
        """Returns the tokens that a layer sees, worded to complete "every layer sees"."""
        return f"tokens by {self.describe()}"


def reach_of(kind: str, numbers: Sequence[int]) -> Reach:
    """Returns the reach of the class named `kind`, with `numbers` as its fields."""
    return Reach.kinds[kind](*numbers)


def seen_tokens(context: int, period: int | None, limit: int | None, stride: int) -> int:
    """The number of tokens that the last of `context` tokens sees, itself included, by a Reach's three numbers."""
    in_stretch = context if period is None else (context - 1) % period + 1
    return -(-(in_stretch if limit is None else min(in_stretch, limit)) // stride)


@dataclass(frozen=True)
class Full(Reach):
    """Full causal attention: every earlier token."""

    name = "full"
    layer_type = "full_attention"
    colours = ("#3d5f94", "#7f9fd2")

    def clause(self) -> str:
        return "all tokens"


@dataclass(frozen=True)
class Window(Reach):
    """A sliding window over the last `size` tokens, including the token itself: token i attends to min(i + 1, size)
    keys (Mistral 7B, section 2)."""

    size: int

    name = "window"
    layer_type = "sliding_attention"
    size_field = "sliding_window"
    colours = ("#16a0a4", "#2fb0b5")

    @property
    def limit(self) -> int | None:
        return self.size

    def blocks(self, held: int, new: int) -> Iterator[tuple[int, int, int]]:
        if held == 0 and new <= self.size:
            yield 0, new, 0
            return
        block = min(self.size, BLOCK)
        for start in range(0, new, block):
            first = held + start + 1 - self.size  # reads all cached keys or none: a ring does not keep their order
            yield start, min(start + block, new), first if first > held else 0

    def clause(self) -> str:
        return f"the last {self.size:,} tokens"


@dataclass(frozen=True)
class Chunk(Reach):
    """The earlier tokens of a token's own chunk: positions are cut into chunks of `size`, and the first token of a
    chunk sees only itself (Llama 4)."""

    size: int

    name = "chunk"
    layer_type = "chunked_attention"
    colours = ("#83d2d4", "#1d6c70")

    @property
    def period(self) -> int | None:
        return self.size

    @property
    def limit(self) -> int | None:
        return self.size

    def blocks(self, held: int, new: int) -> Iterator[tuple[int, int, int]]:
        start, end = 0, min(self.size - held, new)
        yield start, end, 0
        while end < new:
            start, end = end, min(end + self.size, new)
            yield start, end, held + start

    def clause(self) -> str:
        return f"their chunk of {self.size:,} tokens"


@dataclass(frozen=True)
class State:
    """A cached tensor with a size that does not depend on the number of tokens. `shape` is its shape for one sequence.
    States that sum over many tokens are in float32 (`in_float32`), whatever the model's dtype."""

    name: str
    shape: tuple[int, ...]
    in_float32: bool = False

    def nbytes(self, itemsize: Bytes) -> Bytes:
        """The bytes of the state of one sequence, in a model whose elements take `itemsize` bytes."""
        return prod(self.shape) * (max(4, itemsize) if self.in_float32 else itemsize)


@dataclass(frozen=True)
class Entries:
    """A cached stream with one entry of (heads, width) elements for each block of `every` tokens, for the whole context
    (DeepSeek-V4, section 2.3). The last block has an entry even while it is incomplete."""

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
    size, and streams with one entry per block of tokens.

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
        """The number of tokens after which the cache's growth repeats: the least common multiple of block sizes."""
        return lcm(*(each.every for each in self.entries))

    def tokens(self, context: int) -> int:
        """The number of tokens in the cache after `context` tokens: 0 without per-token streams."""
        return self.reach.tokens(context) if self.per_token else 0

    def state_bytes(self, itemsize: Bytes) -> Bytes:
        """Bytes of the states, in a model whose elements take `itemsize` bytes."""
        return sum(state.nbytes(itemsize) for state in self.state)

    def nbytes(self, context: int, itemsize: Bytes) -> Bytes:
        """Bytes of one sequence's cache for `context` tokens."""
        streams = self.elements() * self.tokens(context) + sum(e.elements * e.count(context) for e in self.entries)
        return streams * itemsize + self.state_bytes(itemsize)

    def read_bytes(self, past: int, new: int, itemsize: Bytes) -> Bytes:
        """Bytes of one sequence's cache that a pass of `new` tokens after `past` reads, each once: the entries of
        earlier tokens that the first new token can see, and the states. Sparse attention counts as dense."""
        seen = self.reach.visible(past) if self.per_token else 0
        entries = sum(each.elements * (past // each.every) for each in self.entries)
        return (self.elements() * seen + entries) * itemsize + (self.state_bytes(itemsize) if past else 0)

    def written_bytes(self, past: int, new: int, itemsize: Bytes) -> Bytes:
        """Bytes of one sequence's cache that a pass of `new` tokens after `past` writes: the entries of new tokens that
        are kept, entries of several tokens that begin or grow, and the states."""
        kept = self.reach.tokens(new) if self.per_token else 0
        entries = sum(each.elements * (each.count(past + new) - past // each.every) for each in self.entries)
        return (self.elements() * kept + entries) * itemsize + self.state_bytes(itemsize)

    def growth(self, itemsize: Bytes) -> tuple[Bytes, Fraction]:
        """Returns (fixed bytes, bytes per token) of one sequence's cache. They are exact once every window is full; if
        there are entries, only at multiples of `block` tokens."""
        per_token = self.elements() * itemsize
        limit = self.reach.limit
        fixed = self.state_bytes(itemsize) + per_token * (limit or 0)
        return fixed, self.entry_growth(itemsize) + (per_token if limit is None else 0)

    def entry_growth(self, itemsize: Bytes) -> Fraction:
        """Bytes per token of the entries, exact at multiples of `block` tokens."""
        return sum((Fraction(each.elements * itemsize, each.every) for each in self.entries), Fraction())

    @property
    def geometry(self) -> tuple[Hashable, ...]:
        """The key that determines where tokens lie in the cache: caches with equal keys share positions and masks. It
        consists of strings and integers, which compiled code can look up."""
        kind, numbers = self.reach.arguments
        return kind, *numbers, "entries", *(each.every for each in self.entries)

    def describe(self) -> str:
        """Returns a short description of the visible tokens: full, window 512, window 128 + 1/4 (one entry per four
        tokens)."""
        steps = dict.fromkeys(each.every for each in self.entries)
        return " + ".join([self.reach.describe(), *(f"1/{every}" for every in steps)])


def whole(number: Bytes) -> int | float:
    """Returns the number as an int if it is whole, else as a float."""
    return number.numerator if number.denominator == 1 else float(number)


def entry_pairs(past: int, new: int, every: int, most: int | None = None) -> int:
    """The number of (query, entry) pairs of `new` tokens after `past`. Each block of `every` tokens has one entry.
    A token sees the entries of all blocks that end at it or before it; with `most`, at most that many."""

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
