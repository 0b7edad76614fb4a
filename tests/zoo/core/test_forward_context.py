"""Masks follow from positions alone."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests.presets import representatives, split
from zoo.core.cache import FullCache, NoCache, SlidingWindowCache
from zoo.core.forward_context import CacheView, SlidingWindowMask, prepare_forward, visible
from zoo.costs import CacheSpec

WINDOW = 5


def layer_caches(window: int | None, tokens: int = 64) -> list[NoCache | FullCache | SlidingWindowCache]:
    """Every kind of cache that a layer with this window may have."""
    spec, cpu = CacheSpec(per_token=(("k", (1, 2)),), window=window), torch.device("cpu")
    if window is None:
        return [NoCache(None), FullCache(spec, 1, tokens, torch.float32, cpu)]
    return [NoCache(window), SlidingWindowCache(spec, 1, window, torch.float32, cpu)]


def seen(view: CacheView, past: int, new: int) -> list[set[int]]:
    """The positions that each query sees in a view: all that are read, or those that the mask shows."""
    keys = view.keys.tolist()
    if view.mask is not None:
        mask = visible(*view.mask) if isinstance(view.mask, SlidingWindowMask) else view.mask
        assert mask.shape == (new, len(keys))
        return [{keys[i] for i in row.nonzero().flatten().tolist()} for row in mask]
    if new == 1:
        return [set(keys)]
    assert past == 0, "without a mask several queries see what is_causal shows them"
    return [set(keys[: i + 1]) for i in range(new)]


@pytest.mark.parametrize("window", [None, 1, 2, WINDOW])
def test_token_i_sees_exactly_the_last_window_tokens(window: int | None) -> None:
    """min(i + 1, window) keys, itself included, whatever came before and however many tokens come at once."""
    for cache in layer_caches(window):
        for past in [0] if isinstance(cache, NoCache) else range(3 * WINDOW + 2):
            for new in range(1, 3 * WINDOW + 2):
                view = cache.view(torch.arange(past, past + new), past)
                for i, keys in enumerate(seen(view, past, new), start=past):
                    first = 0 if window is None else max(0, i - window + 1)
                    assert keys == set(range(first, i + 1))
                    assert len(keys) == min(i + 1, window or i + 1)


@pytest.mark.parametrize("window", [1, 2, WINDOW])
def test_a_ring_writes_the_last_window_tokens_at_their_places(window: int) -> None:
    ring = layer_caches(window)[1]
    for past in range(3 * WINDOW):
        for new in range(1, 3 * WINDOW):
            positions = torch.arange(past, past + new)
            write = ring.view(positions, past).write.tolist()
            assert write == [p % window for p in positions.tolist()[-window:]]
            assert len(set(write)) == len(write), "two tokens at one place"


def test_no_query_sees_an_empty_place() -> None:
    mask = visible(torch.tensor([0, 3]), torch.tensor([-1, 0, 3, -1, 4]))
    assert mask.tolist() == [[False, True, False, False, False], [False, True, True, False, False]]
    assert visible(torch.tensor([3]), torch.tensor([0, 1, 2, 3]), window=2).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("name", split(zoo.names(), representatives()))
def test_a_context_has_one_view_per_geometry_and_one_table_per_rotary_width(name: str) -> None:
    """Equal layers share what they look up: a context holds a handful of tensors and not one set per layer."""
    spec = zoo.spec(name)
    model = zoo.build(spec, device="meta")
    cache, calls = model.new_cache(1, 300_000), []
    for layer_cache in cache.layers:
        layer_cache.view = lambda *args, view=layer_cache.view: calls.append(args) or view(*args)
    ctx = prepare_forward(7, 3, model._rotary, cache.layers, torch.device("cpu"))
    assert len(calls) == len(ctx.views) == len({layer.cache_spec().window for layer in spec.layers})
    assert ctx.tables.keys() == {need for layer in spec.layers for need in layer.rotary()}
    for (rope, width), table in ctx.tables.items():
        if table is None:
            assert rope == zoo.NoPE()
        else:
            assert all(part.dtype == torch.float32 and part.shape[0] == 3 for part in table)
            assert width % 2 == 0
