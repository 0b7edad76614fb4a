"""Hyper-connections: several parallel residual streams. Each block reads and writes them with weights that are computed
from the token itself (Zhu et al. 2024). The matrix that mixes the streams keeps their size (Xie et al. 2026, mHC).

Sizes: b sequences, t tokens, n streams of width dim.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.layer import PLACEMENTS, Placement, ResidualBranch
from zoo.blocks.norms import Norm
from zoo.core.float32 import Float32Parameters, empty, upcast_dtype
from zoo.core.ops.linear import linear
from zoo.core.ops.sinkhorn import doubly_stochastic
from zoo.costs import Breakdown, linear_flops, linear_params, sum_breakdowns
from zoo.facts import Fact
from zoo.registry import Block, Spec

__all__ = ["HyperBranch", "Streams", "hyper"]


@dataclass(frozen=True)
class Streams(Spec):
    """`count` parallel residual streams. All start as the embedding. Before the last norm they are summed, each
    multiplied by sigmoid(scale * w + bias) + eps, with one w per stream. To compute w, all streams of a token are
    divided by their common root mean square, sqrt(mean(x^2) + norm_eps), and projected."""

    count: int = 4
    eps: float = 1e-6
    norm_eps: float = 1e-6

    role = "streams"

    def check(self) -> None:
        self.require(self.count > 1, f"count={self.count} must be at least 2 streams")

    def build(self, dim: int) -> nn.Module:
        """Returns the module that sums the streams: (b, t, n, dim) -> (b, t, dim)."""
        return _Contraction(self, dim)

    def expand(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, n, dim): n copies of x."""
        return x.unsqueeze(2).expand(-1, -1, self.count, -1).contiguous()

    def param_breakdown(self, dim: int) -> Breakdown:
        """The number of parameters of the module that `build` returns, by part."""
        return self.weight_params(dim, self.count, 1)

    def flops(self, dim: int, new: int) -> int:
        """FLOPs of the module that `build` returns, for `new` tokens."""
        return linear_flops(new, self.count * dim, self.count) + linear_flops(new, self.count, dim)

    def weight_params(self, dim: int, weights: int, scales: int) -> Breakdown:
        """The number of parameters that compute `weights` weights per token from the token's streams. The weights are
        in `scales` groups with one learned scale each."""
        return {"streams": linear_params(self.count * dim, weights, bias=True) + scales}

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", self.count, "residual streams"),)


@dataclass(frozen=True)
class HyperBranch(Placement):
    """Streams X become C X + p block(pre(a X)). Here `a` weighs the streams in the block's input, `p` weighs the
    block's output in each stream, and C mixes the streams. All three are computed from the token's own streams, which
    are divided by their root mean square and projected (.):

        a = sigmoid(.) + eps;  p = 2 sigmoid(.);  C = softmax of each row + eps, columns divided by their sums, and then
        rows and columns in turn, `iterations` - 1 times (Sinkhorn and Knopp 1967): rows and columns nearly sum to 1

    Each of the three has a learned scale, and each weight a bias. They are in float32, whatever the model's dtype.
    """

    block: Block
    pre: Norm | None = None
    streams: Streams = Streams()
    iterations: int = 20

    placement = "hyper"
    reads_x_by = "weights"

    def build(self, dim: int) -> nn.Module:
        return _HyperBranch(self, dim)

    @property
    def stream_spec(self) -> Spec | None:
        return self.streams

    @property
    def formula(self) -> str:
        return "C X + p f(norm(a X))" if self.pre else "C X + p f(a X)"

    @property
    def weights(self) -> int:
        """The number of weights per token: for reading, writing and mixing the streams."""
        return self.streams.count * (2 + self.streams.count)

    def mixing_params(self, dim: int) -> Breakdown:
        """Returns the number of parameters by part, without those of the block and its norm."""
        return self.streams.weight_params(dim, self.weights, 3)

    def mixing_flops(self, dim: int, new: int) -> int:
        """Returns the FLOPs for `new` tokens, without those of the block."""
        count = self.streams.count
        return linear_flops(new, count * dim, self.weights) + linear_flops(new * (1 + count), count, dim)

    def param_breakdown(self, dim: int) -> Breakdown:
        return sum_breakdowns([(1, super().param_breakdown(dim)), (1, self.mixing_params(dim))])

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        mixing = {"streams": self.mixing_flops(dim, new)}
        return sum_breakdowns([(1, super().flop_breakdown(dim, past, new, causal)), (1, mixing)])

    def describe(self) -> str:
        return f"{self.formula} over {self.streams.describe()}, f: {self.block.describe()}"


class _StreamWeights(Float32Parameters):
    """Computes a token's weights from all its streams, in float32: errors of all layers' mixing matrices multiply."""

    in_float32 = ("weight", "bias", "scale")

    def __init__(self, streams: Streams, dim: int, weights: int, scales: int) -> None:
        super().__init__()
        self.norm_eps = streams.norm_eps
        self.weight = nn.Parameter(empty(weights, streams.count * dim))
        self.bias = nn.Parameter(empty(weights))
        self.scale = nn.Parameter(empty(scales))
        self.identity = {"scale": 1.0}

    def forward(self, x: Tensor, sizes: list[int]) -> list[Tensor]:
        """Streams (b, t, n, dim) -> weights (b, t, size) for each of the `sizes`, each with its own scale."""
        exact = upcast_dtype(x.dtype)
        flat = x.flatten(2).to(exact)
        normed = F.rms_norm(flat, flat.shape[-1:], eps=self.norm_eps)
        raw = linear(normed, self.weight.to(exact)).to(exact)
        parts = zip(raw.split(sizes, dim=-1), self.bias.to(exact).split(sizes), self.scale.to(exact), strict=True)
        return [part * scale + bias for part, bias, scale in parts]


class _Contraction(nn.Module):
    def __init__(self, spec: Streams, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.weights = _StreamWeights(spec, dim, spec.count, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, n, dim) -> (b, t, dim)"""
        (raw,) = self.weights(x, [self.spec.count])
        return _added_up(raw.sigmoid() + self.spec.eps, x)


class _HyperBranch(ResidualBranch):
    normalises_output = False

    def __init__(self, spec: HyperBranch, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.weights = _StreamWeights(spec.streams, dim, spec.weights, 3)
        self.pre = spec.pre.build(dim) if spec.pre else nn.Identity()
        self.block = spec.block.build(dim)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """Streams (b, t, n, dim) -> (b, t, n, dim)"""
        count, eps = self.spec.streams.count, self.spec.streams.eps
        read, write, mix = self.weights(x, [count, count, count * count])
        mix = doubly_stochastic(mix.unflatten(-1, (count, count)), eps, self.spec.iterations)
        out = self.block(self.pre(_added_up(read.sigmoid() + eps, x)), *context)
        written = (2 * write.sigmoid()).to(x.dtype).unsqueeze(-1) * out.unsqueeze(2)
        return mix.to(x.dtype).transpose(-1, -2) @ x + written


def _added_up(weights: Tensor, x: Tensor) -> Tensor:
    """weights (b, t, n), streams (b, t, n, dim) -> (b, t, dim)"""
    return (weights.unsqueeze(-2) @ x.to(weights.dtype)).squeeze(-2).to(x.dtype)


def hyper(norm: Norm, block: Block) -> HyperBranch:
    """C X + p block(norm(a X)) over four streams  (mHC; DeepSeek-V4, section 2.2)"""
    return HyperBranch(block, pre=norm)


PLACEMENTS["hyper"] = hyper  # registered here, because zoo.blocks.layer does not import this file
