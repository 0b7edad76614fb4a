"""Masks follow from positions alone."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo.core.cache import FullCache, NoCache, SlidingWindowCache
from zoo.core.forward_context import CacheView, SlidingWindowMask, prepare_forward, visible
from zoo.costs import CacheSpec

WINDOW = 5


def slots(window: int | None, tokens: int = 64) -> list[NoCache | FullCache | SlidingWindowCache]:
    """Every slot a layer with this window may have."""
    stored, cpu = CacheSpec(per_token=(("k", (1, 2)),), window=window), torch.device("cpu")
    if window is None:
        return [NoCache(None), FullCache(stored, 1, tokens, torch.float32, cpu)]
    return [NoCache(window), SlidingWindowCache(stored, 1, window, torch.float32, cpu)]


def seen(view: CacheView, past: int, new: int) -> list[set[int]]:
    """The positions each query sees, by a view: every one that is read, or by the mask."""
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
    for slot in slots(window):
        for past in [0] if isinstance(slot, NoCache) else range(3 * WINDOW + 2):
            for new in range(1, 3 * WINDOW + 2):
                view = slot.view(torch.arange(past, past + new), past)
                for i, keys in enumerate(seen(view, past, new), start=past):
                    first = 0 if window is None else max(0, i - window + 1)
                    assert keys == set(range(first, i + 1))
                    assert len(keys) == min(i + 1, window or i + 1)


@pytest.mark.parametrize("window", [1, 2, WINDOW])
def test_a_ring_writes_the_last_window_tokens_at_their_places(window: int) -> None:
    ring = slots(window)[1]
    for past in range(3 * WINDOW):
        for new in range(1, 3 * WINDOW):
            positions = torch.arange(past, past + new)
            write = ring.view(positions, past).write.tolist()
            assert write == [p % window for p in positions.tolist()[-window:]]
            assert len(set(write)) == len(write), "two tokens at one place"


def test_an_empty_place_is_seen_by_nobody() -> None:
    mask = visible(torch.tensor([0, 3]), torch.tensor([-1, 0, 3, -1, 4]))
    assert mask.tolist() == [[False, True, False, False, False], [False, True, True, False, False]]
    assert visible(torch.tensor([3]), torch.tensor([0, 1, 2, 3]), window=2).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("name", zoo.names())
def test_a_step_is_planned_once_for_each_geometry_and_rotary_width(name: str) -> None:
    """Equal layers share what they look up, so a step holds a handful of tensors and not one set a layer."""
    spec = zoo.spec(name)
    model = zoo.build(spec, device="meta")
    cache, planned = model.new_cache(1, 300_000), []
    for slot in cache.layers:
        slot.view = lambda *given, view=slot.view: planned.append(given) or view(*given)
    step = prepare_forward(7, 3, model._rotary, cache.layers, torch.device("cpu"))
    assert len(planned) == len(step.views) == len({layer.cache_spec().window for layer in spec.layers})
    assert step.tables.keys() == {need for layer in spec.layers for need in layer.rotary()}
    for (rope, width), table in step.tables.items():
        if table is None:
            assert rope == zoo.NoPE()
        else:
            assert all(part.dtype == torch.float32 and part.shape[0] == 3 for part in table)
            assert width % 2 == 0
