"""A dense feed-forward and a mixture of experts in parallel, each between its own norms (Gemma 4)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from zoo.blocks.feed_forward import FeedForward
from zoo.blocks.moe import MoE
from zoo.blocks.norms import Norm
from zoo.core.forward_context import ForwardContext
from zoo.costs import Breakdown, sum_breakdowns
from zoo.registry import Block

__all__ = ["DenseAndMoE"]


@dataclass(frozen=True)
class DenseAndMoE(FeedForward):
    """norm(dense(norm(x))) + norm(routed(norm(x))), four norms of one kind. The router sees x itself."""

    dense: FeedForward
    routed: MoE
    norm: Norm

    input_norm = "dense_pre"

    def check(self) -> None:
        self.require(not any(isinstance(part, MoE) for part in self.dense.walk()), "dense must hold no MoE")

    @property
    def width(self) -> int:
        return self.dense.width

    def with_width(self, width: int) -> Self:
        """Returns this block with another dense width. The routed experts' relative width stays."""
        routed = max(1, round(width * self.routed.width / self.dense.width))
        return replace(self, dense=self.dense.with_width(width), routed=self.routed.with_width(routed))

    def build(self, dim: int) -> nn.Module:
        return _DenseAndMoE(self, dim)

    def _parts(self) -> Iterator[tuple[int, Block]]:
        """Returns (count, block) for each inner block."""
        return iter(((1, self.dense), (1, self.routed), (4, self.norm)))

    def param_breakdown(self, dim: int) -> Breakdown:
        return sum_breakdowns((n, part.param_breakdown(dim)) for n, part in self._parts())

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return sum_breakdowns((n, part.flop_breakdown(dim, past, new, causal)) for n, part in self._parts())

    def describe(self) -> str:
        return f"{self.dense.describe()} beside {self.routed.describe()}, each between norms"


class _DenseAndMoE(nn.Module):
    def __init__(self, spec: DenseAndMoE, dim: int) -> None:
        super().__init__()
        self.dense_pre, self.dense, self.dense_post = spec.norm.build(dim), spec.dense.build(dim), spec.norm.build(dim)
        self.routed_pre, self.routed = spec.norm.build(dim), spec.routed.build(dim)
        self.routed_post = spec.norm.build(dim)

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        dense = self.dense_post(self.dense(self.dense_pre(x), ctx))
        return dense + self.routed_post(self.routed(self.routed_pre(x), ctx, routed_by=x))
