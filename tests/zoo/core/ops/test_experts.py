"""Products with stacked matrices, against one expert at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.exact import assert_as_near, assert_equal
from zoo.core.ops.experts import allows_grouped_mm, gathered_linear, grouped_linear, grouped_mm

pytestmark = pytest.mark.usefixtures("_float64")
EXPERTS, WIDE, NARROW = 6, 16, 8


def stacked(with_bias: bool) -> tuple[Tensor, Tensor | None]:
    return torch.randn(EXPERTS, NARROW, WIDE), torch.randn(EXPERTS, NARROW) if with_bias else None


def one_by_one(x: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in), ids (n,) -> (n, out)"""
    rows = [weight[e] @ row + (0 if bias is None else bias[e]) for row, e in zip(x, ids, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_the_grouped_kernel_is_as_near_as_one_product_for_each_expert(with_bias: bool) -> None:
    """The kernel takes only bfloat16."""
    ids, found = torch.tensor([0, 0, 0, 2, 3, 3, 5]), []
    counts = ids.bincount(minlength=EXPERTS)
    for _ in range(3):
        x, *parameters = (
            None if each is None else each.bfloat16() for each in (torch.randn(len(ids), WIDE), *stacked(with_bias))
        )
        exact = one_by_one(x.double(), ids, *(None if each is None else each.double() for each in parameters))
        found.append((grouped_mm(x, counts, *parameters), grouped_linear(x, counts, *parameters), exact))
    assert_as_near(*zip(*found, strict=True))


def test_the_grouped_kernel_gets_bfloat16_and_rows_of_16_bytes_alone() -> None:
    """Both widths must fit: one is a row of the inputs, the other a row of the outputs."""
    for out, width, dtype, allowed in (
        (NARROW, WIDE, torch.bfloat16, True),
        (NARROW, WIDE, torch.float32, False),
        (NARROW, WIDE + 4, torch.bfloat16, False),
        (NARROW + 1, WIDE, torch.bfloat16, False),
    ):
        x, weight = torch.empty(3, width, dtype=dtype), torch.empty(EXPERTS, out, width, dtype=dtype)
        assert allows_grouped_mm(x, weight) == allowed
    assert not allows_grouped_mm(torch.empty(3, WIDE), torch.empty(EXPERTS, NARROW, WIDE, dtype=torch.bfloat16))


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_gathered_tokens_meet_their_experts(with_bias: bool) -> None:
    """All experts of a token share one x, or each has its own."""
    ids, (weight, bias) = torch.tensor([[[1, 4, 4]], [[5, 0, 2]]]), stacked(with_bias)
    for width in (1, 3):
        x = torch.randn(2, 1, width, WIDE)
        expected = one_by_one(x.expand(2, 1, 3, WIDE).flatten(0, 2), ids.flatten(), weight, bias)
        out = gathered_linear(x, ids, weight, bias)
        assert out.shape == (2, 1, 3, NARROW)
        assert_equal(out.flatten(0, 2), expected)


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_gradients_of_sorted_tokens(with_bias: bool) -> None:
    """They equal autograd's through each row's own product. An expert without tokens has a gradient of zero."""
    ids = torch.tensor([0, 0, 0, 2, 3, 3, 5])
    weight, bias = stacked(with_bias)
    inputs = [x.requires_grad_() for x in (torch.randn(len(ids), WIDE), weight, *([] if bias is None else [bias]))]
    out = grouped_linear(inputs[0], ids.bincount(minlength=EXPERTS), weight, bias)
    upstream = torch.randn(out.shape)
    got = torch.autograd.grad(out, inputs, upstream)
    expected = torch.autograd.grad(one_by_one(inputs[0], ids, weight, bias), inputs, upstream)
    for ours, theirs in zip(got, expected, strict=True):
        assert_equal(ours, theirs)
    assert not got[1][1].any()
