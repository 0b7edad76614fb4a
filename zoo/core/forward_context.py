"""Positions, rotary tables and masks of a forward pass. `zoo.core.cache.prepare_forward` computes them once per pass.

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
    """A mask in compact form, for a reach that is not full: the mask is `visible(queries, keys, reach)`.

    `queries` (t,) and `keys` (s,) are positions. The last t keys are the queries' own. At most `reach.limit` keys
    precede them, in any order.
    """

    queries: Tensor
    keys: Tensor
    reach: Reach


Mask = Tensor | ReachMask | None


class CacheView(NamedTuple):
    """The indices that a forward pass writes and reads in all layer caches of equal geometry.

    `write` (w,): the indices at which the last w new tokens are stored. `keys` (s,): the position of each key that is
    read. `mask` (t, s): True where a query sees a key, or a ReachMask if the reach is not full. The mask is None if the
    queries are the last t of the s keys and each query sees all keys up to itself (single-token decode, prefill into an
    empty cache). `so_far`, for a cache with entries: a tensor whose length is the number of all tokens so far, this
    pass included. It is None for a single token over a static cache.
    """

    write: Tensor
    keys: Tensor
    mask: Mask
    so_far: Tensor | None = None


class LayerCache:
    """The base class of a layer's cache of tokens and states. Layer caches of equal `geometry` share a CacheView."""

    geometry: Hashable

    def view(self, positions: Tensor, past: int) -> CacheView:
        """Returns the indices that a pass of tokens at `positions` (t,), after `past` tokens, writes and reads."""
        raise NotImplementedError

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        """Stores the new part of each stream (batch, heads, t, width).

        Returns the streams to attend over, each (batch, heads, s, width), followed by the mask.
        """
        raise TypeError("this layer's cache spec has no streams to append to")

    def append_entries(self, ctx: ForwardContext, name: str, numbers: Tensor, new: Tensor) -> Tensor:
        """Stores `new` entries (batch, heads, n, width) of a stream at their `numbers` (n,).

        `numbers` are block numbers; entries with equal numbers must be equal. Returns the stream (batch, heads, places,
        width), with each block's entry at the block's number. For a single token over a cache that is not static, the
        stream holds only complete blocks. Otherwise it may hold incomplete blocks too, which the caller must mask.
        """
        raise TypeError("this layer's cache spec has no entries")

    def shared(self, x: Tensor, *read: Tensor) -> tuple[Tensor, ...]:
        """Returns the streams that later layers read, given those that `append` returned: (batch, heads, places,
        width).

        The first s places are the keys of the view. `x` (b, t, ...) is any tensor of the pass.
        """
        return read

    def resizable(self) -> list[Tensor]:
        """Returns the streams (batch, heads, places, width) whose number of places may equal another size by chance."""
        return []

    def state(self, name: str, x: Tensor) -> Tensor:
        """Returns the state of this name, (batch, *shape), after all earlier tokens; zeros before the first token.

        `x` is any tensor of the pass whose first axis is the batch.
        """
        raise NotImplementedError

    def set_state(self, name: str, value: Tensor) -> None:
        """Stores the state for the next pass."""


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

    `routing`: the list to which routers add their RouterOutput; None if nothing is recorded. `shared`: tensors from
    earlier layers, by key. `handed_on`: the dict in which this layer puts tensors for later layers; if None, it puts
    them in `shared`. `layer_input` (b, t, width): this layer's own input (zoo.blocks.per_layer). `tokens` (b, t): the
    token ids, in layers that read them (zoo.blocks.routers).
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


# Routers record into the last list, if there is any.
recordings: list[list[RouterOutput]] = []  # torch's compiler guards a list, but not a ContextVar or a local


@contextmanager
def recorded_routing() -> Iterator[list[RouterOutput]]:
    """Records the RouterOutput of every router that runs inside the `with` statement, in the order of execution.

    The logits have gradients if the pass has gradients. In nested `with` statements, only the innermost records. The
    recording belongs to the process: threads that run models at the same time share it.
    """
    recordings.append([])
    try:
        yield recordings[-1]
    finally:
        recordings.pop()


def keep(kept: dict[K, Tensor], key: K, compute: Callable[[], Tensor]) -> Tensor:
    """Returns compute() and stores it in `kept` for later passes, with or without gradients. A tensor that a compiler
    or torch.export traces has no values and is not stored."""
    with torch.inference_mode(False):
        value = compute()
    if type(value) is Tensor and not torch.compiler.is_compiling() and not torch.is_inference(value):
        kept[key] = value
    return value


def block_count(new: int, every: int) -> int:
    """Returns an upper bound on the number of blocks of `every` tokens that `new` consecutive tokens touch.

    The bound is valid for any first position. For several tokens it is one more than needed: with a single block after
    the first, the compiler would specialise on that number.
    """
    return (new + every - 2) // every + 2 if new > 1 else 1


def blocks_of(positions: Tensor, every: int) -> Tensor:
    """Returns the numbers of the blocks of `every` tokens that contain the consecutive `positions` (t,).

    The result has `block_count(t, every)` numbers: if there are fewer blocks, the last number repeats. No shape
    therefore depends on the positions.
    """
    first, last = positions[:1] // every, positions[-1:] // every
    return torch.minimum(first + torch.arange(block_count(len(positions), every), device=positions.device), last)


def causal(new: int, stored: int, device: torch.device) -> Tensor:
    """Returns the causal mask (t, s) for queries that are the last t = `new` of s = `stored` tokens."""
    return torch.ones(new, stored, dtype=torch.bool, device=device).tril(stored - new)


def visible(queries: Tensor, keys: Tensor, reach: Reach = Full()) -> Tensor:
    """Returns the mask (t, s) for the positions of queries (t,) and keys (s,): True where a query sees a key.

    A key at a negative position is an empty place.
    """
    seen: Tensor = reach.sees(queries[:, None], keys) & (keys >= 0)
    return seen


def whole_mask(mask: Mask, new: int, stored: int, device: torch.device) -> Tensor:
    """Returns any mask as a tensor (..., t, s). The queries are the last t = `new` of s = `stored` tokens."""
    if mask is None:
        return causal(new, stored, device)
    return visible(*mask) if isinstance(mask, ReachMask) else mask
