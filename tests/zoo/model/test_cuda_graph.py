"""Decode steps replayed as CUDA graphs over static caches, on a GPU; and, anywhere, when a graph may be replayed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.exact import assert_equal
from tests.models import randomised, tokens_of
from tests.presets import screen
from zoo.model import module
from zoo.model.module import Model

LENGTH = 60


class Recorded:
    """A fake CUDA graph: it computes with the weights that the model had at the capture."""

    made = 0

    def __init__(self, step: Any, tokens: Tensor, position: int) -> None:
        type(self).made += 1
        self.frozen = copy.deepcopy(step.func.__self__)
        self.cache: Any = step.keywords["cache"]

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        return self.frozen._run(tokens, *self.frozen.prepare(tokens, self.cache), self.frozen._eager)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    """Replays on the CPU, with frozen copies of the model instead of graphs."""
    monkeypatch.setattr(module, "CudaGraph", Recorded)
    monkeypatch.setattr(
        module, "_can_replay", lambda functions, tokens, cache: tokens.shape[1] == 1 and functions.replayable
    )
    monkeypatch.setattr(Recorded, "made", 0)
    return Recorded


def steps(model: Model, cache: Any, tokens: Tensor) -> Tensor:
    cache.length = 0
    return torch.cat([model(part, cache) for part in tokens.split([20, 1, 1, 1], dim=1)], dim=1)


def assign(model: Model) -> None:
    model.load_state_dict({name: weight.flip(0).clone() for name, weight in model.state_dict().items()}, assign=True)


def point_elsewhere(model: Model) -> None:
    for weight in model.parameters():
        weight.data = weight.data.flip(0)


def hook(model: Model) -> None:
    model.layers[0].ffn.block.register_forward_hook(lambda module, args, out: -out)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
def test_a_graph_is_replayed_for_its_model_as_captured(recorded: type[Recorded]) -> None:
    """Not for another model of equal specs, and not after the weights have moved or a hook was added."""
    model, plain = (randomised(zoo.spec("qwen3", tiny=True)) for _ in range(2))
    model.compile(backend="eager")
    tokens, cache = tokens_of(model.spec, 1, 23), model.new_cache(1, 23)
    steps(model, cache, tokens)
    steps(model, cache, tokens)
    assert recorded.made == 1
    model.layers[0].attn.block.o.weight.mul_(1.0)  # in place: the memory that a graph reads
    steps(model, cache, tokens)
    assert recorded.made == 1
    other = randomised(model.spec, seed=1)
    expected = steps(other, other.new_cache(1, 23), tokens)
    other.compile(backend="eager")
    assert_equal(steps(other, cache, tokens), expected)
    assert recorded.made == 2
    made = recorded.made
    for edit in (assign, point_elsewhere, hook):
        for each in (model, plain):
            edit(each)
        assert_equal(steps(model, cache, tokens), steps(plain, plain.new_cache(1, 23), tokens), edit.__name__)
        made += edit is not hook
        assert recorded.made == made, edit.__name__


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize("name", screen())
def test_replayed_steps_equal_eager_ones(name: str) -> None:
    """Two caches in turns, each with its own graph, emptied and filled again."""
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
                assert_equal(logits, expected[:, i : i + 1])
    assert len(fast._compiled.graphs) == len(caches)
    assert all(cache.length == LENGTH for cache in caches)


@torch.no_grad()
@pytest.mark.gpu
def test_the_next_step_does_not_overwrite_logits() -> None:
    model = randomised(zoo.spec("qwen3", tiny=True)).cuda()
    model.compile()
    tokens = tokens_of(model.spec, 1, LENGTH).cuda()
    cache = model.new_cache(1, LENGTH)
    model(tokens[:, :-2], cache)
    first = model(tokens[:, -2:-1], cache)
    kept = first.clone()
    model(tokens[:, -1:], cache)
    assert torch.equal(first, kept)
