"""The causal depthwise convolution against torch's, whole and in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.exact import assert_equal
from zoo.core.ops.causal_conv import CausalConv, causal_conv, plain

pytestmark = pytest.mark.usefixtures("_float64")


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_torch_s_convolution_of_padded_inputs(taps: int, has_bias: bool) -> None:
    x, weight = torch.randn(2, 9, 5), torch.randn(5, 1, taps)
    bias = torch.randn(5) if has_bias else None
    state = torch.randn(2, taps - 1, 5)
    y, after = causal_conv(x, weight, bias, state)
    assert_equal(y, plain(x, weight, bias, state))
    assert torch.equal(after, x[:, 1 - taps :])


def test_pieces_shorter_than_the_taps_continue() -> None:
    x, weight, state = torch.randn(2, 12, 5), torch.randn(5, 1, 4), torch.zeros(2, 3, 5)
    whole, last = causal_conv(x, weight, None, state)
    outs = []
    for piece in x.split([1, 2, 1, 5, 3], dim=1):
        y, state = causal_conv(piece, weight, None, state)
        outs.append(y)
    assert_equal(torch.cat(outs, dim=1), whole)
    assert torch.equal(state, last)


def test_bfloat16_is_rounded_once() -> None:
    x, weight, state = (
        torch.randn(2, 50, 8).bfloat16(),
        torch.randn(8, 1, 4).bfloat16(),
        torch.zeros(2, 3, 8).bfloat16(),
    )
    exact, _ = causal_conv(x.float(), weight.float(), None, state.float())
    y, after = causal_conv(x, weight, None, state)
    assert after.dtype == torch.bfloat16
    assert torch.equal(y, exact.bfloat16())


def test_silu_is_optional() -> None:
    x, state = torch.randn(1, 6, 3), torch.zeros(1, 1, 3)
    linear, active = CausalConv(3, 2, bias=True, silu=False), CausalConv(3, 2, bias=True)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.copy_(torch.randn(weight.shape))
    active.load_state_dict(linear.state_dict())
    assert_equal(active(x, state)[0], F.silu(linear(x, state)[0]))
