"""Masks follow from positions alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from tests.presets import representatives, split
from zoo.core.cache import FullCache, NoCache, RingCache, prepare_forward
from zoo.core.forward_context import CacheView, ReachMask, block_count, blocks_of, visible
from zoo.costs import CacheSpec, Chunk, Full, Reach, Window

SIZE = 5  # of a window or chunk


def layer_caches(reach: Reach, tokens: int = 64) -> list[Any]:
    """Returns every kind of cache that a layer with this reach may have."""
    spec, cpu = CacheSpec(per_token=(("k", (1, 2)),), reach=reach), torch.device("cpu")
    kind = FullCache if reach.limit is None else RingCache
    return [NoCache(spec), kind(spec, 1, spec.tokens(tokens), torch.float32, cpu)]


def seen(view: CacheView, past: int, new: int) -> list[set[int]]:
    """Returns the positions that each query sees in a view: all that are read, or those that the mask allows."""
    keys = view.keys.tolist()
    if view.mask is not None:
        mask = visible(*view.mask) if isinstance(view.mask, ReachMask) else view.mask
        assert mask.shape == (new, len(keys))
        return [{keys[i] for i in row.nonzero().flatten().tolist()} for row in mask]
    if new == 1:
        return [set(keys)]
    assert past == 0, "without a mask several queries see what is_causal shows them"
    return [set(keys[: i + 1]) for i in range(new)]


BOUNDED = [kind(size) for kind in (Window, Chunk) for size in (1, 2, SIZE)]


@pytest.mark.parametrize("reach", [Full(), *BOUNDED], ids=Reach.describe)
def test_a_token_sees_exactly_its_reach(reach: Reach) -> None:
    """The token itself is included, for any number of earlier tokens and of tokens in the pass."""
    for cache in layer_caches(reach):
        for past in [0] if isinstance(cache, NoCache) else range(3 * SIZE + 2):
            for new in range(1, 3 * SIZE + 2):
                view = cache.view(torch.arange(past, past + new), past)
                for i, keys in enumerate(seen(view, past, new), start=past):
                    assert keys == {j for j in range(i + 1) if reach.sees(i, j)}


@pytest.mark.parametrize("reach", BOUNDED, ids=Reach.describe)
def test_a_ring_writes_its_last_tokens_at_their_places(reach: Reach) -> None:
    ring, size = layer_caches(reach)[1], reach.limit
    for past in range(3 * SIZE):
        for new in range(1, 3 * SIZE):
            positions = torch.arange(past, past + new)
            write = ring.view(positions, past).write.tolist()
            assert write == [p % size for p in positions.tolist()[-size:]]
            assert len(set(write)) == len(write), "two tokens at one place"


def test_no_query_sees_an_empty_place() -> None:
    mask = visible(torch.tensor([0, 3]), torch.tensor([-1, 0, 3, -1, 4]))
    assert mask.tolist() == [[False, True, False, False, False], [False, True, True, False, False]]
    assert visible(torch.tensor([3]), torch.tensor([0, 1, 2, 3]), Window(2)).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("name", split(zoo.names(), representatives()))
def test_a_context_has_one_view_per_geometry_and_one_table_per_rotary_width(name: str) -> None:
    """Equal layers share what they look up: a context holds a handful of tensors and not one set per layer."""
    spec = zoo.spec(name)
    model = zoo.build(spec, device="meta")
    cache, calls = model.new_cache(1, 300_000), []
    for layer_cache in cache.layers:
        layer_cache.view = lambda *args, view=layer_cache.view: calls.append(args) or view(*args)
    ctx = prepare_forward(7, 3, model._tables, cache.layers, torch.device("cpu"))
    kept = [layer.cache_spec() for layer in spec.layers]
    assert len(calls) == len(ctx.views) == len({each.describe() if each.per_token else None for each in kept})
    assert ctx.tables.keys() == {need for layer in spec.layers for need in layer.tables()}
    for (rope, width), table in ctx.tables.items():
        if table is None:
            assert rope == zoo.NoPE()
        else:
            parts = table if isinstance(table, tuple) else (table,)
            rows = block_count(3, rope.every) if hasattr(rope, "every") else 3  # of blocks, or of tokens
            assert all(part.dtype == torch.float32 and part.shape[0] == rows for part in parts)
            assert width % 2 == 0 or not isinstance(rope, zoo.RoPE)


@given(st.integers(0, 60), st.integers(1, 40), st.integers(2, 9))
def test_blocks_of_tokens_in_a_row(past: int, new: int, every: int) -> None:
    numbers = blocks_of(torch.arange(past, past + new), every).tolist()
    touched = sorted({token // every for token in range(past, past + new)})
    assert len(numbers) == block_count(new, every)
    assert numbers == touched + [touched[-1]] * (len(numbers) - len(touched))
