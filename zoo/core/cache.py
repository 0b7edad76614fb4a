"""The KV cache: one LayerCache per layer, built from the layer's `CacheSpec`.

`append(ctx, *new)` stores the new tokens and returns all streams to attend over, and the mask. `NoCache` stands for a
missing cache and returns the new tokens themselves, so that layers have no `if cache`.
"""

from collections.abc import Hashable, Iterable, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from zoo.arguments import count
from zoo.core.float32 import upcast_dtype
from zoo.core.forward_context import CacheView, ForwardContext, LayerCache, ReachMask, visible
from zoo.costs import CacheSpec
from zoo.errors import CacheFullError, NotAvailable, UsageError, enough
from zoo.units import format_bytes


def prepare_forward(
    past: int,
    new: int,
    tables: Iterable[tuple[Any, int]],
    layer_caches: Iterable[LayerCache],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    position: Tensor | None = None,
) -> ForwardContext:
    """Returns the context of a forward pass of `new` tokens after `past`. It has a table for each (spec, width) pair in
    `tables`, in float32 (float64 if `dtype` is float64), and a view for each geometry among `layer_caches`. In
    single-token decode over static caches, a tensor with the `position` (1,) replaces `past`."""
    positions = torch.arange(past, past + new, device=device) if position is None else position
    views: dict[Hashable, CacheView] = {}
    for layer_cache in layer_caches:
        if layer_cache.geometry not in views:
            views[layer_cache.geometry] = layer_cache.view(positions, past)
    exact = upcast_dtype(dtype)
    computed = {(spec, width): spec.table(positions, width, exact) for spec, width in tables}
    return ForwardContext(positions, computed, views)


class NoCache(LayerCache):
    """The absence of a cache: tokens see only tokens of the same pass; states start at zero and are not stored."""

    def __init__(self, spec: CacheSpec) -> None:
        self.reach, self.sees_all = spec.reach, spec.reach.is_full
        self.shapes = {state.name: (state.shape, state.in_float32) for state in spec.state}
        self.geometry = "no cache", *spec.geometry
        self.has_entries = bool(spec.entries)

    def view(self, positions: Tensor, past: int) -> CacheView:
        so_far = positions if self.has_entries else None
        if self.sees_all or len(positions) == 1:
            return CacheView(positions, positions, None, so_far)
        return CacheView(positions, positions, ReachMask(positions, positions, self.reach), so_far)

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        return (*new, ctx.views[self.geometry].mask)

    def append_entries(self, ctx: ForwardContext, name: str, numbers: Tensor, new: Tensor) -> Tensor:
        return new if len(ctx.positions) > 1 else new.narrow(2, 0, 0)  # one token completes no block

    def state(self, name: str, x: Tensor) -> Tensor:
        shape, in_float32 = self.shapes[name]
        return torch.zeros(x.shape[0], *shape, dtype=upcast_dtype(x.dtype) if in_float32 else x.dtype, device=x.device)


class _AllocatedCache(LayerCache):
    """Streams of (batch, heads, tokens, width) and states of (batch, *shape), allocated once.

    If `static`, single-token decode reads the whole buffer under a mask. Every step then has the same shapes and
    depends only on the tensor of positions, so that the CUDA graph of one step serves all steps.
    """

    def __init__(
        self, spec: CacheSpec, batch: int, tokens: int, dtype: torch.dtype, device: torch.device, static: bool = False
    ) -> None:
        self.tokens, self.static = spec.tokens(tokens), static
        self.reach, self.sees_all = spec.reach, spec.reach.is_full
        self.geometry = spec.geometry
        self.streams = [
            torch.zeros(batch, heads, self.tokens, width, dtype=dtype, device=device)
            for _, (heads, width) in spec.per_token
        ]
        self.states = {
            state.name: torch.zeros(
                batch, *state.shape, dtype=upcast_dtype(dtype) if state.in_float32 else dtype, device=device
            )
            for state in spec.state
        }

    def state(self, name: str, x: Tensor) -> Tensor:
        state = self.states[name]  # cloned: `set_state` overwrites it, and a backward pass may need the old value
        return state.clone() if torch.is_grad_enabled() else state

    def set_state(self, name: str, value: Tensor) -> None:
        self.states[name].copy_(value.detach())

    def shared(self, x: Tensor, *read: Tensor) -> tuple[Tensor, ...]:
        """Returns the streams for later layers: in decode the full buffers, otherwise those that `append` returned.

        In decode, a narrowed view would expose the allocated length and make compiled code specialise on it.
        """
        return tuple(stream.detach() for stream in self.streams) if x.shape[1] == 1 else read

    def can_truncate(self, held: int, length: int, longest: int) -> bool:
        """Whether a cache of `held` tokens, which once held `longest`, can be cut to the first `length`. States can be
        cut to 0 only."""
        return length in (0, held) or not self.states

    def clear(self) -> None:
        """Sets the states to their values before the first token. Streams need no reset: new tokens overwrite them."""
        for state in self.states.values():
            state.zero_()

    def overwritten(self) -> list[Tensor]:
        """Returns the tensors whose stored content a pass overwrites in place: here the states."""
        return list(self.states.values())

    def kept(self) -> list[Tensor]:
        """Returns every tensor of the cache."""
        return [*self.streams, *self.states.values()]


