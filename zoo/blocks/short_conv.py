"""The gated short convolution of LFM2 (Liquid AI 2025): a mixer that sees only the last few tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.causal_conv import CausalConv
from zoo.core.ops.linear import Linear
from zoo.costs import Breakdown, CacheSpec, State, linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Mixer
from zoo.sharding import Cut, Cuts, Divide

__all__ = ["ShortConv"]


@dataclass(frozen=True)
class ShortConv(Mixer):
    """o(C * convolution(B * u)), where B, C and u are projections of x to `channels` channels. The convolution covers
    each channel's last `conv` tokens."""

    channels: int
    conv: int

    divides: ClassVar = {"channels": Divide.ANY}

    def check(self) -> None:
        self.require(self.conv > 1, f"conv={self.conv} must be at least 2 tokens")

    def resized(self, to: Any) -> dict[str, Any]:
        return {"channels": to.share(self.channels)}

    def build(self, dim: int) -> nn.Module:
        return _ShortConv(self, dim)

    def _projections(self, dim: int) -> tuple[tuple[int, int], ...]:
        """Returns (inputs, outputs) of the projections input and o."""
        return (dim, 3 * self.channels), (self.channels, dim)

    def params(self, dim: int) -> int:
        return sum(linear_params(*widths) for widths in self._projections(dim)) + self.conv * self.channels

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {"projections": sum(linear_flops(new, *widths) for widths in self._projections(dim))}

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(state=(State("conv", (self.conv - 1, self.channels)),))

    def cuts(self) -> Cuts:
        section = self.section("channels", self.channels)
        return {"input": Cut(0, (section,) * 3), "conv": self.cut("channels"), "o": self.cut("channels", 1)}

    def facts(self) -> tuple[Fact, ...]:
        sizes = Fact("channels", (self.channels, self.conv), "channels", "of {} channels over {}")
        return Fact("kind", "short convolution"), sizes

    def describe(self) -> str:
        return " ".join(map(str, self.facts()))


class _ShortConv(nn.Module):
    residual_outputs = ("o",)  # matrices whose products are the block's output

    def __init__(self, spec: ShortConv, dim: int) -> None:
        super().__init__()
        self.spec = spec
        # Rows of input: B, C, u.
        self.input, self.o = (Linear(*widths, bias=False) for widths in spec._projections(dim))
        self.conv = CausalConv(spec.channels, spec.conv, silu=False)

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        before, after, u = self.input(x).chunk(3, dim=-1)
        y, last = self.conv(before * u, cache.state("conv", x))
        cache.set_state("conv", last)
        return self.o(after * y)
