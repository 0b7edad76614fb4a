"""Counting, without torch: what a layer stores, which (query, key) pairs attention computes, what a matmul costs.

One FLOP convention everywhere: 2 per multiply-add, matrix products only (projections, scores, weighted values, router,
head). Norms, rotations, activations and softmax are not counted, as in Kaplan et al. 2020 (section 2.1) and in torch's
own counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

BLOCK = 256  # queries that attend together where windows end: with more, pairs are wasted, with fewer, calls
Breakdown = Mapping[str, int]  # a total, by the part of the model that it belongs to: "attn", "norm", "routed", ...


def sum_breakdowns(counted: Iterable[tuple[int, Breakdown]]) -> Breakdown:
    """(how many, parts of one) -> the parts of all, added up by name."""
    summed: Counter[str] = Counter()
    for many, parts in counted:
        summed.update({name: many * number for name, number in parts.items()})
    return dict(summed)


@dataclass(frozen=True)
class CacheSpec:
    """What one layer keeps of each token: named streams of (heads, width) numbers, for all tokens or the last `window`.

    The cache allocates from this object and the tables print from it, so the two cannot disagree.
    """

    per_token: tuple[tuple[str, tuple[int, int]], ...]
    window: int | None = None

    def elements(self) -> int:
        """Numbers kept of one token."""
        return sum(prod(shape) for _, shape in self.per_token)

    def tokens(self, context: int) -> int:
        """Tokens kept once `context` of them have been read."""
        return context if self.window is None else min(context, self.window)


def linear_params(fan_in: int, fan_out: int, bias: bool = False) -> int:
    """Parameters of a linear map."""
    return fan_in * fan_out + (fan_out if bias else 0)


def linear_flops(tokens: int, fan_in: int, fan_out: int) -> int:
    """FLOPs of a (tokens, fan_in) x (fan_in, fan_out) product."""
    return 2 * tokens * fan_in * fan_out


def visible_pairs(past: int, new: int, window: int | None = None) -> int:
    """(query, key) pairs that `new` tokens after `past` may look at: token i sees min(i + 1, window) keys."""
    if window is None:
        return new * past + new * (new + 1) // 2
    ramp = min(max(window - past, 0), new)
    return ramp * past + ramp * (ramp + 1) // 2 + (new - ramp) * window


def dense_pairs(past: int, new: int, window: int | None = None) -> int:
    """Pairs a dense masked kernel computes for the same tokens: every query against every key that it is handed.

    A windowed layer is handed the window by a single new token, and by more the keys that each block of them reaches.
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
    """(start, end, first) for each block of `new` queries after `past` keys: queries start to end - 1 reach keys from
    `first` on. The past is handed out whole or not at all, since in a ring it lies in any order."""
    block = min(window, BLOCK)
    for start in range(0, new, block):
        first = past + start + 1 - window
        yield start, min(start + block, new), first if first > past else 0
