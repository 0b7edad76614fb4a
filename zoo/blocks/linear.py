"""A linear map, in the form that is fastest for the tokens at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Up to this many tokens a product reads its matrix at the memory's speed as a sum: Inductor makes one loop of it that
# reads each weight once. The library's product reads at 0.4 of that speed for a lone token in float32 and 0.6 in
# bfloat16; from 8 tokens on it is the faster one in bfloat16.
FEW = 4


class Linear(nn.Linear):
    """nn.Linear with its weight left as allocated: `zoo.build` initialises the whole model once. Importing what
    nn.Linear initialises with would cost a second."""

    def reset_parameters(self) -> None:
        """Nothing: weights come from `zoo.build` or from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if not sums(x):
        return F.linear(x, weight, bias)
    y = side_by_side(x.squeeze(1), weight).unsqueeze(1)
    return y if bias is None else y + bias


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, t, in), weight (h, out, in) -> (b, h, t, out), a matrix for each head."""
    if not sums(x.transpose(1, 2)):
        return x @ weight.transpose(1, 2)
    return side_by_side(x.squeeze(2), weight).unsqueeze(2)


def sums(x: Tensor) -> bool:
    """Whether a product with x (b, t, ...) is best written as a sum: in a compiled function, on the CPU, for one new
    token of few sequences. Uncompiled, a sum would write the products out first."""
    if not torch.compiler.is_compiling() or x.device.type != "cpu" or x.ndim < 3:
        return False
    return x.shape[1] == 1 and x.shape[0] <= FEW


def side_by_side(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, ..., in), weight (..., out, in) -> (b, ..., out), a sum a row, which Inductor runs in one loop over the
    weights."""
    return torch.stack([dot(weight, row) for row in x.unbind()])


def dot(weight: Tensor, x: Tensor) -> Tensor:
    """weight (..., out, in), x (..., in) -> (..., out), added up in float32 at least."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return (weight.to(exact) * x.to(exact).unsqueeze(-2)).sum(-1).to(x.dtype)


def linear_params(fan_in: int, fan_out: int, bias: bool = False) -> int:
    """Parameters of a linear map."""
    return fan_in * fan_out + (fan_out if bias else 0)
