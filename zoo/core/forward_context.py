"""Positions, rotary tables and masks of a forward pass, computed once (zoo.core.cache: `prepare_forward`).

Layers look them up in the `ForwardContext`. Masks follow from positions alone, so ring buffers, chunked prefill and
single-token decode need no masks of their own. Routers hand their logits out through it, inside `recorded_routing()`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from zoo.costs import Full, Reach

K = TypeVar("K", bound=Hashable)


class ReachMask(NamedTuple):
    """The mask `visible(queries, keys, reach)` of a reach that is not full, as the positions that it follows from.

    The queries (t,) are the last t of the keys (s,); the keys before them, at most `reach.limit`, are in any order.
    """

    queries: Tensor
    keys: Tensor
    reach: Reach


Mask = Tensor | ReachMask | None


class CacheView(NamedTuple):
    """What a forward pass writes and reads in every layer cache of one geometry.

    `write` (w,): the indices at which the last w new tokens are stored. `keys` (s,): the position of each key that is
    read. `mask` (t, s): True where a query sees a key; a ReachMask where the reach is not full; None where each query
    sees all keys up to itself and the queries are the last t of the s keys (single-token decode, prefill into an empty
    cache). `so_far`, where the cache has entries: a tensor as long as the tokens so far, those of the pass included;
    None for a single token over a static cache.
    """

    write: Tensor
    keys: Tensor
    mask: Mask
    so_far: Tensor | None = None


class LayerCache(Protocol):
    """Where one layer keeps its tokens and its states."""

    @property
    def geometry(self) -> Hashable:
        """Layer caches of equal geometry share one CacheView."""
        ...

    def view(self, positions: Tensor, past: int) -> CacheView:
        """What a forward pass of tokens at `positions` (t,), after `past` tokens, writes and reads."""
        ...

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        """Store the new part of each stream (batch, heads, t, width) -> the streams to attend over, each (batch, heads,
        s, width), and last the mask."""
        ...

    def append_entries(self, ctx: ForwardContext, name: str, numbers: Tensor, new: Tensor) -> Tensor:
        """Store `new` entries (batch, heads, n, width) of a stream at their `numbers` (n,) -> the stream (batch, heads,
        places, width) with the entry of each block at its number. Of a single token, unless the cache is static, it has
        the complete ones alone; else a token sees those of blocks that are complete with it. Equal numbers have equal
        entries."""
        ...

    def shared(self, x: Tensor, *read: Tensor) -> tuple[Tensor, ...]:
        """The streams that `append` returned, in the form in which later layers are given them: (batch, heads, places,
        width), of which the first s are the keys of the view. `x` (b, t, ...) is any tensor of the pass."""
        ...

    def resizable(self) -> list[Tensor]:
        """Streams (batch, heads, places, width) with as many places as another size by chance: rings and entries."""
        ...

    def state(self, name: str, x: Tensor) -> Tensor:
        """The state of this name (batch, *shape) after the tokens so far, zeros before the first. `x` is any tensor of
        the pass, its first axis the batch."""
        ...

    def set_state(self, name: str, value: Tensor) -> None:
        """Keep the state for the next pass."""
        ...


class RouterOutput(NamedTuple):
    """What a router computed for each token: `logits` (b, t, experts) in float32, before softmax, sigmoid and any
    correction, and the ids of the `chosen` experts (b, t, k)."""

    logits: Tensor
    chosen: Tensor

    def counts(self) -> Tensor:
        """(experts,) int64: how many tokens each expert was chosen for."""
        ids = self.chosen.flatten()
        counts = torch.zeros(self.logits.shape[-1], dtype=torch.long, device=ids.device)
        return counts.scatter_add_(0, ids, torch.ones_like(ids))


@dataclass(frozen=True)
class ForwardContext:
    """What the layers of a forward pass look up: the `positions` (t,) of its tokens, `tables` by (spec, width), `views`
    by cache geometry.

    `routing`: the list to which routers add their RouterOutput; None where nobody asked for it. `shared`: what earlier
    layers handed on, by name. `handed_on`: where this layer's go instead, None for a layer that is run by itself.
    `layer_input` (b, t, width): what the model computed for this layer alone (zoo.blocks.per_layer). `tokens` (b, t):
    the token ids, in layers that read them (zoo.blocks.hash_router).
    """

    positions: Tensor
    tables: dict[tuple[Any, int], Any]
    views: dict[Hashable, CacheView]
    routing: list[RouterOutput] | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)
    handed_on: dict[Hashable, Any] | None = None
    layer_input: Tensor | None = None
    tokens: Tensor | None = None

    def collecting(self) -> ForwardContext:
        """The same context with an empty list and an empty dict for what one layer records and hands on."""
        return ForwardContext(
            self.positions,
            self.tables,
            self.views,
            None if self.routing is None else [],
            self.shared,
            None if self.handed_on is None else {},
            self.layer_input,
            self.tokens,
        )

    def hand_on(self, key: Hashable, value: Any) -> None:
        """Gives tensors, or None, to later layers, under a key that the mixer's spec lists in `hands_on`."""
        (self.shared if self.handed_on is None else self.handed_on)[key] = value


# Routers record into the last one, where there is one.
recordings: list[list[RouterOutput]] = []  # torch's compiler guards a list, and neither a ContextVar nor a local


@contextmanager
def recorded_routing() -> Iterator[list[RouterOutput]]:
    """The RouterOutput of each router, in order of layers, of every model that runs inside the `with`, pass after pass.

    The logits have gradients where the pass has. Of several `with` inside each other the innermost records. It is one
    for the process: threads that run models at the same time share it.
    """
    recordings.append([])
    try:
        yield recordings[-1]
    finally:
        recordings.pop()


def keep(kept: dict[K, Tensor], key: K, compute: Callable[[], Tensor]) -> Tensor:
    """Computes a tensor that later passes look up in `kept`, those with gradients too. A tensor made while a compiler
    or torch.export traces holds no values, and is not kept."""
    with torch.inference_mode(False):
        value = compute()
    if type(value) is Tensor and not torch.compiler.is_compiling() and not torch.is_inference(value):
        kept[key] = value
    return value


def block_count(new: int, every: int) -> int:
    """At least the blocks of `every` tokens that `new` tokens in a row can lie in, whatever the position of the first.

    Of several tokens it is one more: what follows the first block is then never a single one, which the compiler would
    take for a case of its own.
    """
    return (new + every - 2) // every + 2 if new > 1 else 1


def blocks_of(positions: Tensor, every: int) -> Tensor:
    """Positions (t,) of tokens in a row -> the numbers of the blocks of `every` tokens that they lie in, `block_count`
    of them: the last is repeated where they are fewer. No shape depends on the positions."""
    first, last = positions[:1] // every, positions[-1:] // every
    return torch.minimum(first + torch.arange(block_count(len(positions), every), device=positions.device), last)


def causal(new: int, stored: int, device: torch.device) -> Tensor:
    """The mask (t, s) of the last t of s tokens."""
    return torch.ones(new, stored, dtype=torch.bool, device=device).tril(stored - new)


def visible(queries: Tensor, keys: Tensor, reach: Reach = Full()) -> Tensor:
    """Positions (t,) and (s,) -> mask (t, s), True where the query sees the key. A key at position -1 is an empty
    place."""
    seen: Tensor = reach.sees(queries[:, None], keys) & (keys >= 0)
    return seen
