"""Mamba-2 (Dao and Gu 2024): a state-space model with one decay factor per head and token."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.parts import Part, Parts, PartsModule, TableMixer, conv, matrix, vector
from zoo.core.collectives import Group, mean_over_ranks
from zoo.core.float32 import upcast
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.recurrence import initial_decay_rates, initial_time_steps, state_space, state_space_flops
from zoo.costs import Breakdown, CacheSpec, State
from zoo.facts import Fact
from zoo.sharding import Divide, Exchange

__all__ = ["Mamba2"]


@dataclass(frozen=True)
class Mamba2(TableMixer):
    """Each of `heads` heads has a state of `head_dim` x `state` elements. The heads are in `groups` groups. A group
    shares B and C, the vectors with which a token writes and reads the state's columns.

    A convolution mixes x, B and C over the last `conv` tokens. A token's time step is dt = softplus(dt(x) + dt_bias).
    The token decays the state by exp(-exp(A_log) dt) and adds dt x B^T. The output is the state times C, plus D x. It
    is multiplied by silu(gate) and then normalised over each group's channels (RMS norm with `eps`).

    `min_step`: the minimum of dt in passes of several tokens only, as in Nemotron-H's released code.
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
        return _Mamba2(self, self.parts(dim))

    @property
    def width(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def mixed_widths(self) -> tuple[int, int, int]:
        """The widths of x, B and C, in the order of the convolution's channels."""
        return self.width, self.groups * self.state, self.groups * self.state

    def parts(self, dim: int) -> Parts:
        mixed = tuple(zip(("heads", "groups", "groups"), self.mixed_widths, strict=True))
        rows = ("heads", self.width), *mixed, ("heads", self.heads)  # gate, x, B, C, dt
        return {
            "input": matrix(dim, sum(size for _, size in rows), rows=rows),
            "o": matrix(self.width, dim, columns="heads"),
            "conv": conv(sum(self.mixed_widths), self.conv, bias=True, rows=mixed),
            **dict.fromkeys(("A_log", "dt_bias", "D"), vector(self.heads, rows="heads")),
            "norm": Part(self.width, lambda: _GroupedNorm(self), rows="heads", is_norm=True),
        }

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns the FLOPs by part. `scores` counts the recurrence (zoo.core.ops.recurrence)."""
        scores = state_space_flops(new, self.groups, self.heads, self.state, self.head_dim, causal)
        return {"projections": self.projection_flops(dim, new), "scores": scores}

    def cache_spec(self) -> CacheSpec:
        recurrent = State("recurrent", (self.heads, self.head_dim, self.state), in_float32=True)
        return CacheSpec(state=(State("conv", (self.conv - 1, sum(self.mixed_widths))), recurrent))

    def exchanges(self, dim: int, ranks: int) -> tuple[Exchange, ...]:
        norm = (Exchange("all-reduce", self.groups, in_float32=True),) if self.groups < ranks else ()
        return *norm, *super().exchanges(dim, ranks)

    def facts(self) -> tuple[Fact, ...]:
        heads = Fact("heads", (self.heads, self.head_dim), "heads", "{} heads of {}")
        groups = (Fact("groups", self.groups, "groups"),) * (self.groups > 1)
        return self.in_use(
            *(Fact("kind", "Mamba-2"), heads, Fact("state", self.state, phrase="state {}"), *groups),
            Fact("conv", self.conv, "tokens", "convolution over {}"),
            Fact("min_step", self.min_step, phrase="time steps of at least {:g}"),
        )


class _Mamba2(PartsModule):
    norm: "_GroupedNorm"

    def __init__(self, spec: Mamba2, parts: Parts) -> None:
        super().__init__(spec, parts)
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
        """Makes the norm average over a whole group of channels, if several ranks share the group."""
        if whole.groups < group.rank.ranks:
            self.norm.all_groups, self.norm.group = whole.groups, group


class _GroupedNorm(nn.Module):
    """The RMS norm of x * silu(gate) over each group's channels."""

    group: Group | None = None  # the ranks that divide the model, if several ranks share one of `all_groups` groups
    all_groups: int

    def __init__(self, spec: Mamba2) -> None:
        super().__init__()
        self.groups, self.eps = spec.groups, spec.eps
        self.weight = nn.Parameter(torch.empty(spec.width))
        self.identity = {"weight": 1.0}

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x and gate (b, t, c) -> (b, t, c), in float32."""
        gated = (x * F.silu(upcast(gate))).unflatten(-1, (self.groups, -1))
        if self.group is None:
            normed = F.rms_norm(gated, gated.shape[-1:], eps=self.eps)
        else:  # this rank holds only a part of one group
            own = self.group.rank.index * self.all_groups // self.group.rank.ranks
            square = F.pad(gated.square().mean(-1), (own, self.all_groups - own - 1))  # (b, t, all groups)
            mean = mean_over_ranks(square, self.group).narrow(-1, own, 1) * self.all_groups
            normed = gated * torch.rsqrt(mean.unsqueeze(-1) + self.eps)
        return normed.flatten(-2) * upcast(self.weight)
