"""Feed-forward blocks, which compute each token by itself: their base class, and a gate on a whole block."""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.core.forward_context import ForwardContext
from zoo.core.ops.linear import Linear
from zoo.costs import linear_flops
from zoo.facts import Fact
from zoo.registry import Block

__all__ = ["FeedForward", "Gated"]


class FeedForward(Block, abstract=True):
    """A block that computes each token by itself. Its module takes x (b, t, dim) and a ForwardContext or None."""

    role = "ffn"

    @property
    def width(self) -> int:
        """The hidden width, which a budget can change: the field `hidden` unless a subclass overrides this."""
        hidden: int = vars(self)["hidden"]
        return hidden

    def with_width(self, width: int) -> Self:
        """Returns this block with another hidden width."""
        changes: dict[str, Any] = {"hidden": width}
        return replace(self, **changes)


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
