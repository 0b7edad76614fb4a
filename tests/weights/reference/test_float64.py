"""The mode that replaces narrower float dtypes by float64, the measures of difference, and repeated choices."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, nan
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from tests.models import randomised, tokens_of
from weights.reference.float64 import Selections, as_stored, in_float64
from zoo.core.float32 import largest_difference
from zoo.core.forward_context import recorded_routing
from zoo.errors import CheckFailed

X = torch.arange(3, dtype=torch.float64)
REQUESTS: dict[str, Callable[[], Tensor]] = {
    "float": lambda: X.float(),
    "half": lambda: X.half(),
    "bfloat16": lambda: X.bfloat16(),
    "to": lambda: X.to(torch.float32),
    "to a device and dtype": lambda: X.to("cpu", torch.float16),
    "to dtype=": lambda: X.to(dtype=torch.bfloat16),
    "type": lambda: X.type(torch.float32),
    "softmax": lambda: F.softmax(X, dim=-1, dtype=torch.float32),
    "sum": lambda: X.sum(dtype=torch.float32),
    "zeros": lambda: torch.zeros(2, dtype=torch.float32),
    "tensor": lambda: torch.tensor(0.1, dtype=torch.float32),
    "arange": lambda: torch.arange(0, 4, 2, dtype=torch.float32),
    "no dtype": lambda: torch.ones(2),
    "module": lambda: nn.Linear(2, 2).weight,
    "cast module": lambda: nn.Linear(2, 2).to(torch.bfloat16).weight,
    "integers": lambda: torch.arange(3).float(),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_lower_float_dtype_is_answered_with_float64(request_: Callable[[], Tensor]) -> None:
    before = request_().dtype
    with in_float64():
        assert request_().dtype == torch.float64
        with as_stored():
            assert request_().dtype == before
        assert request_().dtype == torch.float64
    assert request_().dtype == before
    assert torch.get_default_dtype() == torch.float32


def test_bits_and_integers_are_left_alone() -> None:
    with in_float64():
        assert torch.tensor([0x3F800000], dtype=torch.int32).view(torch.float32).item() == 1.0
        assert torch.arange(3).dtype == torch.int64
        assert torch.ones(1, dtype=torch.float8_e4m3fn).dtype == torch.float8_e4m3fn


def test_packed_weights_are_unpacked_as_always() -> None:
    with in_float64(), as_stored():
        assert torch.tensor([0.1]).to(torch.bfloat16).double().item() != 0.1


def test_an_error_inside_leaves_nothing_behind() -> None:
    with pytest.raises(KeyError), in_float64():
        raise KeyError
    assert torch.ones(1).float().dtype == torch.get_default_dtype() == torch.float32


def test_other_threads_are_not_in_the_mode() -> None:
    seen: list[torch.dtype] = []
    with in_float64():
        thread = Thread(target=lambda: seen.append(X.float().dtype))
        thread.start()
        thread.join()
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("value", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.5, 0.0], [0.0, 0.0], 0.5),
        ([inf, 2.0], [inf, 2.0], 0.0),
        ([-inf, 3.0], [-inf, 2.0], 0.5),
        ([inf, 2.0], [1.0, 2.0], inf),
        ([1.0, 2.0], [inf, 2.0], inf),
        ([nan, 2.0], [1.0, 2.0], nan),
        ([1.0, 2.0], [nan, 2.0], nan),
        ([], [], 0.0),
    ],
)
def test_the_largest_difference(value: list[float], expected: list[float], difference: float) -> None:
    got = largest_difference(torch.tensor(value), torch.tensor(expected))
    assert got == difference or (isnan(got) and isnan(difference))


def test_other_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\) differ"):
        largest_difference(torch.ones(2), torch.ones(1))


NAMES = ["qwen3-30b-a3b", "deepseek-v3-671b", "llama4-scout-109b", "glm5.2-744b", "deepseek-v4-flash-284b"]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_in_bfloat16_chooses_what_float64_chose(name: str) -> None:
    """Its own choices would differ. Its logits come from its own scores."""
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
    """The number of calls or their shapes differ."""
    selections, scores = Selections(), torch.arange(4.0)
    with selections:
        scores.topk(2)
    selections.replay()
    with selections:
        if k == 2:
            scores.topk(k)
        with pytest.raises(CheckFailed, match="a different number of times"):
            scores.topk(k)
