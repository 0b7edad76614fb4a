"""Gated DeltaNet (Yang et al. 2025): a linear recurrence that overwrites the value stored under a key."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.core.float32 import upcast
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.causal_conv import CausalConv
from zoo.core.ops.linear import Linear
from zoo.core.ops.recurrence import (
    gated_delta_flops,
    gated_delta_rule,
    initial_decay_rates,
    initial_time_steps,
    l2_normalise,
)
from zoo.costs import Breakdown, CacheSpec, State, linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Mixer
from zoo.sharding import Cut, Cuts, Divide

__all__ = ["GatedDeltaNet"]


@dataclass(frozen=True)
class GatedDeltaNet(Mixer):
    """Each of `value_heads` heads has a state of `key_dim` x `value_dim`; value_heads / key_heads of them share a query
    and a key.

    Queries, keys and values are mixed over the last `conv` tokens. Each token decays the state by one factor per head,
    exp(-exp(A_log) softplus(decay(x) + dt_bias)). It then overwrites the fraction beta = sigmoid(beta(x)) of the value
    stored under its key. The output of each head is normalised and then multiplied by silu(gate(x)).
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int
    norm: Norm

    divides: ClassVar = {"key_heads": Divide.REPEATED, "value_heads": Divide.EVENLY}

    def check(self) -> None:
        shared = f"key_heads={self.key_heads} must divide value_heads={self.value_heads}"
        self.require(self.value_heads % self.key_heads == 0, shared)
        self.require(self.conv > 1, f"conv={self.conv} must be at least 2 tokens")

    def resized(self, to: Any) -> dict[str, Any]:
        return to.key_and_value_heads(self)

    def build(self, dim: int) -> nn.Module:
        return _GatedDeltaNet(self, dim)

    @property
    def width(self) -> int:
        """The width of the values of all heads."""
        return self.value_heads * self.value_dim

    @property
    def mixed_widths(self) -> tuple[int, int, int]:
        """Widths of the queries, keys and values of all heads: the rows of `qkv` and of the convolution, in order."""
        keys = self.key_heads * self.key_dim
        return keys, keys, self.width

    def _projections(self, dim: int) -> tuple[tuple[int, int], ...]:
        """Returns (inputs, outputs) of the projections qkv, gate, beta, decay and o."""
        width = self.value_heads * self.value_dim
        return (
            (dim, sum(self.mixed_widths)),
            (dim, width),
            (dim, self.value_heads),
            (dim, self.value_heads),
            (width, dim),
        )

    def param_breakdown(self, dim: int) -> Breakdown:
        projections = sum(linear_params(*widths) for widths in self._projections(dim))
        own = self.conv * sum(self.mixed_widths) + 2 * self.value_heads
        return {"attn": projections + own, "norm": self.norm.params(self.value_dim)}

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns the FLOPs by part. `scores` counts the recurrence (zoo.core.ops.recurrence)."""
        projections = sum(linear_flops(new, *widths) for widths in self._projections(dim))
        sizes = self.key_heads, self.value_heads, self.key_dim, self.value_dim
        return {"projections": projections, "scores": gated_delta_flops(new, *sizes, causal=causal)}

    def cache_spec(self) -> CacheSpec:
        recurrent = State("recurrent", (self.value_heads, self.key_dim, self.value_dim), in_float32=True)
        return CacheSpec(state=(State("conv", (self.conv - 1, sum(self.mixed_widths))), recurrent))

    def cuts(self) -> Cuts:
        fields = "key_heads", "key_heads", "value_heads"
        mixed = Cut(0, tuple(self.section(*each) for each in zip(fields, self.mixed_widths, strict=True)))
        by_value_head = dict.fromkeys(("gate", "beta", "decay", "A_log", "dt_bias"), self.cut("value_heads"))
        return {"qkv": mixed, "conv": mixed, **by_value_head, "o": self.cut("value_heads", 1)}

    def facts(self) -> tuple[Fact, ...]:
        sizes = self.value_heads, self.value_dim, self.key_heads, self.key_dim
        heads = Fact("value_heads", sizes, "heads", "{} heads of {} on {} key heads of {}")
        return Fact("kind", "Gated DeltaNet"), heads, Fact("conv", self.conv, "tokens", "convolution over {}")


class _GatedDeltaNet(nn.Module):
    residual_outputs = ("o",)  # matrices whose products are the block's output

    def __init__(self, spec: GatedDeltaNet, dim: int) -> None:
        super().__init__()
        self.spec = spec
        projections = (Linear(*widths, bias=False) for widths in spec._projections(dim))
        # Rows of qkv: the queries of all heads, then all keys, then all values.
        self.qkv, self.gate, self.beta, self.decay, self.o = projections
        self.conv = CausalConv(sum(spec.mixed_widths), spec.conv)
        self.A_log, self.dt_bias = (nn.Parameter(torch.empty(spec.value_heads)) for _ in range(2))
        self.norm = spec.norm.build(spec.value_dim)
        self.identity = {
            "A_log": initial_decay_rates(spec.value_heads),
            "dt_bias": initial_time_steps(spec.value_heads),
        }

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        spec = self.spec
        mixed, last = self.conv(self.qkv(x), cache.state("conv", x))
        q, k, v = (
            part.unflatten(-1, (heads, -1))
            for part, heads in zip(
                mixed.split(spec.mixed_widths, dim=-1), (spec.key_heads, spec.key_heads, spec.value_heads), strict=True
            )
        )
        decay = -upcast(self.A_log).exp() * F.softplus(upcast(self.decay(x)) + upcast(self.dt_bias))
        out, state = gated_delta_rule(
            l2_normalise(q) * spec.key_dim**-0.5,
            l2_normalise(k),
            v,
            decay.unsqueeze(-1),
            self.beta(x).sigmoid(),
            cache.state("recurrent", x),
        )
        cache.set_state("conv", last)
        cache.set_state("recurrent", state)
        gate = F.silu(upcast(self.gate(x).unflatten(-1, (spec.value_heads, -1))))
        return self.o((self.norm(out.to(x.dtype)) * gate).to(x.dtype).flatten(2))
