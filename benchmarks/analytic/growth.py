"""How a cache grows with the context, exactly: affine pieces, where two models cross, and what fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import torch

from zoo.model.decoder import Decoder


@dataclass(frozen=True)
class Piece:
    """From `start` tokens of context on, until the next piece, one sequence takes fixed + per_token * context bytes."""

    start: int
    fixed: int
    per_token: int

    def at(self, context: int) -> int:
        """Bytes at this context, which must lie in the piece."""
        return self.fixed + self.per_token * context


@dataclass(frozen=True)
class Change:
    """From `start` tokens on, until the next change, the first model's bytes less the second's have this `sign`."""

    start: int
    sign: int


def pieces(spec: Decoder, dtype: torch.dtype) -> list[Piece]:
    """The pieces of a model's cache, the first from 0 tokens: each window that fills ends one."""
    layers = [layer.cache_spec() for layer in spec.layers]
    starts = sorted({0, *(layer.window for layer in layers if layer.window is not None)})
    return [_piece(start, [(each.elements() * dtype.itemsize, each.window) for each in layers]) for start in starts]


def _piece(start: int, layers: Sequence[tuple[int, int | None]]) -> Piece:
    full = [(size, window) for size, window in layers if window is not None and window <= start]
    growing = sum(size for size, _ in layers) - sum(size for size, _ in full)
    return Piece(start, sum(size * window for size, window in full), growing)


def changes(first: Sequence[Piece], second: Sequence[Piece]) -> list[Change]:
    """Which of two caches is the smaller, from 1 token on: the first change starts at 1."""
    found: list[Change] = []
    spans = list(_together(first, second))
    for (start, a, b), end in zip(spans, [*(start for start, _, _ in spans[1:]), inf], strict=True):
        fixed, slope = a.fixed - b.fixed, a.per_token - b.per_token
        # fixed + slope * n changes its sign at the first integer from its root on, and at the first one after it.
        roots = {-(fixed // slope), -fixed // slope + 1} if slope else set()
        for n in sorted({max(start, 1), *(root for root in roots if start < root < end)}):
            difference = fixed + slope * n
            sign = (difference > 0) - (difference < 0)
            if not found or found[-1].sign != sign:
                found.append(Change(n, sign))
    return found


def _together(first: Sequence[Piece], second: Sequence[Piece]) -> Iterator[tuple[int, Piece, Piece]]:
    """(start, piece of the first, piece of the second) wherever either begins a new one."""

    def holding(pieces: Sequence[Piece], start: int) -> Piece:
        return max((piece for piece in pieces if piece.start <= start), key=lambda piece: piece.start)

    for start in sorted({piece.start for piece in (*first, *second)}):
        yield start, holding(first, start), holding(second, start)


def longest(growth: Sequence[Piece], free: int) -> int | None:
    """The longest context whose cache takes at most `free` bytes: 0 if none does, None if every one does."""
    if growth[-1].at(growth[-1].start) <= free:
        last = growth[-1]
        return (free - last.fixed) // last.per_token if last.per_token else None
    for piece, following in reversed(list(pairwise(growth))):
        if piece.at(piece.start) <= free:
            return min((free - piece.fixed) // piece.per_token, following.start - 1)
    return 0
