"""Feed-forward blocks, which compute each token by itself: what they have in common, and a gate on the whole of one."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.core.forward_context import ForwardContext
from zoo.core.linear import Linear
from zoo.costs import linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Block
from zoo.sharding import Cuts

__all__ = ["FeedForward", "Gated", "LinearFeedForward"]

Apply = Callable[[str, Tensor], Tensor]  # a linear map by its name: (..., in) -> (..., out)


class FeedForward(Block, abstract=True):
    """A block that computes each token by itself. Its module takes x (b, t, dim) and a ForwardContext or None."""

    role = "ffn"

    @property
    def width(self) -> int:
        """The hidden width, which a budget can change: the field `hidden` unless a kind says otherwise."""
        hidden: int = vars(self)["hidden"]
        return hidden

    def with_width(self, width: int) -> Self:
        """The same block of another hidden width."""
        changes: dict[str, Any] = {"hidden": width}
        return replace(self, **changes)


class LinearFeedForward(FeedForward, abstract=True):
    """Linear maps, and how they are combined. It says both once, and is built dense or, in a mixture, with the matrices
    of all experts stacked."""

    bias: bool

    @abstractmethod
    def linears(self, dim: int) -> tuple[tuple[str, int, int], ...]:
        """(name, inputs, outputs) of each linear map; the last one's product is the output."""

    @abstractmethod
    def combine(self, apply: Apply, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim), with `apply(name, x)` for the linear map of that name."""

    def build(self, dim: int) -> nn.Module:
        return _LinearFeedForward(self, dim)

    def cuts(self) -> Cuts:
        """Divided by the hidden width, where a kind says so: the last map by its inputs, the others by outputs."""
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
            self.residual_outputs = (name,)  # the last: the matrix whose product is the output

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        return self.spec.combine(lambda name, x: getattr(self, name)(x), x)


@dataclass(frozen=True)
class Gated(FeedForward):
    """sigmoid(w . x) * block(x): one gate for all elements of a token, as of the shared expert of Qwen3-Next."""

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

    def active_params(self, dim: int) -> int:
        return self.block.active_params(dim) + dim

    def read_params(self, dim: int, tokens: int) -> float:
        return self.block.read_params(dim, tokens) + dim

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
