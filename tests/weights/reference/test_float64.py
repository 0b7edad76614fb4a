"""The mode in which lower float dtypes are float64, and the measures of difference."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, nan
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights.reference.float64 import as_stored, in_float64, rms_error
from zoo.core.float32 import largest_difference

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


def test_the_root_mean_square_is_over_all_elements() -> None:
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert rms_error(torch.tensor([3.0, 5.0]), exact) == pytest.approx(0.2)
