"""The causal depthwise convolution against torch's, whole and in pieces."""

from __future__ import annotations

import pytest
import torch

from tests.exact import assert_equal
from zoo.core.ops.causal_conv import causal_conv, plain

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
