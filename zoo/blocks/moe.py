"""Mixture of experts: many feed-forward blocks, a few of which process each token (Shazeer et al. 2017). It can stand
beside a dense feed-forward (Gemma 4)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.blocks.feed_forward import GLU, FeedForward, LinearFeedForward
from zoo.blocks.norms import Norm
from zoo.blocks.routers import Router
from zoo.core.forward_context import ForwardContext
from zoo.core.ops.experts import Linears, expert_outputs, mixture, separate_mixture
from zoo.core.ops.linear import Linear
from zoo.costs import Breakdown, linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Block, Composite
from zoo.sharding import Cut, Cuts, FirstRankOnly, Rank, prefixed

__all__ = ["DenseAndMoE", "MoE"]


@dataclass(frozen=True)
class MoE(FeedForward):
    """A mixture of `experts` equal blocks `expert`. The `router` chooses k experts for each token; a `shared` expert
    processes every token.

    With `latent`, routed experts have inputs and outputs of that width; a linear map before them and one after them
    change the width (Nemotron 3 Super). The router and the shared expert see x itself.
    """

    experts: int
    expert: FeedForward
    router: Router
    shared: FeedForward | None = None
    latent: int | None = None

    @property
    def routed(self) -> int:
        """The number of experts that the router chooses from."""
        return self.experts

    def check(self) -> None:
        self.router.check_experts(self.routed)
        inner = [part for each in (self.expert, self.shared) if each for part in each.walk() if isinstance(part, MoE)]
        self.require(not inner, "expert and shared must be dense, and hold no MoE")

    @property
    def width(self) -> int:
        return self.expert.width

    def with_width(self, width: int) -> Self:
        """Returns this block with routed experts of another width. The shared expert's width changes in proportion."""
        shared = self.shared
        if shared is not None:
            shared = shared.with_width(max(1, round(width * shared.width / self.expert.width)))
        return replace(self, expert=self.expert.with_width(width), shared=shared)

    def resized(self, to: Any) -> dict[str, Any]:
        return to.experts(self) | {"latent": self.latent and to.share(self.latent)}

    def build(self, dim: int) -> nn.Module:
        return MoEModule(self, dim)

    def expert_params(self, dim: int) -> int:
        """The number of parameters of one routed expert."""
        return self.expert.params(self.latent or dim)

    def param_breakdown(self, dim: int) -> Breakdown:
        latent = 2 * linear_params(dim, self.latent) if self.latent else 0
        return {
            "routed": self.experts * self.expert_params(dim) + latent,
            "shared": self.shared.params(dim) if self.shared else 0,
            "router": self.router.params(dim, self.routed),
        }

    def idle_params(self, dim: int, tokens: int) -> float:
        idle = self.experts * (1 - self.router.k / self.routed) ** tokens  # expected number of experts without a token
        return idle * self.expert_params(dim)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        latent = 2 * linear_flops(new, dim, self.latent) if self.latent else 0
        return {
            "routed": self.router.k * self.expert.flops(self.latent or dim, past, new, causal) + latent,
            "shared": self.shared.flops(dim, past, new, causal) if self.shared else 0,
            "router": linear_flops(new, dim, self.routed),
        }

    @property
    def sums_over_ranks(self) -> bool:
        return bool(self.expert.cuts())

    def shard(self, rank: Rank) -> Self:
        """Returns the spec of one rank's shard, which holds a part of the width of every expert."""
        same = self.shared is None or bool(self.shared.cuts()) == bool(self.expert.cuts())
        self.require(same, "ranks divide its experts and its shared expert, or neither")
        return super().shard(rank)

    def cuts(self) -> Cuts:
        shared = prefixed("shared", self.shared.cuts()) if self.shared else {}
        own = self.expert.cuts()
        if not isinstance(self.expert, LinearFeedForward):  # one module per expert
            modules = (prefixed(f"experts.{e}", own) for e in range(self.experts))
            return shared | {name: cut for each in modules for name, cut in each.items()}
        stacked: dict[str, Cut | FirstRankOnly] = {}
        for name, cut in own.items():
            assert isinstance(cut, Cut)
            stacked[name] = inside = replace(cut, dim=cut.dim + 1)  # a stack has the experts first
            stacked[f"{name}_bias"] = inside if cut.dim == 0 else FirstRankOnly()
        return shared | prefixed("experts", stacked)

    def facts(self) -> tuple[Fact, ...]:
        return self.in_use(
            Fact("experts", (self.experts, self.router.k), "experts", "{:,} experts ({:,} active)"),
            Fact("latent", self.latent, phrase="latent of {}", noun="latent of experts"),
            Fact("shared", phrase="shared expert"),
        )

    def describe(self) -> str:
        shared = f" + shared ({self.shared.describe()})" if self.shared else ""
        latent = f" over a latent of {self.latent}" if self.latent else ""
        return f"MoE {self.experts} x ({self.expert.describe()}){latent}{shared}, {self.router.describe()}"


