"""A linear map, in the form that is fastest for the tokens at hand."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.products import product, side_by_side, sums


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
        return product(x, weight, bias)
    y = side_by_side(x.squeeze(1), weight).unsqueeze(1)
    return y if bias is None else y + bias


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, t, in), weight (h, out, in) -> (b, h, t, out), a matrix for each head."""
    if not sums(x.transpose(1, 2)):
        return x @ weight.transpose(1, 2)
    return side_by_side(x.squeeze(2), weight).unsqueeze(2)


def linear_params(fan_in: int, fan_out: int, bias: bool = False) -> int:
    """Parameters of a linear map."""
    return fan_in * fan_out + (fan_out if bias else 0)
