"""The gated delta rule, a linear recurrence that overwrites the value stored under a key: Gated DeltaNet (Yang et al.
2025) has one decay per head, Kimi Delta Attention (Kimi Team 2025) one decay per key channel."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.blocks.parts import Parts, PartsModule, TableMixer, conv, matrix, normed, vector
from zoo.core.float32 import upcast
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.recurrence import (
    gated_delta_flops,
    gated_delta_rule,
    initial_decay_rates,
    initial_time_steps,
    l2_normalise,
)
from zoo.costs import Breakdown, CacheSpec, State
from zoo.facts import Fact
from zoo.sharding import Divide

__all__ = ["KDA", "GatedDeltaNet"]

STREAMS = "q", "k", "v"  # the streams of KDA


@dataclass(frozen=True)
class GatedDeltaNet(TableMixer):
    """Gated DeltaNet. Each of `value_heads` heads has a state of `key_dim` x `value_dim`. Groups of value_heads /
    key_heads heads share a query and a key.

    A convolution mixes queries, keys and values over the last `conv` tokens. Each token decays the state by one factor
    per head, exp(-exp(A_log) softplus(decay(x) + dt_bias)). It then overwrites the fraction beta = sigmoid(beta(x)) of
    the value stored under its key. The output of each head is normalised and then multiplied by silu(gate(x)).
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
        return _GatedDeltaNet(self, self.parts(dim))

    @property
    def mixed_widths(self) -> tuple[int, int, int]:
        """The widths of all heads' queries, keys and values: the sections of `qkv` and of the convolution, in order."""
        keys = self.key_heads * self.key_dim
        return keys, keys, self.value_heads * self.value_dim

    def parts(self, dim: int) -> Parts:
        width, mixed = self.value_heads * self.value_dim, sum(self.mixed_widths)
        rows = tuple(zip(("key_heads", "key_heads", "value_heads"), self.mixed_widths, strict=True))
        return {
            "qkv": matrix(dim, mixed, rows=rows),
            "gate": matrix(dim, width, rows="value_heads"),
            "beta": matrix(dim, self.value_heads, rows="value_heads"),
            "decay": matrix(dim, self.value_heads, rows="value_heads"),
            "o": matrix(width, dim, columns="value_heads"),
            "conv": conv(mixed, self.conv, rows=rows),
            "A_log": vector(self.value_heads, rows="value_heads"),
            "dt_bias": vector(self.value_heads, rows="value_heads"),
            "norm": normed(self.norm, self.value_dim),
        }

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns the FLOPs by part. `scores` counts the recurrence (zoo.core.ops.recurrence)."""
        sizes = self.key_heads, self.value_heads, self.key_dim, self.value_dim
        scores = gated_delta_flops(new, *sizes, causal=causal)
        return {"projections": self.projection_flops(dim, new), "scores": scores}

    def cache_spec(self) -> CacheSpec:
        recurrent = State("recurrent", (self.value_heads, self.key_dim, self.value_dim), in_float32=True)
        return CacheSpec(state=(State("conv", (self.conv - 1, sum(self.mixed_widths))), recurrent))

    def facts(self) -> tuple[Fact, ...]:
        sizes = self.value_heads, self.value_dim, self.key_heads, self.key_dim
        heads = Fact("value_heads", sizes, "heads", "{} heads of {} on {} key heads of {}")
        return Fact("kind", "Gated DeltaNet"), heads, Fact("conv", self.conv, "tokens", "convolution over {}")


class _GatedDeltaNet(PartsModule):
    def __init__(self, spec: GatedDeltaNet, parts: Parts) -> None:
        super().__init__(spec, parts)
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


@dataclass(frozen=True)
class KDA(TableMixer):
    """Kimi Delta Attention. Each of `heads` heads has a state of `head_dim` x `head_dim`.

    A convolution mixes queries, keys and values over the last `conv` tokens. Each token decays a head's key channel by
    the factor exp(-exp(A_log) softplus(decay(x) + dt_bias)), with one A_log per head and one dt_bias per channel. It
    then overwrites the fraction beta = sigmoid(beta(x)) of the value stored under its key. The output of each head is
    normalised and then multiplied by sigmoid(gate(x)). The projections `decay` and `gate` have rank head_dim.
    """

    heads: int
    head_dim: int
    conv: int
    norm: Norm

    divides: ClassVar = {"heads": Divide.EVENLY}

    def check(self) -> None:
        self.require(self.conv > 1, f"conv={self.conv} must be at least 2 tokens")

    def resized(self, to: Any) -> dict[str, Any]:
        return to.plain_heads(self)

    def build(self, dim: int) -> nn.Module:
        return _KDA(self, self.parts(dim))

    @property
    def width(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    def parts(self, dim: int) -> Parts:
        down, up = matrix(dim, self.head_dim), matrix(self.head_dim, self.width, rows="heads")
        return {
            **dict.fromkeys(STREAMS, matrix(dim, self.width, rows="heads")),
            "beta": matrix(dim, self.heads, rows="heads"),
            "o": matrix(self.width, dim, columns="heads"),
            **{"decay.down": down, "decay.up": up, "gate.down": down, "gate.up": up},
            **{f"{name}_conv": conv(self.width, self.conv, rows="heads") for name in STREAMS},
            "A_log": vector(self.heads, rows="heads"),
            "dt_bias": vector(self.width, rows="heads"),
            "norm": normed(self.norm, self.head_dim),
        }

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns the FLOPs by part. `scores` counts the recurrence (zoo.core.ops.recurrence)."""
        sizes = self.heads, self.heads, self.head_dim, self.head_dim
        scores = gated_delta_flops(new, *sizes, per_channel=self.head_dim > 1, causal=causal)
        return {"projections": self.projection_flops(dim, new), "scores": scores}

    def cache_spec(self) -> CacheSpec:
        convs = (State(name, (self.conv - 1, self.width)) for name in STREAMS)
        recurrent = State("recurrent", (self.heads, self.head_dim, self.head_dim), in_float32=True)
        return CacheSpec(state=(*convs, recurrent))

    def facts(self) -> tuple[Fact, ...]:
        heads = Fact("heads", (self.heads, self.head_dim), "heads", "{} heads of {}")
        return Fact("kind", "KDA"), heads, Fact("conv", self.conv, "tokens", "convolution over {}")


