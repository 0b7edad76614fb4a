"""Choices of a pass in float64, given to a pass in another dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import zoo
from tests.models import randomised, tokens_of
from weights.reference.float64 import Selections
from zoo.core.forward_context import recorded_routing
from zoo.errors import CheckFailed

NAMES = ["qwen3-30b-a3b", "deepseek-v3-671b", "llama4-scout-109b", "glm5.2-744b", "deepseek-v4-flash-284b"]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_in_bfloat16_chooses_what_float64_chose(name: str) -> None:
    """Its own choices differ. Logits are those of its own scores."""
    spec = zoo.spec(name, tiny=True)
    exact, coarse = (randomised(spec, dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    tokens, selections = tokens_of(spec, 3, 80), Selections()

    def chosen(model: torch.nn.Module) -> list[Tensor]:
        with recorded_routing() as routing:
            model(tokens)
        return [layer.chosen.sort(-1).values for layer in routing]

    free = chosen(coarse)
    with selections:
        expected = chosen(exact)
    selections.replay()
    with selections:
        forced = chosen(coarse)
    assert all(torch.equal(a, b) for a, b in zip(forced, expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(free, expected, strict=True))


def test_values_are_those_of_the_scores_at_hand() -> None:
    selections = Selections()
    first, second = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[1.0, 5.0, 2.0]])
    calls = [lambda x: x.topk(2), lambda x: torch.topk(x, 2, dim=-1), lambda x: x.sort(descending=True)]
    with selections:
        assert calls[0](first).indices.tolist() == [[0, 2]]
        for call in calls[1:]:
            call(first)
    selections.replay()
    with selections:
        with selections.paused():
            assert calls[0](second).indices.tolist() == [[1, 2]]  # another model's
        assert torch.tensor([2, 1]).sort().indices.tolist() == [1, 0]  # of integers: an order, no choice
        for call in calls[:2]:
            result = call(second)
            assert (result.values.tolist(), result.indices.tolist()) == ([[1.0, 2.0]], [[0, 2]])
        assert calls[2](second).values.tolist() == [[1.0, 2.0, 5.0]]


@pytest.mark.parametrize("k", [1, 2])
def test_a_model_that_chooses_otherwise_often_is_an_error(k: int) -> None:
    """Another number of calls, or other shapes."""
    selections, scores = Selections(), torch.arange(4.0)
    with selections:
        scores.topk(2)
    selections.replay()
    with selections:
        if k == 2:
            scores.topk(k)
        with pytest.raises(CheckFailed, match="another number of times"):
            scores.topk(k)