class MoEModule(nn.Module):
    """A mixture of experts."""

    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__()
        self.router = spec.router.build(dim, spec.routed)
        experts = StackedExperts if isinstance(spec.expert, LinearFeedForward) else _ExpertModules
        self.experts = experts(spec, spec.latent or dim)
        self.latent_in = Linear(dim, spec.latent, bias=False) if spec.latent else None
        self.latent_out = Linear(spec.latent, dim, bias=False) if spec.latent else None
        self.shared = spec.shared.build(dim) if spec.shared else None
        if spec.latent:  # latent_out, not the experts, computes the block's output
            self.residual_outputs: tuple[str, ...] = ("latent_out",)
            self.experts.residual_outputs = ()

    def forward(self, x: Tensor, ctx: ForwardContext | None = None, routed_by: Tensor | None = None) -> Tensor:
        """(b, t, dim) -> (b, t, dim). The router sees `routed_by` if it is given, else x."""
        weights, chosen = self.router(x if routed_by is None else routed_by, ctx)
        out = self.experts(x if self.latent_in is None else self.latent_in(x), weights, chosen)
        if self.latent_out is not None:
            out = self.latent_out(out)
        return out if self.shared is None else out + self.shared(x, ctx)


class StackedExperts(nn.Module):
    """All experts of a layer, with the matrices of each linear map stacked: (experts, outputs, inputs)."""

    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__()
        assert isinstance(spec.expert, LinearFeedForward)
        self.spec, self.scales_input = spec.expert, spec.router.scales_input
        for name, fan_in, fan_out in spec.expert.linears(dim):
            self.register_parameter(name, nn.Parameter(torch.empty(spec.experts, fan_out, fan_in)))
            bias = nn.Parameter(torch.empty(spec.experts, fan_out)) if spec.expert.bias else None
            self.register_parameter(f"{name}_bias", bias)
            self.residual_outputs: tuple[str, ...] = (name,)  # the last map computes the output

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (b, t, dim), weights (b, t, k), expert ids (b, t, k) -> weighted sums of expert outputs (b, t, dim)."""
        join = self.spec.act.join if type(self.spec) is GLU else None
        return mixture(x, weights, chosen, self._linears(), self.spec.combine, join, self.scales_input)

    def outputs(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x (b, t, dim), expert ids (b, t, k) -> the output of each chosen expert (b, t, k, dim)."""
        return expert_outputs(x, chosen, self._linears(), self.spec.combine)

    def _linears(self) -> Linears:
        return {name: (getattr(self, name), getattr(self, f"{name}_bias")) for name, *_ in self.spec.linears(1)}


class _ExpertModules(nn.ModuleList):
    """Experts that are more than linear layers and a function: one module per expert."""

    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__(spec.expert.build(dim) for _ in range(spec.experts))
        self.scales_input = spec.router.scales_input

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (b, t, dim), weights (b, t, k), expert ids (b, t, k) -> weighted sums of expert outputs (b, t, dim)."""
        experts = [partial(_one_sequence, expert) for expert in self]
        return separate_mixture(x, weights, chosen, experts, self.scales_input)


def _one_sequence(expert: nn.Module, x: Tensor) -> Tensor:
    """x (n, dim) -> (n, dim), as one sequence of n tokens."""
    y: Tensor = expert(x.unsqueeze(0)).squeeze(0)
    return y


@dataclass(frozen=True)
class DenseAndMoE(Composite, FeedForward):
    """norm(dense(norm(x))) + norm(routed(norm(x))), with four separate norms of one spec. The router sees x itself."""

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
        """Returns this block with another dense width. The routed experts' width changes in proportion."""
        routed = max(1, round(width * self.routed.width / self.dense.width))
        return replace(self, dense=self.dense.with_width(width), routed=self.routed.with_width(routed))

    def build(self, dim: int) -> nn.Module:
        return _DenseAndMoE(self, dim)

    def blocks(self) -> Iterator[Block]:
        return iter((self.dense, self.routed, *(self.norm,) * 4))

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
