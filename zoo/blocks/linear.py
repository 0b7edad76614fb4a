"""A linear map as a module, and one matrix a head."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.core.linear import gemv_reduce, linear, use_gemv


class Linear(nn.Linear):
    """nn.Linear with its weight left as allocated: `zoo.build` initialises the whole model once. Importing what
    nn.Linear initialises with would cost a second."""

    def reset_parameters(self) -> None:
        """Nothing: weights come from `zoo.build` or from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return linear(x, self.weight, self.bias)


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, t, in), weight (h, out, in) -> (b, h, t, out), a matrix for each head."""
    if not use_gemv(x.transpose(1, 2), weight):
        return x @ weight.transpose(1, 2)
    return gemv_reduce(x.squeeze(2), weight).unsqueeze(2)


def linear_params(fan_in: int, fan_out: int, bias: bool = False) -> int:
    """Parameters of a linear map."""
    return fan_in * fan_out + (fan_out if bias else 0)
