"""Feed-forward blocks, which process each token separately: a gated linear unit (Shazeer 2020), two linear maps without
a gate (Vaswani et al. 2017, section 3.3), and a gate on a whole block."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.forward_context import ForwardContext
from zoo.core.ops.experts import Apply
from zoo.core.ops.linear import Linear
from zoo.costs import linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Block, Spec, field_names
from zoo.sharding import Cuts, Divide

__all__ = [
    "GELU",
    "GLU",
    "MLP",
    "Activation",
    "ClampedSwiGLU",
    "FeedForward",
    "Gated",
    "GeGLU",
    "LinearFeedForward",
    "Pointwise",
    "ReLUSquared",
    "SwiGLU",
]


class FeedForward(Block, abstract=True):
    """A block that processes each token separately. Its module takes x (b, t, dim) and a ForwardContext or None."""

    role = "ffn"
    width_field: ClassVar[str] = "hidden"  # the field that holds the hidden width

    @property
    def width(self) -> int:
        """The hidden width, in the field `width_field`. Scaling adjusts it to meet a number of parameters."""
        width: int = getattr(self, self._scalable_field)
        return width

    def with_width(self, width: int) -> Self:
        """Returns this block with another hidden width."""
        changes: dict[str, Any] = {self._scalable_field: width}
        return replace(self, **changes)

    @property
    def _scalable_field(self) -> str:
        """The name of the field that holds the hidden width. Raises SpecError if the block has no such field."""
        advice = "set width_field to the name of the field that holds its hidden width, or define width and with_width"
        has_field = self.width_field in field_names(type(self))
        self.require(has_field, f"cannot be scaled, since it has no field {self.width_field!r}: {advice}")
        return self.width_field


@dataclass(frozen=True)
class Gated(FeedForward):
    """sigmoid(w . x) * block(x): one gate for all elements of a token, as in the shared expert of Qwen3-Next."""

    block: FeedForward

    @property
    def width(self) -> int:
        return self.block.width

    def with_width(self, width: int) -> Self:
        return replace(self, block=self.block.with_width(width))

    def build(self, dim: int) -> nn.Module:
        return _Gated(self, dim)

    def params(self, dim: int) -> int:
        return self.block.params(dim) + dim

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return self.block.flops(dim, past, new, causal) + linear_flops(new, dim, 1)

    def facts(self) -> tuple[Fact, ...]:
        kind = self.block.facts()[0]
        return (kind._replace(phrase=f"gated {kind.template}"),)

    def describe(self) -> str:
        return f"gated {self.block.describe()}"


class _Gated(nn.Module):
    def __init__(self, spec: Gated, dim: int) -> None:
        super().__init__()
        self.gate = Linear(dim, 1, bias=False)
        self.block = spec.block.build(dim)

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        return torch.sigmoid(self.gate(x)) * self.block(x, ctx)


class LinearFeedForward(FeedForward, abstract=True):
    """A feed-forward of linear maps and a function that combines them. Its methods serve dense modules, and mixtures in
    which the matrices of all experts are stacked."""

    bias: bool

    @abstractmethod
    def linears(self, dim: int) -> tuple[tuple[str, int, int], ...]:
        """Returns (name, inputs, outputs) of each linear map. The last map computes the block's output."""

    @abstractmethod
    def combine(self, apply: Apply, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim). `apply(name, x)` runs the linear map of that name."""

    def build(self, dim: int) -> nn.Module:
        return _LinearFeedForward(self, dim)

    def cuts(self) -> Cuts:
        """Returns cuts along the hidden width, if ranks divide it: the last map by inputs, the others by outputs."""
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
            self.residual_outputs = (name,)  # the last map computes the output

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        return self.spec.combine(lambda name, x: getattr(self, name)(x), x)


class Activation(Spec, abstract=True):
    """A function without parameters that combines gate and up, both (..., hidden), into (..., hidden)."""

    role = "act"

    @abstractmethod
    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate and up, both (..., hidden) -> (..., hidden)."""

    @property
    def formula(self) -> str:
        """The formula of `join`, for figures."""
        return f"{self.describe()} of gate and up"

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", type(self).__name__),)


@dataclass(frozen=True)
class SwiGLU(Activation):
    """silu(gate) * up."""

    formula = "SiLU(gate) × up"

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


@dataclass(frozen=True)
class GeGLU(Activation):
    """gelu(gate) * up, with gelu in its tanh form."""

    formula = "GELU(gate) × up"

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

    @property
    def formula(self) -> str:
        gate = "SiLU(gate)" if self.alpha == 1 else f"gate × sigmoid({self.alpha:g} gate)"
        return f"{gate} × {'(up + 1)' if self.plus_one else 'up'}, clamped at {self.limit:g}"

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
        hidden = Fact("hidden", self.hidden, phrase="width {}")
        return self.in_use(Fact("kind", self.act), hidden, Fact("bias", phrase="biases"))


class Pointwise(Spec, abstract=True):
    """A function of each element, without parameters."""

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
        hidden = Fact("hidden", self.hidden, phrase="width {}")
        return self.in_use(Fact("kind", self.act, phrase="MLP with {}"), hidden, Fact("bias", phrase="biases"))
