"""The gated short convolution of LFM2 (Liquid AI 2025), in which a token sees only the last few tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from zoo.blocks.parts import Parts, PartsModule, TableMixer, conv, matrix
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.costs import Breakdown, CacheSpec, State
from zoo.facts import Fact
from zoo.sharding import Divide

__all__ = ["ShortConv"]


@dataclass(frozen=True)
class ShortConv(TableMixer):
    """o(C * convolution(B * u)), where B, C and u are projections of x to `channels` channels. The convolution runs
    over the last `conv` tokens, channel by channel."""

    channels: int
    conv: int

    divides: ClassVar = {"channels": Divide.ANY}

    def check(self) -> None:
        self.require(self.conv > 1, f"conv={self.conv} must be at least 2 tokens")

    def resized(self, to: Any) -> dict[str, Any]:
        return {"channels": to.share(self.channels)}

    def build(self, dim: int) -> nn.Module:
        return _ShortConv(self, self.parts(dim))

    def parts(self, dim: int) -> Parts:
        return {
            "input": matrix(dim, 3 * self.channels, rows=(("channels", self.channels),) * 3),  # B, C, u
            "o": matrix(self.channels, dim, columns="channels"),
            "conv": conv(self.channels, self.conv, silu=False, rows="channels"),
        }

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {"projections": self.projection_flops(dim, new)}

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(state=(State("conv", (self.conv - 1, self.channels)),))

    def facts(self) -> tuple[Fact, ...]:
        sizes = Fact("channels", (self.channels, self.conv), "channels", "of {} channels over {}")
        return Fact("kind", "short convolution"), sizes

    def describe(self) -> str:
        return " ".join(map(str, self.facts()))


class _ShortConv(PartsModule):
    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        before, after, u = self.input(x).chunk(3, dim=-1)
        y, last = self.conv(before * u, cache.state("conv", x))
        cache.set_state("conv", last)
        return self.o(after * y)
