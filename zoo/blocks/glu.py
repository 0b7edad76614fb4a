"""Dense feed-forward blocks of linear layers, and the gated linear unit (Shazeer 2020)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.feed_forward import FeedForward
from zoo.core.forward_context import ForwardContext
from zoo.core.ops.experts import Apply
from zoo.core.ops.linear import Linear
from zoo.costs import linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Spec
from zoo.sharding import Cuts, Divide

__all__ = ["GLU", "Activation", "ClampedSwiGLU", "GeGLU", "LinearFeedForward", "SwiGLU"]


class LinearFeedForward(FeedForward, abstract=True):
    """A feed-forward of linear maps and a function that combines them. The same two methods serve a dense module and a
    mixture, where the matrices of all experts are stacked."""

    bias: bool

    @abstractmethod
    def linears(self, dim: int) -> tuple[tuple[str, int, int], ...]:
        """Returns (name, inputs, outputs) of each linear map. The product of the last one is the output."""

    @abstractmethod
    def combine(self, apply: Apply, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim). `apply(name, x)` runs the linear map of that name."""

    def build(self, dim: int) -> nn.Module:
        return _LinearFeedForward(self, dim)

    def cuts(self) -> Cuts:
        """Returns cuts along the hidden width if it is in `divides`: the last map by inputs, the others by outputs."""
        if "hidden" not in self.divides:
            return {}
        *names, last = (name for name, _, _ in self.linears(1))
        return {**{name: self.cut("hidden") for name in names}, last: self.cut("hidden", 1)}

    def params(self, dim: int) -> int:
        return sum(linear_params(fan_in, fan_out, self.bias) for _, fan_in, fan_out in self.linears(dim))

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return sum(linear_flops(new, fan_in, fan_out) for _, fan_in, fan_out in self.linears(dim))


class _LinearFeedForward(nn.Module):
    def __init__(self, spec: LinearFeedForward, dim: int) -> None:
        super().__init__()
        self.spec = spec
        for name, fan_in, fan_out in spec.linears(dim):
            self.add_module(name, Linear(fan_in, fan_out, spec.bias))
            self.residual_outputs = (name,)  # the last matrix, whose product is the output

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        return self.spec.combine(lambda name, x: getattr(self, name)(x), x)


class Activation(Spec, abstract=True):
    """Combines gate and up, both (..., hidden), into (..., hidden). No parameters."""

    role = "act"

    @abstractmethod
    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate and up, both (..., hidden) -> (..., hidden)."""

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", type(self).__name__),)


@dataclass(frozen=True)
class SwiGLU(Activation):
    """silu(gate) * up."""

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


@dataclass(frozen=True)
class GeGLU(Activation):
    """gelu(gate) * up, with gelu in its tanh form."""

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up


@dataclass(frozen=True)
class ClampedSwiGLU(Activation):
    """gate * sigmoid(alpha * gate) * (up + 1), with gate clamped from above and up on both sides at `limit` (gpt-oss).
    Without `plus_one`, up replaces up + 1: an alpha of 1 then gives a clamped SwiGLU (DeepSeek-V4)."""

    alpha: float
    limit: float
    plus_one: bool = True

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + 1 if self.plus_one else up)

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", self.limit, phrase="SwiGLU clamped at {:g}"),)


@dataclass(frozen=True)
class GLU(LinearFeedForward):
    """down(act(gate(x), up(x))), with hidden width `hidden`."""

    hidden: int
    act: Activation = SwiGLU()
    bias: bool = False

    divides: ClassVar = {"hidden": Divide.ANY}

    def linears(self, dim: int) -> tuple[tuple[str, int, int], ...]:
        return ("gate", dim, self.hidden), ("up", dim, self.hidden), ("down", self.hidden, dim)

    def combine(self, apply: Apply, x: Tensor) -> Tensor:
        return apply("down", self.act.join(apply("gate", x), apply("up", x)))

    def facts(self) -> tuple[Fact, ...]:
        biases = (Fact("bias", phrase="biases"),) if self.bias else ()
        return Fact("kind", self.act), Fact("hidden", self.hidden, phrase="width {}"), *biases