class _KDA(PartsModule):
    def __init__(self, spec: KDA, parts: Parts) -> None:
        super().__init__(spec, parts)
        self.identity = {
            "A_log": initial_decay_rates(spec.heads),
            "dt_bias": initial_time_steps(spec.head_dim) * spec.heads,
        }

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        q, k, v = (self._stream(name, x, cache) for name in STREAMS)
        steps = F.softplus(upcast(self.decay(x)) + upcast(self.dt_bias))
        out, state = gated_delta_rule(
            l2_normalise(q) * self.spec.head_dim**-0.5,
            l2_normalise(k),
            v,
            -upcast(self.A_log).exp().unsqueeze(-1) * self._heads(steps),
            self.beta(x).sigmoid(),
            cache.state("recurrent", x),
        )
        cache.set_state("recurrent", state)
        # All in float32, except that the recurrence's output is rounded to x's dtype, as in the released code.
        normed = self.norm(upcast(out.to(x.dtype)))
        return self.o((normed * self._heads(upcast(self.gate(x))).sigmoid()).to(x.dtype).flatten(2))

    def _stream(self, name: str, x: Tensor, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> queries, keys or values (b, t, h, d), mixed over the last tokens."""
        projection, conv = getattr(self, name), getattr(self, f"{name}_conv")
        y, last = conv(projection(x), cache.state(name, x))
        cache.set_state(name, last)
        return self._heads(y)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.spec.heads, self.spec.head_dim))
