"""The dense feed-forward block: a gated linear unit (Shazeer 2020)."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.forward_context import ForwardContext
from zoo.core.linear import Linear
from zoo.costs import linear_flops, linear_params
from zoo.registry import Block, Spec

__all__ = ["GLU", "Activation", "ClampedSwiGLU", "GeGLU", "SwiGLU"]


class Activation(Spec, abstract=True):
    """Combines gate and up, both (..., hidden), into (..., hidden). No parameters."""

    role = "act"

    @abstractmethod
    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """(..., hidden) twice -> (..., hidden)."""

    def describe(self) -> str:
        return type(self).__name__


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
    """gate * sigmoid(alpha * gate) * (up + 1), gate clamped from above and up on both sides at `limit` (gpt-oss)."""

    alpha: float
    limit: float

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + 1)

    def describe(self) -> str:
        return f"SwiGLU clamped at {self.limit:g}"


@dataclass(frozen=True)
class GLU(Block):
    """down(act(gate(x), up(x))), of hidden width `hidden`."""

    hidden: int
    act: Activation = SwiGLU()
    bias: bool = False

    role = "ffn"

    def build(self, dim: int) -> nn.Module:
        return _GLU(self, dim)

    def params(self, dim: int) -> int:
        return 2 * linear_params(dim, self.hidden, self.bias) + linear_params(self.hidden, dim, self.bias)

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return 3 * linear_flops(new, dim, self.hidden)

    def describe(self) -> str:
        return f"{self.act.describe()}, width {self.hidden}" + (", biases" if self.bias else "")


class _GLU(nn.Module):
    residual_outputs = ("down",)  # matrices whose products are the output

    def __init__(self, spec: GLU, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.gate = Linear(dim, spec.hidden, spec.bias)
        self.up = Linear(dim, spec.hidden, spec.bias)
        self.down = Linear(spec.hidden, dim, spec.bias)

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        return self.down(self.spec.act.join(self.gate(x), self.up(x)))
