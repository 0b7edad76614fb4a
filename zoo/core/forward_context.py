"""Positions, rotary tables and masks, computed once per forward pass.

Layers look them up in the `ForwardContext`. Masks follow from positions alone, so ring buffers, chunked prefill and
single-token decode need no masks of their own. Inside `recorded_routing()`, routers add their logits to the context.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.core.float32 import upcast_dtype
from zoo.costs import Full, Reach


class ReachMask(NamedTuple):
    """The mask `visible(queries, keys, reach)` of a window or chunk, stored as positions instead of in full.

    The queries (t,) are the last t of the keys (s,). The keys before them, at most `reach.limit`, are in any order.
    """

    queries: Tensor
    keys: Tensor
    reach: Reach


Mask = Tensor | ReachMask | None


class CacheView(NamedTuple):
    """The places that a forward pass writes and reads in every layer cache of one geometry.

    `write` (w,): the indices at which the last w new tokens are stored. `keys` (s,): the position of each key that is
    read. `mask` (t, s): True where a query sees a key; a ReachMask for windows and chunks. None: each query sees all
    keys up to itself and the queries are the last t of the s keys (single-token decode, prefill into an empty cache).
    `so_far`, for caches with entries: a tensor as long as all tokens so far, those of the pass included; None for a
    single token over a static cache.
    """

    write: Tensor
    keys: Tensor
    mask: Mask
    so_far: Tensor | None = None


class LayerCache(Protocol):
    """The store of one layer's tokens and states."""

    @property
    def geometry(self) -> Hashable:
        """Layer caches of equal geometry share one CacheView."""
        ...

    def view(self, positions: Tensor, past: int) -> CacheView:
        """Returns the places that a pass of tokens at `positions` (t,), after `past` tokens, writes and reads."""
        ...

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        """Stores the new part of each stream (batch, heads, t, width).

        Returns the streams to attend over, each (batch, heads, s, width), and last the mask.
        """
        ...

    def append_entries(self, ctx: ForwardContext, name: str, numbers: Tensor, new: Tensor) -> Tensor:
        """Stores `new` entries (batch, heads, n, width) of a stream at their `numbers` (n,).

        Entries with equal numbers are equal.
        Returns the stream (batch, heads, places, width) with each block's entry at the block's number. For a single
        token and a cache that is not static, it holds only complete entries. Otherwise each token sees only the entries
        of blocks that are complete with it.
        """
        ...

    def shared(self, x: Tensor, *read: Tensor) -> tuple[Tensor, ...]:
        """Returns the streams of `append` as later layers read them, (batch, heads, places, width).

        The first s places are the keys of the view. `x` (b, t, ...) is any tensor of the pass.
        """
        ...

    def state(self, name: str, x: Tensor) -> Tensor:
        """Returns the state of this name (batch, *shape) after the tokens so far; zeros before the first token.

        `x` is any tensor of the pass whose first axis is the batch.
        """
        ...

    def set_state(self, name: str, value: Tensor) -> None:
        """Keeps the state for the next pass."""
        ...


class RouterOutput(NamedTuple):
    """A router's result for each token: its `logits` (b, t, experts) and the ids of the `chosen` experts (b, t, k).

    The logits are in float32, before softmax, sigmoid and any correction.
    """

    logits: Tensor
    chosen: Tensor

    def counts(self) -> Tensor:
        """Counts the tokens of each expert: (experts,) int64."""
        ids = self.chosen.flatten()
        counts = torch.zeros(self.logits.shape[-1], dtype=torch.long, device=ids.device)
        return counts.scatter_add_(0, ids, torch.ones_like(ids))


