"""Cache bytes as a function of the context: its affine pieces, where two models cross, and the context that fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import torch

from zoo.blocks import Layer
from zoo.model.decoder import Decoder


@dataclass(frozen=True)
class Piece:
    """From `start` tokens of context to the next piece, one sequence takes fixed + per_token * context bytes."""

    start: int
    fixed: int
    per_token: int

    def at(self, context: int) -> int:
        """Bytes at this context, which must lie in the piece."""
        return self.fixed + self.per_token * context


@dataclass(frozen=True)
class Change:
    """From `start` tokens to the next change, (bytes of the first model) - (bytes of the second) has this `sign`."""

    start: int
    sign: int


def pieces(spec: Decoder, dtype: torch.dtype) -> list[Piece]:
    """The pieces of a model's cache, the first from 0 tokens. A new piece starts where a window is full."""
    layers = [(cache.elements() * dtype.itemsize, cache.window) for cache in map(Layer.cache_spec, spec.layers)]
    found = []
    for start in sorted({0, *(window for _, window in layers if window is not None)}):
        full = [(size, window) for size, window in layers if window is not None and window <= start]
        per_token = sum(size for size, _ in layers) - sum(size for size, _ in full)
        found.append(Piece(start, sum(size * window for size, window in full), per_token))
    return found


def changes(first: Sequence[Piece], second: Sequence[Piece]) -> list[Change]:
    """Where the smaller of two caches becomes another, from 1 token on: the first change starts at 1."""
    found: list[Change] = []
    starts = sorted({piece.start for piece in (*first, *second)})
    for start, end in zip(starts, [*starts[1:], inf], strict=True):
        a, b = (_piece_at(pieces, start) for pieces in (first, second))
        fixed, slope = a.fixed - b.fixed, a.per_token - b.per_token
        # The sign of fixed + slope * n changes at the first integer that is not below the root, and at the next one.
        roots = {-(fixed // slope), -fixed // slope + 1} if slope else set()
        for n in sorted({max(start, 1), *(root for root in roots if start < root < end)}):
            difference = fixed + slope * n
            sign = (difference > 0) - (difference < 0)
            if not found or found[-1].sign != sign:
                found.append(Change(n, sign))
    return found


def _piece_at(pieces: Sequence[Piece], context: int) -> Piece:
    return max((piece for piece in pieces if piece.start <= context), key=lambda piece: piece.start)


def longest(growth: Sequence[Piece], free: int) -> int | None:
    """The longest context whose cache takes at most `free` bytes: 0 if none fits, None if every context fits."""
    if growth[-1].at(growth[-1].start) <= free:
        last = growth[-1]
        return (free - last.fixed) // last.per_token if last.per_token else None
    for piece, following in reversed(list(pairwise(growth))):
        if piece.at(piece.start) <= free:
            return min((free - piece.fixed) // piece.per_token, following.start - 1)
    return 0
