"""RMSNorm (Zhang and Sennrich 2019) that rounds like released models, LayerNorm (Ba et al. 2016), and a scalar that
multiplies the output of a layer (Gemma 4)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.collectives import Group, mean_over_ranks
from zoo.core.float32 import upcast_dtype
from zoo.costs import Breakdown
from zoo.facts import Fact
from zoo.registry import Block

__all__ = ["LayerNorm", "LayerScale", "Norm", "RMSNorm"]


class Norm(Block, abstract=True):
    """Normalises the last axis. Its module maps (..., dim) to the same shape.

    The module's `identity` maps each parameter to the value at which the module only normalises.
    """

    eps: float
    role = "norm"
    means: ClassVar[int] = 0  # number of means over the axis; each takes a sum over ranks (0: indivisible)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {}  # no matrix products


@dataclass(frozen=True)
class RMSNorm(Norm):
    """x / rms(x) * w, with rms(x) = sqrt(mean(x^2) + eps) in float32.

    `unit_offset` multiplies by 1 + w (Gemma). `scale_in_fp32` rounds to the input's dtype after the multiplication by
    the weight (OLMo 2, gpt-oss, Gemma) and not before it (Llama). If `weight` is false, nothing is learned (Llama 4's
    queries and keys).
    """

    eps: float
    unit_offset: bool = False
    scale_in_fp32: bool = False
    weight: bool = True

    means: ClassVar = 1

    def check(self) -> None:
        self.require(self.weight or not self.unit_offset, "unit_offset needs a weight")

    def build(self, dim: int) -> nn.Module:
        return _RMSNorm(self, dim)

    def params(self, dim: int) -> int:
        return dim if self.weight else 0

    def facts(self) -> tuple[Fact, ...]:
        return self.in_use(
            *(Fact("kind", "RMSNorm"), Fact("eps", self.eps, phrase="eps {:g}")),
            Fact("unit_offset", phrase="weight 1 + w"),
            Fact("weight", phrase="no weight"),
            Fact("scale_in_fp32", phrase="multiplied in float32"),
        )


class _RMSNorm(nn.Module):
    group: Group | None = None  # the ranks that divide the axis into equal parts, if they do

    def __init__(self, spec: RMSNorm, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(dim)) if spec.weight else None
        self.identity = {"weight": 0.0 if spec.unit_offset else 1.0}

    def forward(self, x: Tensor) -> Tensor:
        normed = self.normed(x.to(upcast_dtype(x.dtype)))
        if self.weight is None:
            return normed.to(x.dtype)
        if not self.spec.scale_in_fp32:
            normed = normed.to(x.dtype)
        weight = self.weight.to(upcast_dtype(self.weight.dtype)) + 1.0 if self.spec.unit_offset else self.weight
        return (normed * weight).to(x.dtype)

    def normed(self, x: Tensor) -> Tensor:
        """x / rms(x)"""
        if self.group is None:
            return F.rms_norm(x, x.shape[-1:], eps=self.spec.eps)
        mean = mean_over_ranks(x.square().mean(-1, keepdim=True), self.group)
        return x * torch.rsqrt(mean + self.spec.eps)


@dataclass(frozen=True)
class LayerNorm(Norm):
    """(x - mean(x)) / sqrt(var(x) + eps) * w + b, with the biased variance. If `bias` is false, there is no b."""

    eps: float
    bias: bool = True

    means: ClassVar = 2

    def build(self, dim: int) -> nn.Module:
        return _LayerNorm(self, dim)

    def params(self, dim: int) -> int:
        return 2 * dim if self.bias else dim

    def facts(self) -> tuple[Fact, ...]:
        eps, unbiased = Fact("eps", self.eps, phrase="eps {:g}"), Fact("bias", phrase="no bias", noun="biases")
        return self.in_use(Fact("kind", "LayerNorm"), eps, unbiased)


class _LayerNorm(nn.Module):
    group: Group | None = None  # as in _RMSNorm

    def __init__(self, spec: LayerNorm, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if spec.bias else None
        self.identity = {"weight": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        if self.group is None:
            weight, bias = (part if part is None else part.to(x.dtype) for part in (self.weight, self.bias))
            return F.layer_norm(x, self.weight.shape, weight, bias, self.spec.eps)
        wide = x.to(upcast_dtype(x.dtype))
        centred = wide - mean_over_ranks(wide.mean(-1, keepdim=True), self.group)
        variance = mean_over_ranks(centred.square().mean(-1, keepdim=True), self.group)
        y = centred * torch.rsqrt(variance + self.spec.eps) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@dataclass(frozen=True)
class LayerScale(Block):
    """w * x, with one scalar w from the checkpoint. It is not trained: the reference has a buffer. A fresh w is 1."""

    role = "scale"

    def build(self, dim: int) -> nn.Module:
        return _LayerScale()

    def param_breakdown(self, dim: int) -> Breakdown:
        return {"norm": 1}

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {}  # no matrix products

    def describe(self) -> str:
        return "output scaled by a stored scalar"


class _LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1), requires_grad=False)
        self.identity = {"weight": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        return (x * self.weight).to(x.dtype)  # returns x's dtype, as norms do, whatever dtype the scalar was cast to
