"""Causal depthwise convolution over the last few tokens, which recurrent mixers apply before their recurrence."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.float32 import upcast_dtype

__all__ = ["CausalConv", "causal_conv"]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    """Returns the outputs of `causal_conv` (b, t, c), by torch's convolution over the state and x."""
    return F.conv1d(torch.cat([state, x], dim=1).mT, weight, bias, groups=x.shape[2]).mT


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns y (b, t, c) and the next state for x (b, t, c), weight (c, 1, taps), bias (c,), state (b, taps - 1, c).

    Element (i, j) of y is the sum over m of weight[j, 0, m] * x[i - (taps - 1) + m, j], plus bias[j]. The `state` holds
    the last taps - 1 inputs of the previous pass, and zeros at the start. Sums are in float32 or float64.

    The code adds shifted inputs, which the compiler fuses into one loop. F.conv1d would need channels before tokens.
    """
    taps, new = weight.shape[2], x.shape[1]
    inputs = torch.cat([state.to(x.dtype), x], dim=1)
    exact = upcast_dtype(x.dtype)
    terms, factors = inputs.to(exact), weight.to(exact)[:, 0].unbind(-1)
    y = terms[:, taps - 1 :] * factors[-1]
    for m in range(taps - 1):
        y = torch.addcmul(y, terms.narrow(1, m, new), factors[m])
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), inputs[:, new:]


class CausalConv(nn.Module):
    """The module of `causal_conv`, followed by SiLU if `silu`. Weights are as in nn.Conv1d, but not initialised."""

    def __init__(self, channels: int, taps: int, bias: bool = False, silu: bool = True) -> None:
        super().__init__()
        self.silu = silu
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y (b, t, c) and the next state for x (b, t, c) and state (b, taps - 1, c)."""
        y, state = causal_conv(x, self.weight, self.bias, state)
        return F.silu(y) if self.silu else y, state