@dataclass(frozen=True)
class ForwardContext:
    """Values that the layers of a forward pass look up.

    `positions` (t,): the positions of the pass's tokens. `tables`: by (spec, width). `views`: by cache geometry.
    `routing`: the list to which routers add their RouterOutput; None unless it is recorded. `shared`: values from
    earlier layers, by name. `handed_on`: receives this layer's values instead, if a compiled function returns them.
    `layer_input` (b, t, width): an input computed for this layer alone (zoo.blocks.per_layer). `tokens` (b, t): the
    token ids, in layers that read them (zoo.blocks.hash_router).
    """

    positions: Tensor
    tables: dict[tuple[Any, int], Any]
    views: dict[Hashable, CacheView]
    routing: list[RouterOutput] | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    handed_on: dict[str, Any] | None = None
    layer_input: Tensor | None = None
    tokens: Tensor | None = None

    def hand_on(self, name: str, value: Any) -> None:
        """Passes tensors, or None, to later layers under a name that the mixer's spec lists in `hands_on`."""
        (self.shared if self.handed_on is None else self.handed_on)[name] = value


_recordings: list[list[RouterOutput]] = []  # a list, because torch's compiler guards neither a ContextVar nor a local


@contextmanager
def recorded_routing() -> Iterator[list[RouterOutput]]:
    """Records the RouterOutput of each router of every model that runs inside the `with`, by pass and by layer.

    The logits have gradients if the pass has. Of nested `with` statements, the innermost records. The recording belongs
    to the process: threads that run models at the same time share it.
    """
    _recordings.append([])
    try:
        yield _recordings[-1]
    finally:
        _recordings.pop()


def current_recording() -> list[RouterOutput] | None:
    """Returns the list of the innermost `recorded_routing()`; None outside."""
    return _recordings[-1] if _recordings else None


def prepare_forward(
    past: int,
    new: int,
    tables: Iterable[tuple[Any, int]],
    layer_caches: Iterable[LayerCache],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> ForwardContext:
    """Returns the context of a forward pass of `new` tokens after `past`.

    Its layers look up the `tables` of these (spec, width) pairs and keep their tokens in these `layer_caches`. Tables
    are in float32, or in float64 for a model of that `dtype`.
    """
    return prepare_forward_at(torch.arange(past, past + new, device=device), past, tables, layer_caches, dtype)


def prepare_forward_at(
    positions: Tensor,
    past: int,
    tables: Iterable[tuple[Any, int]],
    layer_caches: Iterable[LayerCache],
    dtype: torch.dtype = torch.float32,
) -> ForwardContext:
    """Returns the context of a forward pass of tokens at `positions` (t,), after `past` tokens.

    For a single token over static caches it depends on `positions` alone, not on `past`.
    """
    views: dict[Hashable, CacheView] = {}
    for layer_cache in layer_caches:
        if layer_cache.geometry not in views:
            views[layer_cache.geometry] = layer_cache.view(positions, past)
    exact = upcast_dtype(dtype)
    computed = {(spec, width): spec.table(positions, width, exact) for spec, width in tables}
    return ForwardContext(positions, computed, views)


def block_count(new: int, every: int) -> int:
    """An upper bound on the blocks of `every` tokens that `new` consecutive tokens touch, for any first position.

    It is one higher for several tokens: the blocks after the first are then never a single one, which the compiler
    would specialise on.
    """
    return (new + every - 2) // every + 2 if new > 1 else 1


def blocks_of(positions: Tensor, every: int) -> Tensor:
    """Returns the numbers of the blocks of `every` tokens that tokens at consecutive `positions` (t,) lie in.

    There are `block_count(t, every)` numbers: the last one repeats if there are fewer blocks, so that no shape depends
    on the positions.
    """
    first, last = positions[:1] // every, positions[-1:] // every
    return torch.minimum(first + torch.arange(block_count(len(positions), every), device=positions.device), last)


def causal(new: int, stored: int, device: torch.device) -> Tensor:
    """Returns the causal mask (t, s) of the last t = `new` of s = `stored` tokens."""
    return torch.ones(new, stored, dtype=torch.bool, device=device).tril(stored - new)


def visible(queries: Tensor, keys: Tensor, reach: Reach = Full()) -> Tensor:
    """Returns the mask (t, s) for positions of queries (t,) and keys (s,): True where the query sees the key.

    A key at a negative position is an empty place.
    """
    seen: Tensor = reach.sees(queries[:, None], keys) & (keys >= 0)
    return seen
