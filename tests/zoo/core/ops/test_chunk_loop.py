"""The operator that passes the state from chunk to chunk: its gradient, and the layouts that it promises the
compiler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.core.ops.chunk_loop import _loop, _loop_backward_operator, _loop_operator

pytestmark = pytest.mark.usefixtures("_float64")

S, N, C, D, W = 2, 3, 4, 5, 6


def streams(erases: bool, columns: int = 1) -> list[Tensor | None]:
    """Returns kept, write, erase, inverse, value and state."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape).requires_grad_()

    erase, inverse = (random(S, N, C, D), random(S, N, C, C)) if erases else (None, None)
    return [random(S, N, columns, 1), random(S, N, C, D), erase, inverse, random(S, N, C, W), random(S, D, W)]


@pytest.mark.parametrize("columns", [1, D])
@pytest.mark.parametrize("erases", [True, False])
def test_its_gradient_is_numerical_differentiation_s(erases: bool, columns: int) -> None:
    assert torch.autograd.gradcheck(_loop_operator, streams(erases, columns))


@pytest.mark.parametrize("erases", [True, False])
def test_it_is_the_loop_and_keeps_the_compiler_s_rules(erases: bool) -> None:
    given = streams(erases)
    for found, expected in zip(_loop_operator(*given), _loop(*given), strict=True):
        assert torch.equal(found, expected)
    torch.library.opcheck(_loop_operator, given)


@torch.no_grad()
@pytest.mark.parametrize("erases", [True, False])
def test_transposed_gradients_give_results_as_the_compiler_is_told(erases: bool) -> None:
    kept, write, erase, inverse, value, _ = streams(erases)
    d_starts, d_state = torch.randn(S, N, W, D).mT, torch.randn(S, W, D).mT
    found = _loop_backward_operator(d_starts, torch.randn(value.shape), d_state, kept, write, erase, inverse)
    assert all(each.is_contiguous() for each in found)
