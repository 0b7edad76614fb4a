"""A stored scalar that multiplies the output of a layer (Gemma 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.costs import Breakdown
from zoo.registry import Block

__all__ = ["LayerScale"]


@dataclass(frozen=True)
class LayerScale(Block):
    """w * x, with one stored scalar w. It is not trained: the reference keeps it as a buffer. A fresh w is 1."""

    role = "scale"

    def build(self, dim: int) -> nn.Module:
        return _LayerScale()

    def param_breakdown(self, dim: int) -> Breakdown:
        return {"norm": 1}

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {}  # no matrix products

    def describe(self) -> str:
        return "output times a stored number"


class _LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1), requires_grad=False)
        self.identity = {"weight": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        return (x * self.weight).to(x.dtype)  # as norms do, whatever dtype the scalar was cast to