class StateCache(_AllocatedCache):
    """A cache of states only, or an empty cache (for a layer without a mixer)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = "states"

    def view(self, positions: Tensor, past: int) -> CacheView:
        return CacheView(positions, positions, None)


class FullCache(_AllocatedCache):
    """A cache of all tokens, each at the index of its position."""

    def view(self, positions: Tensor, past: int) -> CacheView:
        is_static = self.static and len(positions) == 1
        keys = torch.arange(self.tokens if is_static else past + len(positions), device=positions.device)
        sees_all_before = self.sees_all and not is_static and (past == 0 or len(positions) == 1)
        return CacheView(positions, keys, None if sees_all_before else visible(positions, keys, self.reach))

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        write, keys, mask, _ = ctx.views[self.geometry]
        is_decode = new[0].shape[2] == 1
        for stream, tokens in zip(self.streams, new, strict=True):
            stream.index_copy_(2, write, tokens.detach().to(stream.dtype))  # under autocast the dtypes differ
        if is_decode:
            return (*(stream.narrow(2, 0, len(keys)) for stream in self.streams), mask)
        if len(keys) == new[0].shape[2]:  # the cache was empty
            return (*new, mask)
        return (*(_first(stream, len(keys)) for stream in self.streams), mask)


class RingCache(_AllocatedCache):
    """A ring buffer of the last `tokens` tokens: position p is at index p mod `tokens`. The first token of a chunk is
    at index 0, so that the first indices hold the current chunk.

    `tokens` is the reach's limit, or the context if that is shorter.
    Single-token decode writes first and then reads. A pass of several tokens reads first: its tokens attend over the
    ring's old content and themselves. They are written afterwards: the last token overwrites keys that the first needs.
    """

    def view(self, positions: Tensor, past: int) -> CacheView:
        write = positions[-self.tokens :] % self.tokens
        if self.static and len(positions) == 1:
            index = torch.arange(self.tokens, device=positions.device)
            keys = positions - (positions - index) % self.tokens  # a negative position marks an empty place
            return CacheView(write, keys, visible(positions, keys, self.reach))
        held = min(self.reach.held(past), self.tokens)
        if len(positions) == 1:
            keys = self._positions(min(held + 1, self.tokens), past + 1, positions.device)
            return CacheView(write, keys, None if self.reach.stride == 1 else visible(positions, keys, self.reach))
        keys = torch.cat([self._positions(held, past, positions.device), positions])
        return CacheView(write, keys, ReachMask(positions, keys, self.reach))

    def _positions(self, places: int, past: int, device: torch.device) -> Tensor:
        """Returns the positions at the first `places` indices: at i, the largest p < past with p mod tokens == i."""
        index = torch.arange(places, device=device)
        return past - 1 - (past - 1 - index) % self.tokens

    def can_truncate(self, held: int, length: int, longest: int) -> bool:
        """Whether the ring still holds every earlier token that the token at position `length` sees. Dropping a token
        does not bring back the tokens that it overwrote."""
        seen = min(self.reach.held(length), (self.reach.limit or self.tokens) - 1)
        possible = super().can_truncate(held, length, longest)
        return possible and (seen == 0 or length - seen >= longest - self.tokens)

    def overwritten(self) -> list[Tensor]:
        return [*super().overwritten(), *self.streams]

    def resizable(self) -> list[Tensor]:
        return self.streams

    def append(self, ctx: ForwardContext, *new: Tensor) -> tuple[Any, ...]:
        write, keys, mask, _ = ctx.views[self.geometry]
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


class EntryCache(RingCache):
    """A ring buffer, and streams with one entry per block of tokens, each at the index of its block."""

    def __init__(
        self, spec: CacheSpec, batch: int, tokens: int, dtype: torch.dtype, device: torch.device, static: bool = False
    ) -> None:
        super().__init__(spec, batch, tokens, dtype, device, static)
        self.blocks = {each.name: each.every for each in spec.entries}
        self.entries = {
            each.name: torch.zeros(batch, heads, each.count(tokens), width, dtype=dtype, device=device)
            for each in spec.entries
            for heads, width in [each.shape]
        }

    def kept(self) -> list[Tensor]:
        return [*super().kept(), *self.entries.values()]

    def resizable(self) -> list[Tensor]:
        return [*self.streams, *self.entries.values()]

    def view(self, positions: Tensor, past: int) -> CacheView:
        view = super().view(positions, past)
        if self.static and len(positions) == 1:
            return view
        # A tensor without memory: only its length counts. `expand` would give it another stride for a single token.
        return view._replace(so_far=positions.as_strided((past + len(positions),), (0,)))

    def append_entries(self, ctx: ForwardContext, name: str, numbers: Tensor, new: Tensor) -> Tensor:
        stream, view = self.entries[name], ctx.views[self.geometry]
        stream.index_copy_(2, numbers, new.detach().to(stream.dtype))
        if len(ctx.positions) > 1:
            return new if len(view.keys) == len(ctx.positions) else stream  # the cache was empty
        return stream if view.so_far is None else stream.narrow(2, 0, len(view.so_far) // self.blocks[name])


def _first(stream: Tensor, count: int) -> Tensor:
    """Returns the first `count` places of a stream (batch, heads, tokens, width), for prefill.

    In compiled code it is a copy, which is cheap beside a prefill's other work. With a view, the compiler would guard
    on contiguity and recompile once the cache is full.
    """
    if torch.compiler.is_compiling():
        return stream.index_select(2, torch.arange(count, device=stream.device))
    return stream.narrow(2, 0, count)


def _kind(spec: CacheSpec) -> type[_AllocatedCache]:
    if spec.entries:
        return EntryCache
    if not spec.per_token:
        return StateCache
    return FullCache if spec.reach.limit is None else RingCache


# A cache at one point: its length, its longest length so far, and pairs of a tensor and a copy of its content.
Snapshot = tuple[int, int, int, list[tuple[Tensor, Tensor]]]


class Cache:
    """One layer cache per layer, for `batch` sequences of equal length and at most `tokens` tokens each.

    It is for inference: streams carry no gradient to earlier passes. `length` is the number of stored tokens. `static`
    (fixed shapes in single-token decode) defaults to True on CUDA. `switches`: lengths beyond which keys are rotated
    differently (LongRoPE). Raises UsageError if `batch` or `tokens` is below 1, and NotAvailable if there is too little
    memory.
    """

    def __init__(
        self,
        cache_specs: Sequence[CacheSpec],
        batch: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        static: bool | None = None,
        switches: Sequence[int] = (),
    ) -> None:
        if batch < 1 or tokens < 1:
            raise UsageError(f"a cache needs a batch and tokens of at least 1, got {batch} and {tokens}")
        self.switches = tuple(switches)
        self.cache_specs, self.batch, self.tokens, self.length = tuple(cache_specs), batch, tokens, 0
        # (serial number, length) of truncations and restored snapshots, without those that a later one undercuts
        self._drops: list[tuple[int, int]] = []
        self._serial = 0
        self._longest = 0  # the greatest length before a truncation: rings have overwritten tokens up to it
        self.static = device.type == "cuda" if static is None else static
        try:
            self.layers = [_kind(spec)(spec, batch, tokens, dtype, device, self.static) for spec in cache_specs]
        except RuntimeError as error:  # torch's allocators have no common error
            needed = ceil(batch * sum(spec.nbytes(tokens, dtype.itemsize) for spec in cache_specs))
            raise NotAvailable(
                f"a cache for {batch} x {tokens} tokens needs {format_bytes(needed)}, which {device} cannot allocate"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes of memory behind the streams and states. Memory that tensors share counts once."""
        kept = (tensor for each in self.layers for tensor in each.kept())
        storages = [tensor.untyped_storage() for tensor in kept]
        # Storages are told apart by identity, not by address: on the meta device all addresses are 0.
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def snapshot(self) -> Snapshot:
        """Copies the states, the rings and the length, so that `restore` can return to this point.

        Full caches need no copy: later tokens lie past the restored length.
        """
        copies = [(kept, kept.clone()) for each in self.layers for kept in each.overwritten()]
        return self.length, self._longest, self._serial, copies

    def restore(self, snapshot: Snapshot) -> None:
        """Discards every token after the `snapshot`, which can be restored again. Raises UsageError if the cache went
        back to fewer tokens since the snapshot was taken: later tokens may have overwritten those of a full cache."""
        length, longest, serial, copies = snapshot
        lowest = next((dropped_to for number, dropped_to in self._drops if number > serial), length)
        if lowest < length and any(len(each.kept()) > len(each.overwritten()) for each in self.layers):
            raise UsageError(
                f"a snapshot of {length} tokens cannot be restored: the cache went back to {lowest} tokens since then"
            )
        for kept, copy in copies:
            kept.copy_(copy)
        self._went_back(length, longest)

    def _went_back(self, length: int, longest: int) -> None:
        self.length, self._longest, self._serial = length, longest, self._serial + 1
        while self._drops and self._drops[-1][1] >= length:
            self._drops.pop()
        self._drops.append((self._serial, length))

    def truncate(self, length: int) -> None:
        """Drops the tokens from position `length` on.

        A full cache can be truncated to any length, and every cache to 0. A sliding window cannot return to a length at
        which the next token would see a token that has been overwritten. States (recurrences, convolutions, unfinished
        blocks of compressed entries) can only return to 0. For other lengths, take a `snapshot` there first. Raises
        UsageError, which names the possible lengths.
        """
        if count(length, "length", 0) > self.length:
            raise UsageError(f"the cache holds {self.length} tokens and cannot be truncated to {length}")
        longest = max(self._longest, self.length)
        kinds = {(type(each), each.geometry, not each.states): each for each in self.layers}.values()

        def is_possible(length: int) -> bool:
            rotated_alike = all(not 0 < length <= switch < self.length for switch in self.switches)
            return rotated_alike and all(each.can_truncate(self.length, length, longest) for each in kinds)

        if not is_possible(length):
            possible = _ranges([each for each in range(self.length + 1) if is_possible(each)])
            raise UsageError(
                f"the cache cannot be truncated to {length} tokens, only to {possible}: windows have overwritten "
                "earlier tokens, or states have summed them; a snapshot() that is taken there can be restored"
            )
        if length == 0:
            for each in self.layers:
                each.clear()
        self._went_back(length, longest if length else 0)

    def crossed_switch(self, new: int) -> int | None:
        """Returns the length in `switches` that `new` more tokens would exceed, or None. All keys must then be rotated
        anew."""
        crossed = (switch for switch in self.switches if 0 < self.length <= switch < self.length + new)
        return next(crossed, None)

    def require_room(self, cache_specs: tuple[CacheSpec, ...], batch: int, new: int) -> None:
        """Raises UsageError unless the cache was made for these `cache_specs` and this `batch`.

        Raises CacheFullError unless `new` more tokens fit.
        """
        if cache_specs != self.cache_specs:
            raise UsageError("the cache was made for another model; make one with this model's new_cache")
        if batch != self.batch:
            raise UsageError(f"the cache holds {self.batch} sequences, the tokens {batch}")
        if self.length + new > self.tokens:
            raise CacheFullError(
                f"the cache is full: it holds {self.length} of {self.tokens} tokens and {new} more do not fit; "
                f"make one with new_cache(batch, tokens={self.length + new})"
            )


def _ranges(numbers: Sequence[int]) -> str:
    """Returns sorted numbers in words: 0, or 40 to 57."""
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != n + 1]
    words = [f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True)]
    if 1 < len(words) <= 5:
        words[-1] = f"or {words[-1]}"
    return enough(words, 5)
