"""Costs, without torch: cache elements of a layer, (query, key) pairs of attention, FLOPs of matrix products.

One FLOP convention everywhere: 2 per multiply-add, matrix products only (projections, scores, weighted values, router,
head). Norms, rotations, activations and softmax are not counted, as in Kaplan et al. 2020 (section 2.1) and in torch's
own counter.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

BLOCK = 256  # queries per block of sliding-window attention: larger blocks waste pairs, smaller ones need more calls
Breakdown = Mapping[str, int]  # a total by part of the model: "attn", "norm", "routed", ...


def sum_breakdowns(counted: Iterable[tuple[int, Breakdown]]) -> Breakdown:
    """(count, breakdown of one) pairs -> the sum by name."""
    total: Counter[str] = Counter()
    for count, parts in counted:
        total.update({name: count * amount for name, amount in parts.items()})
    return dict(total)


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer: named streams of (heads, width) elements per token, for all tokens or the last `window`.

    The cache is allocated from this object and the tables are printed from it, so the two cannot disagree.
    """

    per_token: tuple[tuple[str, tuple[int, int]], ...]
    window: int | None = None

    def elements(self) -> int:
        """Cache elements per token."""
        return sum(prod(shape) for _, shape in self.per_token)

    def tokens(self, context: int) -> int:
        """Tokens in the cache after `context` tokens."""
        return context if self.window is None else min(context, self.window)


def linear_params(fan_in: int, fan_out: int, bias: bool = False) -> int:
    """Parameters of a linear map."""
    return fan_in * fan_out + (fan_out if bias else 0)


def linear_flops(tokens: int, fan_in: int, fan_out: int) -> int:
    """FLOPs of a (tokens, fan_in) x (fan_in, fan_out) product."""
    return 2 * tokens * fan_in * fan_out


def visible_pairs(past: int, new: int, window: int | None = None) -> int:
    """Unmasked (query, key) pairs of `new` tokens after `past`: token i attends to min(i + 1, window) keys."""
    if window is None:
        return new * past + new * (new + 1) // 2
    ramp = min(max(window - past, 0), new)
    return ramp * past + ramp * (ramp + 1) // 2 + (new - ramp) * window


def dense_pairs(past: int, new: int, window: int | None = None) -> int:
    """Pairs that a dense masked kernel computes for the same tokens: every query with every key that it is given.

    With a window, those are the window for a single new token, else the keys that each block of queries reaches.
    """
    if window is None:
        return new * (past + new)
    held = min(past, window)
    if new == 1:
        return min(held + 1, window)
    if held == 0 and new <= window:
        return new * new
    return sum((end - start) * (held + end - first) for start, end, first in window_blocks(held, new, window))


def window_blocks(past: int, new: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first) of each block of `new` queries after `past` keys: queries start to end - 1 attend to keys
    from `first` on. All past keys or none: in a ring buffer they are in no order."""
    block = min(window, BLOCK)
    for start in range(0, new, block):
        first = past + start + 1 - window
        yield start, min(start + block, new), first if first > past else 0
