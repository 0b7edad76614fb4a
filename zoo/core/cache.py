"""The KV cache: one LayerCache per layer, built from the `CacheSpec` that the layer's spec reports.

`LayerCache.append(ctx, *new)` stores the new tokens and returns every stream to attend over, with the mask. `NoCache`
stands in where there is no cache and returns its arguments, so that layers have no `if cache`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from zoo.core.forward_context import CacheView, ForwardContext, SlidingWindowMask, visible
from zoo.costs import CacheSpec
from zoo.errors import CacheFullError, UsageError


class LayerCache(Protocol):
    """Where a layer keeps its tokens."""

    @property
    def geometry(self) -> Hashable: ...
    def view(self, positions: Tensor, past: int) -> CacheView: ...
    def append(self, step: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        """New streams, each (batch, heads, new, width) -> the streams to attend over (batch, heads, keys, width), and
        last the mask."""
        ...


class Captured(Protocol):
    """A lone token's pass of one model over one cache, as a CUDA graph."""

    def is_of(self, model: object, fingerprint: Hashable) -> bool:
        """Whether it is of this model, whose structure and memory are as when it was captured."""
        ...

    def __call__(self, tokens: Tensor, position: int) -> Tensor: ...


class NoCache:
    """No cache: a pass sees only its own tokens."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.geometry: Hashable = ("none", window)

    def view(self, positions: Tensor, past: int) -> CacheView:
        if self.window is None or len(positions) == 1:
            return CacheView(positions, positions, None)
        return CacheView(positions, positions, SlidingWindowMask(positions, positions, self.window))

    def append(self, step: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        return (*new, step.views[self.geometry].mask)


class _AllocatedCache:
    """Streams of (batch, heads, tokens, width), allocated once.

    A `static` slot hands all its places to a lone token, under a mask: every step has the same shapes and follows from
    the tensor of positions, so that a CUDA graph of one step is a graph of them all.
    """

    def __init__(
        self, stored: CacheSpec, batch: int, tokens: int, dtype: torch.dtype, device: torch.device, static: bool = False
    ) -> None:
        self.tokens, self.static = tokens, static
        self.streams = [
            torch.zeros(batch, heads, tokens, width, dtype=dtype, device=device)
            for _, (heads, width) in stored.per_token
        ]


class FullCache(_AllocatedCache):
    """Every token, at the index of its position."""

    geometry: Hashable = "full"

    def view(self, positions: Tensor, past: int) -> CacheView:
        if self.static and len(positions) == 1:
            index = torch.arange(self.tokens, device=positions.device)
            return CacheView(positions, index, visible(positions, index))
        keys = torch.arange(past + len(positions), device=positions.device)
        plain = past == 0 or len(positions) == 1
        return CacheView(positions, keys, None if plain else visible(positions, keys))

    def append(self, step: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        write, keys, mask = step.views[self.geometry]
        several = new[0].shape[2] > 1
        for stream, tokens in zip(self.streams, new, strict=True):
            stream.index_copy_(2, write, tokens.detach().to(stream.dtype))  # under autocast they differ
        if several and len(keys) == new[0].shape[2]:  # no other token is there yet
            return (*new, mask)
        return (*(_first(stream, len(keys), several) for stream in self.streams), mask)


class SlidingWindowCache(_AllocatedCache):
    """The last `tokens` tokens, a window or all there will ever be; position p lies at index p mod tokens.

    A lone token is written first and the ring read as it lies: it holds exactly the window that token sees. Several
    tokens attend over what the ring held and themselves, and are written afterwards: the first of them still needs
    keys that the last of them overwrites.
    """

    def __init__(
        self, stored: CacheSpec, batch: int, tokens: int, dtype: torch.dtype, device: torch.device, static: bool = False
    ) -> None:
        super().__init__(stored, batch, tokens, dtype, device, static)
        self.geometry: Hashable = ("ring", stored.window)

    def view(self, positions: Tensor, past: int) -> CacheView:
        write = positions[-self.tokens :] % self.tokens
        if self.static and len(positions) == 1:
            index = torch.arange(self.tokens, device=positions.device)
            held = positions - (positions - index) % self.tokens  # below 0: an empty place
            return CacheView(write, held, visible(positions, held))
        if len(positions) == 1:
            return CacheView(write, self._held(past + 1, positions.device), None)
        keys = torch.cat([self._held(past, positions.device), positions])
        return CacheView(write, keys, SlidingWindowMask(positions, keys, self.tokens))

    def _held(self, past: int, device: torch.device) -> Tensor:
        """Positions in the ring, by index, after `past` tokens: at index i the last p < past with p mod tokens == i."""
        index = torch.arange(min(past, self.tokens), device=device)
        return past - 1 - (past - 1 - index) % self.tokens

    def append(self, step: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        write, keys, mask = step.views[self.geometry]
        several, held = new[0].shape[2] > 1, len(keys) - new[0].shape[2]
        read = list(new)
        if several and held > 0:
            read = [torch.cat([_first(s, held, several), t], dim=2) for s, t in zip(self.streams, new, strict=True)]
        for stream, tokens in zip(self.streams, new, strict=True):
            last = tokens.detach().to(stream.dtype).transpose(1, 2)[:, -len(write) :]
            stream.transpose(1, 2).index_copy_(1, write, last)
        return (*(read if several else (_first(stream, len(keys), several) for stream in self.streams)), mask)


def _first(stream: Tensor, count: int, several: bool) -> Tensor:
    """What is at the first `count` places of a stream. A compiler would ask whether a part lies in memory as the whole
    does, and compile anew when a slot is full: for several tokens it is given a copy, which costs them little."""
    if several and torch.compiler.is_compiling():
        return stream.index_select(2, torch.arange(count, device=stream.device))
    return stream.narrow(2, 0, count)


class Cache:
    """Slots for all layers, for `batch` sequences of equal length and at most `tokens` tokens.

    It is for inference: what it returns carries no gradient to earlier passes. `length` is how many tokens it holds.
    Slots are `static` on CUDA unless said otherwise.
    """

    def __init__(
        self,
        stored: Sequence[CacheSpec],
        batch: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        static: bool | None = None,
    ) -> None:
        if batch < 1 or tokens < 1:
            raise UsageError(f"a cache needs a batch and tokens of at least 1, not {batch} and {tokens}")
        self.stored, self.batch, self.tokens, self.length = tuple(stored), batch, tokens, 0
        self.static = device.type == "cuda" if static is None else static
        self.graph: Captured | None = None  # a lone token's pass over this very cache
        self.layers: list[FullCache | SlidingWindowCache] = [
            (FullCache if layer.window is None else SlidingWindowCache)(
                layer, batch, layer.tokens(tokens), dtype, device, self.static
            )
            for layer in stored
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of storage behind the streams, each storage counted once."""
        storages = [stream.untyped_storage() for slot in self.layers for stream in slot.streams]
        # By identity, not by address: on the meta device all addresses are 0.
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def admit(self, stored: tuple[CacheSpec, ...], batch: int, new: int) -> None:
        """Raise unless layers that keep `stored` may add `new` tokens to each of `batch` sequences."""
        if stored != self.stored:
            raise UsageError("the cache was made for another model; make one with this model's new_cache")
        if batch != self.batch:
            raise UsageError(f"the cache holds {self.batch} sequences, the tokens {batch}")
        if self.length + new > self.tokens:
            raise CacheFullError(
                f"the cache is full: it holds {self.length} of {self.tokens} tokens and {new} more do not fit; "
                f"make one with new_cache(batch, tokens={self.length + new})"
            )
