"""The KV cache: one LayerCache per layer, built from the `CacheSpec` that the layer's spec reports.

`append(ctx, *new)` stores the new tokens and returns every stream to attend over, with the mask. `NoCache` stands in
where there is no cache and returns its arguments, so that layers have no `if cache`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.core.forward_context import CacheView, ForwardContext, SlidingWindowMask, visible
from zoo.costs import CacheSpec
from zoo.errors import CacheFullError, UsageError


class NoCache:
    """No cache: the tokens of a forward pass see only each other."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.geometry = f"no cache, window {window}"

    def view(self, positions: Tensor, past: int) -> CacheView:
        if self.window is None or len(positions) == 1:
            return CacheView(positions, positions, None)
        return CacheView(positions, positions, SlidingWindowMask(positions, positions, self.window))

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        return (*new, ctx.views[self.geometry].mask)


class _AllocatedCache:
    """Streams of (batch, heads, tokens, width), allocated once.

    If `static`, single-token decode reads all places under a mask: every step has the same shapes and depends on the
    tensor of positions alone, so that the CUDA graph of one step serves all steps.
    """

    def __init__(
        self, spec: CacheSpec, batch: int, tokens: int, dtype: torch.dtype, device: torch.device, static: bool = False
    ) -> None:
        self.tokens, self.static = tokens, static
        self.geometry = f"window {spec.window}"
        self.streams = [
            torch.zeros(batch, heads, tokens, width, dtype=dtype, device=device) for _, (heads, width) in spec.per_token
        ]


class FullCache(_AllocatedCache):
    """Every token, at the index of its position."""

    def view(self, positions: Tensor, past: int) -> CacheView:
        if self.static and len(positions) == 1:
            index = torch.arange(self.tokens, device=positions.device)
            return CacheView(positions, index, visible(positions, index))
        keys = torch.arange(past + len(positions), device=positions.device)
        sees_all_before = past == 0 or len(positions) == 1
        return CacheView(positions, keys, None if sees_all_before else visible(positions, keys))

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        write, keys, mask = ctx.views[self.geometry]
        is_decode = new[0].shape[2] == 1
        for stream, tokens in zip(self.streams, new, strict=True):
            stream.index_copy_(2, write, tokens.detach().to(stream.dtype))  # under autocast the dtypes differ
        if is_decode:
            return (*(stream.narrow(2, 0, len(keys)) for stream in self.streams), mask)
        if len(keys) == new[0].shape[2]:  # the cache was empty
            return (*new, mask)
        return (*(_first(stream, len(keys)) for stream in self.streams), mask)


class SlidingWindowCache(_AllocatedCache):
    """The last `tokens` tokens in a ring: position p is at index p mod `tokens`, the window or the context if shorter.

    Single-token decode writes first and reads the ring as it is: it then holds exactly the window of that token.
    Several tokens attend over the ring's old content and themselves and are written afterwards, since the first of them
    needs keys that the last of them overwrites.
    """

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

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        write, keys, mask = ctx.views[self.geometry]
        is_decode, held = new[0].shape[2] == 1, len(keys) - new[0].shape[2]
        read = list(new)
        if not is_decode and held > 0:
            read = [torch.cat([_first(s, held), t], dim=2) for s, t in zip(self.streams, new, strict=True)]
        for stream, tokens in zip(self.streams, new, strict=True):
            last = tokens.detach().to(stream.dtype).transpose(1, 2)[:, -len(write) :]
            stream.transpose(1, 2).index_copy_(1, write, last)
        if is_decode:
            read = [stream.narrow(2, 0, len(keys)) for stream in self.streams]
        return (*read, mask)


def _first(stream: Tensor, count: int) -> Tensor:
    """The first `count` places of a stream (batch, heads, tokens, width), for prefill.

    Compiled, it is a copy, which is cheap beside a prefill's other work: of a view the compiler asks whether it is
    contiguous, and recompiles once the cache is full.
    """
    if torch.compiler.is_compiling():
        return stream.index_select(2, torch.arange(count, device=stream.device))
    return stream.narrow(2, 0, count)


class Cache:
    """A layer cache for each layer: `batch` sequences of equal length, at most `tokens` tokens each.

    For inference: streams carry no gradient to earlier passes. `length` is the number of tokens held. `static` is by
    default True on CUDA. Raises UsageError for a batch or a number of tokens below 1.
    """

    def __init__(
        self,
        cache_specs: Sequence[CacheSpec],
        batch: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        static: bool | None = None,
    ) -> None:
        if batch < 1 or tokens < 1:
            raise UsageError(f"a cache needs a batch and tokens of at least 1, got {batch} and {tokens}")
        self.cache_specs, self.batch, self.tokens, self.length = tuple(cache_specs), batch, tokens, 0
        self.static = device.type == "cuda" if static is None else static
        self.layers = [
            (FullCache if spec.window is None else SlidingWindowCache)(
                spec, batch, spec.tokens(tokens), dtype, device, self.static
            )
            for spec in cache_specs
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of storage behind the streams, each storage counted once."""
        storages = [stream.untyped_storage() for layer_cache in self.layers for stream in layer_cache.streams]
        # By identity, not by address: on the meta device all addresses are 0.
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def require_room(self, cache_specs: tuple[CacheSpec, ...], batch: int, new: int) -> None:
        """Raise UsageError unless the cache was made for layers of these `cache_specs` and this `batch`, CacheFullError
        unless `new` tokens fit."""
        if cache_specs != self.cache_specs:
            raise UsageError("the cache was made for another model; make one with this model's new_cache")
        if batch != self.batch:
            raise UsageError(f"the cache holds {self.batch} sequences, the tokens {batch}")
        if self.length + new > self.tokens:
            raise CacheFullError(
                f"the cache is full: it holds {self.length} of {self.tokens} tokens and {new} more do not fit; "
                f"make one with new_cache(batch, tokens={self.length + new})"
            )
