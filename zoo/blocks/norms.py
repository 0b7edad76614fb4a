"""RMSNorm (Zhang and Sennrich 2019) in the three roundings that released models use."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.costs import Breakdown
from zoo.registry import Block

__all__ = ["RMSNorm"]


@dataclass(frozen=True)
class RMSNorm(Block):
    """x / rms(x) * w, with rms(x) = sqrt(mean(x^2) + eps) in float32.

    `unit_offset` multiplies by 1 + w (Gemma). `scale_in_fp32` rounds to the input's dtype after the weight (OLMo 2,
    gpt-oss, Gemma) and not before it (Llama).
    """

    eps: float
    unit_offset: bool = False
    scale_in_fp32: bool = False

    role = "norm"

    def build(self, dim: int) -> nn.Module:
        return _RMSNorm(self, dim)

    def params(self, dim: int) -> int:
        return dim

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {}  # no matrix products

    def describe(self) -> str:
        offset = ", weight 1 + w" if self.unit_offset else ""
        rounding = ", multiplied in float32" if self.scale_in_fp32 else ""
        return f"RMSNorm, eps {self.eps:g}{offset}{rounding}"


class _RMSNorm(nn.Module):
    def __init__(self, spec: RMSNorm, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(dim))
        self.identity = {"weight": 0.0 if spec.unit_offset else 1.0}  # values at which the norm multiplies by one

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), self.weight.shape, eps=self.spec.eps)
        if not self.spec.scale_in_fp32:
            normed = normed.to(x.dtype)
        weight = self.weight.float() + 1.0 if self.spec.unit_offset else self.weight
        return (normed * weight).to(x.dtype)
