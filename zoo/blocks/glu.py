"""The dense feed-forward block: a gated linear unit (Shazeer 2020)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.blocks.feed_forward import Apply, LinearFeedForward
from zoo.facts import Fact
from zoo.registry import Spec
from zoo.sharding import Divide

__all__ = ["GLU", "Activation", "ClampedSwiGLU", "GeGLU", "SwiGLU"]


class Activation(Spec, abstract=True):
    """Combines gate and up, both (..., hidden), into (..., hidden). No parameters."""

    role = "act"

    @abstractmethod
    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """(..., hidden) twice -> (..., hidden)."""

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
    """gate * sigmoid(alpha * gate) * (up + 1), gate clamped from above and up on both sides at `limit` (gpt-oss).
    Without `plus_one` up is taken as it is: with an alpha of 1 that is a clamped SwiGLU (DeepSeek-V4)."""

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
    """down(act(gate(x), up(x))), of hidden width `hidden`."""

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
