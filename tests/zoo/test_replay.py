"""On a GPU: decode steps replayed as a CUDA graph, over static caches."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests.models import bound, distinct, randomised, tokens_of

pytestmark = pytest.mark.gpu
LENGTH = 60


@torch.no_grad()
@pytest.mark.parametrize("name", distinct())
def test_replayed_steps_equal_uncompiled_ones(name: str) -> None:
    """Two caches in turns, each with a graph of its own, and one that is wound back and filled again."""
    plain = randomised(zoo.spec(name, tiny=True)).cuda()
    fast = randomised(zoo.spec(name, tiny=True)).cuda()
    fast.compile()
    tokens = tokens_of(plain.spec, 2, LENGTH).cuda()
    expected = plain(tokens)
    caches = [fast.new_cache(2, LENGTH + room) for room in (0, 9)]
    for _ in range(2):
        for cache in caches:
            cache.length = 0
            fast(tokens[:, :20], cache)
        for i in range(20, LENGTH):
            for cache in caches:
                logits = fast(tokens[:, i : i + 1], cache)
                assert (logits - expected[:, i : i + 1]).abs().max() <= bound(expected)
    assert all(cache.replay is not None and cache.length == LENGTH for cache in caches)


@torch.no_grad()
def test_logits_of_a_step_outlive_the_next() -> None:
    model = randomised(zoo.spec("qwen3", tiny=True)).cuda()
    model.compile()
    tokens = tokens_of(model.spec, 1, LENGTH).cuda()
    cache = model.new_cache(1, LENGTH)
    model(tokens[:, :-2], cache)
    first = model(tokens[:, -2:-1], cache)
    kept = first.clone()
    model(tokens[:, -1:], cache)
    assert torch.equal(first, kept)
