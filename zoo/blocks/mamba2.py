"""Mamba-2 (Dao and Gu 2024): a state-space model with one decay factor per head and token."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.collectives import Group, mean_over_ranks
from zoo.core.float32 import upcast
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.causal_conv import CausalConv
from zoo.core.ops.linear import Linear
from zoo.core.ops.recurrence import initial_decay_rates, initial_time_steps, state_space, state_space_flops
from zoo.costs import Breakdown, CacheSpec, State, linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Mixer
from zoo.sharding import Cut, Cuts, Divide, Exchange

__all__ = ["Mamba2"]


@dataclass(frozen=True)
class Mamba2(Mixer):
    """Each of `heads` heads has a state of `head_dim` x `state`. heads / groups of them share B and C, the vectors with
    which a token writes and reads the state's columns.

    x, B and C are mixed over the last `conv` tokens. A token's time step is dt = softplus(dt + dt_bias); it decays the
    state by exp(-exp(A_log) dt) and adds dt x B^T. The output is the state times C, plus D x. It is multiplied by
    silu(gate) and then normalised over each group's channels, with `eps`.

    `min_step`: the minimum time step in passes of several tokens; a single token's step has no minimum. Nemotron-H's
    released code does the same.
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    conv: int
    eps: float
    min_step: float | None = None

    divides: ClassVar = {"heads": Divide.EVENLY, "groups": Divide.REPEATED}

    def check(self) -> None:
        self.require(self.heads % self.groups == 0, f"groups={self.groups} must divide heads={self.heads}")
        self.require(self.conv > 1, f"conv={self.conv} must be at least 2 tokens")

    def resized(self, to: Any) -> dict[str, Any]:
        return to.state_space_heads(self)

    def build(self, dim: int) -> nn.Module:
        return _Mamba2(self, dim)

    @property
    def width(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def mixed_widths(self) -> tuple[int, int, int]:
        """The widths of x, B and C, in the order in which the convolution holds them."""
        return self.width, self.groups * self.state, self.groups * self.state

    def _projections(self, dim: int) -> tuple[tuple[int, int], ...]:
        """Returns (inputs, outputs) of the projections input and o."""
        return (dim, self.width + sum(self.mixed_widths) + self.heads), (self.width, dim)

    def param_breakdown(self, dim: int) -> Breakdown:
        projections = sum(linear_params(*widths) for widths in self._projections(dim))
        own = (self.conv + 1) * sum(self.mixed_widths) + 3 * self.heads
        return {"attn": projections + own, "norm": self.width}

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns the FLOPs by part. `scores` counts the recurrence (zoo.core.ops.recurrence)."""
        projections = sum(linear_flops(new, *widths) for widths in self._projections(dim))
        scores = state_space_flops(new, self.groups, self.heads, self.state, self.head_dim, causal)
        return {"projections": projections, "scores": scores}

    def cache_spec(self) -> CacheSpec:
        recurrent = State("recurrent", (self.heads, self.head_dim, self.state), in_float32=True)
        return CacheSpec(state=(State("conv", (self.conv - 1, sum(self.mixed_widths))), recurrent))

    def cuts(self) -> Cuts:
        fields = "heads", "groups", "groups"
        mixed = tuple(self.section(*each) for each in zip(fields, self.mixed_widths, strict=True))
        whole = self.section("heads", self.width), *mixed, self.section("heads", self.heads)
        by_head = dict.fromkeys(("A_log", "dt_bias", "D", "norm"), self.cut("heads"))
        return {"input": Cut(0, whole), "conv": Cut(0, mixed), **by_head, "o": self.cut("heads", 1)}

    def exchanges(self, dim: int, ranks: int) -> tuple[Exchange, ...]:
        norm = (Exchange("all-reduce", self.groups, in_float32=True),) if self.groups < ranks else ()
        return *norm, *super().exchanges(dim, ranks)

    def facts(self) -> tuple[Fact, ...]:
        heads = Fact("heads", (self.heads, self.head_dim), "heads", "{} heads of {}")
        found = [Fact("kind", "Mamba-2"), heads, Fact("state", self.state, phrase="state {}")]
        found += [Fact("groups", self.groups, "groups")] if self.groups > 1 else []
        found += [Fact("conv", self.conv, "tokens", "convolution over {}")]
        floor = Fact("min_step", self.min_step, phrase="time steps of at least {:g}")
        return (*found, floor) if self.min_step else tuple(found)


class _Mamba2(nn.Module):
    residual_outputs = ("o",)  # matrices whose products are the block's output

    def __init__(self, spec: Mamba2, dim: int) -> None:
        super().__init__()
        self.spec = spec
        # Rows of input: gate, x, B, C, dt.
        self.input, self.o = (Linear(*widths, bias=False) for widths in spec._projections(dim))
        self.conv = CausalConv(sum(spec.mixed_widths), spec.conv, bias=True)
        self.A_log, self.dt_bias, self.D = (nn.Parameter(torch.empty(spec.heads)) for _ in range(3))
        self.norm = _GroupedNorm(spec)
        self.identity = {
            "A_log": initial_decay_rates(spec.heads),
            "dt_bias": initial_time_steps(spec.heads),
            "D": 1.0,
        }

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        spec = self.spec
        gate, mixed, dt = self.input(x).split([spec.width, sum(spec.mixed_widths), spec.heads], dim=-1)
        mixed, last = self.conv(mixed, cache.state("conv", x))
        values, keys, queries = upcast(mixed).split(spec.mixed_widths, dim=-1)
        values = values.unflatten(-1, (spec.heads, -1))
        keys, queries = (part.unflatten(-1, (spec.groups, -1)) for part in (keys, queries))
        dt = F.softplus(upcast(dt) + upcast(self.dt_bias))
        if spec.min_step and x.shape[1] > 1:
            dt = dt.clamp(min=spec.min_step)
        out, state = state_space(
            queries, keys, values * dt.unsqueeze(-1), -upcast(self.A_log).exp() * dt, cache.state("recurrent", x)
        )
        cache.set_state("conv", last)
        cache.set_state("recurrent", state)
        out = out + upcast(self.D).unsqueeze(-1) * values
        return self.o(self.norm(out.flatten(2), gate).to(x.dtype))

    def over_ranks(self, whole: Mamba2, group: Group) -> None:
        """Makes the norm average over the channels of several ranks, if these share a group."""
        if whole.groups < group.rank.ranks:
            self.norm.over_ranks(whole.groups, group)


class _GroupedNorm(nn.Module):
    """The RMS norm of x * silu(gate) over each group's channels."""

    def __init__(self, spec: Mamba2) -> None:
        super().__init__()
        self.groups, self.eps = spec.groups, spec.eps
        self.weight = nn.Parameter(torch.empty(spec.width))
        self.identity = {"weight": 1.0}

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x and gate (b, t, c) -> (b, t, c), in float32."""
        gated = (x * F.silu(upcast(gate))).unflatten(-1, (self.groups, -1))
        return self.normed(gated).flatten(-2) * upcast(self.weight)

    def normed(self, x: Tensor) -> Tensor:
        """(b, t, groups, c) -> the same shape, normalised over c"""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    def over_ranks(self, groups: int, group: Group) -> None:
        """Makes the norm average over whole groups. There are `groups` of them, and this rank holds a part of one."""
        self.__class__, self.all_groups, self.group = _GroupedNormOverRanks, groups, group


class _GroupedNormOverRanks(_GroupedNorm):
    all_groups: int
    group: Group

    def normed(self, x: Tensor) -> Tensor:
        index, ranks = self.group.rank.index, self.group.rank.ranks
        own = index * self.all_groups // ranks
        square = F.pad(x.square().mean(-1), (own, self.all_groups - own - 1))  # (b, t, all groups)
        mean = mean_over_ranks(square, self.group).narrow(-1, own, 1) * self.all_groups
        return x * torch.rsqrt(mean.unsqueeze(-1) + self.eps)
