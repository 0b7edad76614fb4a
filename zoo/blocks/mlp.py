"""The feed-forward block without a gate: two linear maps with a function between them (Vaswani et al. 2017,
section 3.3)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from zoo.blocks.glu import LinearFeedForward
from zoo.core.ops.experts import Apply
from zoo.facts import Fact
from zoo.registry import Spec
from zoo.sharding import Divide

__all__ = ["GELU", "MLP", "Pointwise", "ReLUSquared"]


class Pointwise(Spec, abstract=True):
    """A function of each element. No parameters."""

    role = "act"

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", type(self).__name__),)


@dataclass(frozen=True)
class GELU(Pointwise):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the tanh form (Hendrycks and Gimpel 2016, section 2)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


@dataclass(frozen=True)
class ReLUSquared(Pointwise):
    """max(x, 0)^2 (Primer, So et al. 2021, section 4.2)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.relu(x).square()

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", "squared ReLU"),)


@dataclass(frozen=True)
class MLP(LinearFeedForward):
    """down(act(up(x))), with hidden width `hidden`."""

    hidden: int
    act: Pointwise = GELU()
    bias: bool = False

    divides: ClassVar = {"hidden": Divide.ANY}

    def linears(self, dim: int) -> tuple[tuple[str, int, int], ...]:
        return ("up", dim, self.hidden), ("down", self.hidden, dim)

    def combine(self, apply: Apply, x: Tensor) -> Tensor:
        return apply("down", self.act.apply(apply("up", x)))

    def facts(self) -> tuple[Fact, ...]:
        biases = (Fact("bias", phrase="biases"),) if self.bias else ()
        kind = Fact("kind", self.act, phrase="MLP with {}")
        return kind, Fact("hidden", self.hidden, phrase="width {}"), *biases
