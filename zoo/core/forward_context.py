"""Positions, rotary tables and masks of a forward pass, computed once (zoo.core.cache: `prepare_forward`).

Layers look them up in the `ForwardContext`. Masks follow from positions alone, so ring buffers, chunked prefill and
single-token decode need no masks of their own. Inside `recorded_routing()`, routers add their logits to the context.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from zoo.costs import Full, Reach

K = TypeVar("K", bound=Hashable)


class ReachMask(NamedTuple):
    """The mask `visible(queries, keys, reach)` of a reach that is not full, given by its positions.

    The queries (t,) are the last t of the keys (s,). The keys before them, at most `reach.limit`, are in any order.
    """

    queries: Tensor
    keys: Tensor
    reach: Reach


Mask = Tensor | ReachMask | None


class CacheView(NamedTuple):
    """The places that a forward pass writes and reads in every layer cache of one geometry.

    `write` (w,): the indices at which the last w new tokens are stored. `keys` (s,): the position of each key that is
    read. `mask` (t, s): True where a query sees a key, or a ReachMask if the reach is not full. None if each query sees
    all keys up to itself and the queries are the last t of the s keys (single-token decode, prefill into an empty
    cache). `so_far`, for a cache with entries: a tensor with the length of all tokens so far, this pass included; None
    for a single token over a static cache.
    """

    write: Tensor
    keys: Tensor
    mask: Mask
    so_far: Tensor | None = None


class LayerCache:
    """The store of one layer's tokens and states. Layer caches of equal `geometry` share one CacheView."""

    geometry: Hashable

    def view(self, positions: Tensor, past: int) -> CacheView:
        """Returns the places that a pass of tokens at `positions` (t,), after `past` tokens, writes and reads."""
        raise NotImplementedError

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        """Stores the new part of each stream (batch, heads, t, width).

        Returns the streams to attend over, each (batch, heads, s, width), and last the mask.
        """
        raise TypeError("this layer's cache spec has no streams to append to")

    def append_entries(self, ctx: ForwardContext, name: str, numbers: Tensor, new: Tensor) -> Tensor:
        """Stores `new` entries (batch, heads, n, width) of a stream at their `numbers` (n,).

        Entries with equal numbers are equal.
        Returns the stream (batch, heads, places, width) with each block's entry at the block's number. For a single
        token and a cache that is not static, it holds only complete entries. Otherwise each token sees only the entries
        of blocks that are complete, its own token included.
        """
        raise TypeError("this layer's cache spec has no entries")

    def shared(self, x: Tensor, *read: Tensor) -> tuple[Tensor, ...]:
        """Returns the streams of `append` as later layers read them, (batch, heads, places, width).

        The first s places are the keys of the view. `x` (b, t, ...) is any tensor of the pass.
        """
        return read

    def resizable(self) -> list[Tensor]:
        """Returns the streams (batch, heads, places, width) whose places may equal another size by chance."""
        return []

    def state(self, name: str, x: Tensor) -> Tensor:
        """Returns the state of this name (batch, *shape) after the tokens so far; zeros before the first token.

        `x` is any tensor of the pass whose first axis is the batch.
        """
        raise NotImplementedError

    def set_state(self, name: str, value: Tensor) -> None:
        """Keeps the state for the next pass."""


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

    `routing`: the list to which routers add their RouterOutput; None without a recording. `shared`: tensors from
    earlier layers, by key. `handed_on`: the dict for this layer's own tensors; if None, they go to `shared`.
    `layer_input` (b, t, width): this layer's own input (zoo.blocks.per_layer). `tokens` (b, t): the token ids, in
    layers that read them (zoo.blocks.routers).
    """

    positions: Tensor
    tables: dict[tuple[Any, int], Any]
    views: dict[Hashable, CacheView]
    routing: list[RouterOutput] | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)
    handed_on: dict[Hashable, Any] | None = None
    layer_input: Tensor | None = None
    tokens: Tensor | None = None

    def hand_on(self, key: Hashable, value: Any) -> None:
        """Gives tensors, or None, to later layers, under a key that the mixer's spec lists in `hands_on`."""
        (self.shared if self.handed_on is None else self.handed_on)[key] = value


# Routers record into the last recording, if there is one.
recordings: list[list[RouterOutput]] = []  # torch's compiler guards a list, but not a ContextVar or a local


@contextmanager
def recorded_routing() -> Iterator[list[RouterOutput]]:
    """Records the RouterOutput of each router of every model that runs inside the `with`, by pass and by layer.

    The logits have gradients if the pass has. In nested `with` statements, the innermost one records. The recording
    belongs to the process: threads that run models at the same time share it.
    """
    recordings.append([])
    try:
        yield recordings[-1]
    finally:
        recordings.pop()


def keep(kept: dict[K, Tensor], key: K, compute: Callable[[], Tensor]) -> Tensor:
    """Computes a tensor and stores it in `kept` for later passes, with or without gradients. A tensor that a compiler
    or torch.export traces has no values and is not stored."""
    with torch.inference_mode(False):
        value = compute()
    if type(value) is Tensor and not torch.compiler.is_compiling() and not torch.is_inference(value):
        kept[key] = value
    return value


def block_count(new: int, every: int) -> int:
    """An upper bound on the blocks of `every` tokens that `new` consecutive tokens touch, for any first position.

    It is one higher for several tokens: the blocks after the first are then never a single one, which the compiler
    would specialise on.
    """
    return (new + every - 2) // every + 2 if new > 1 else 1


def blocks_of(positions: Tensor, every: int) -> Tensor:
    """Returns the numbers of the blocks of `every` tokens that contain the consecutive `positions` (t,).

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


def whole_mask(mask: Mask, new: int, stored: int, device: torch.device) -> Tensor:
    """Returns a mask of the last `new` of `stored` tokens as a tensor (..., t, s)."""
    if mask is None:
        return causal(new, stored, device)
    return visible(*mask) if isinstance(mask, ReachMask) else mask
