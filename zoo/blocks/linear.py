"""A linear map that allocates and does not initialise: `zoo.build` does that once for the whole model."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """nn.Linear with its weight left as allocated. Importing what nn.Linear initialises with would cost a second."""

    def reset_parameters(self) -> None:
        """Nothing: weights come from `zoo.build` or from a checkpoint."""


def linear_params(fan_in: int, fan_out: int, bias: bool = False) -> int:
    """Parameters of a linear map."""
    return fan_in * fan_out + (fan_out if bias else 0)
