"""Positions, rotary tables and masks, computed once per forward pass.

Layers only look them up in the `ForwardContext`. Masks follow from positions alone, so ring buffers, chunked prefill
and single-token decode need no special cases.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class SlidingWindowMask(NamedTuple):
    """Who sees whom where windows end, as the positions it follows from. The queries (t,) are the last of the keys
    (s,); the keys before them lie in any order and are at most `window`."""

    queries: Tensor
    keys: Tensor
    window: int


Mask = Tensor | SlidingWindowMask | None


class CacheView(NamedTuple):
    """What a pass reads and writes in slots of one geometry.

    `write` (w,): indices the last w new tokens are stored at. `keys` (s,): the position of each key that is read.
    `mask` (t, s): True where a query sees a key; None where each query sees all keys up to itself and the queries are
    the last t of the s keys (single-token decode, or prefill into an empty cache); a SlidingWindowMask for windows.
    """

    write: Tensor
    keys: Tensor
    mask: Mask


class Planner(Protocol):
    """A slot, as far as planning sees it. Slots of one geometry share a view."""

    @property
    def geometry(self) -> Hashable: ...
    def view(self, positions: Tensor, past: int) -> CacheView: ...


@dataclass(frozen=True)
class ForwardContext:
    """A planned pass: `tables` by (rotary spec, width), `views` by slot geometry."""

    tables: dict[tuple[Any, int], tuple[Tensor, Tensor] | None]
    views: dict[Hashable, CacheView]


def prepare_forward(
    past: int,
    new: int,
    rotary: Iterable[tuple[Any, int]],
    slots: Iterable[Planner],
    device: torch.device | None = None,
) -> ForwardContext:
    """Plan a pass of `new` tokens after `past`, for layers that need tables of these (position encoding, width) pairs
    and keep their tokens in these `slots`."""
    return prepare_forward_at(torch.arange(past, past + new, device=device), past, rotary, slots)


def prepare_forward_at(
    positions: Tensor, past: int, rotary: Iterable[tuple[Any, int]], slots: Iterable[Planner]
) -> ForwardContext:
    """The same for tokens at `positions` (t,). A lone token in static slots is planned from these alone, not `past`."""
    views: dict[Hashable, CacheView] = {}
    for slot in slots:
        if slot.geometry not in views:
            views[slot.geometry] = slot.view(positions, past)
    return ForwardContext({(rope, width): rope.table(positions, width) for rope, width in rotary}, views)


def visible(queries: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
    """(t,) and (s,) positions -> (t, s), True where the query sees the key: not after it, and in a window of `window`
    tokens that includes the query itself. A key at position -1 is an empty place that nobody sees."""
    seen = (keys <= queries[:, None]) & (keys >= 0)
    return seen if window is None else seen & (keys > queries[:, None] - window)
