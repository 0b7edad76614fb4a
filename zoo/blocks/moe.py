"""Mixture of experts: many feed-forward blocks, of which each token visits a few (Shazeer et al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from zoo.blocks.experts import expert_linear, gathered_linear, grouped_linear
from zoo.blocks.feed_forward import FeedForward, LinearFeedForward
from zoo.blocks.glu import GLU
from zoo.blocks.routed_glu import allows_routed_glu, routed_glu
from zoo.blocks.routers import Router
from zoo.core.forward_context import ForwardContext
from zoo.core.linear import Linear, is_single_token, use_gemv
from zoo.costs import Breakdown, linear_flops, linear_params
from zoo.facts import Fact
from zoo.sharding import Cut, Cuts, FirstRankOnly, Rank, prefixed

__all__ = ["MoE"]


@dataclass(frozen=True)
class MoE(FeedForward):
    """`experts` copies of `expert`, of which `router` chooses k for each token, plus a `shared` one for all tokens.

    With `latent`, routed experts work at that width: one linear map leads into it and one back (Nemotron 3 Super); the
    router and the shared expert see x itself.
    """

    experts: int
    expert: FeedForward
    router: Router
    shared: FeedForward | None = None
    latent: int | None = None

    @property
    def routed(self) -> int:
        """The experts that the router chooses among."""
        return self.experts

    def check(self) -> None:
        self.router.check_experts(self.routed)
        inner = [part for each in (self.expert, self.shared) if each for part in each.walk() if isinstance(part, MoE)]
        self.require(not inner, "expert and shared must be dense, and hold no MoE")

    @property
    def width(self) -> int:
        return self.expert.width

    def with_width(self, width: int) -> Self:
        """The shared expert stays as many times as wide as a routed one."""
        shared = self.shared
        if shared is not None:
            shared = shared.with_width(max(1, round(width * shared.width / self.expert.width)))
        return replace(self, expert=self.expert.with_width(width), shared=shared)

    def build(self, dim: int) -> nn.Module:
        return _MoE(self, dim)

    def _expert_params(self, dim: int) -> int:
        return self.expert.params(self.latent or dim)

    def param_breakdown(self, dim: int) -> Breakdown:
        latent = 2 * linear_params(dim, self.latent) if self.latent else 0
        return {
            "routed": self.experts * self._expert_params(dim) + latent,
            "shared": self.shared.params(dim) if self.shared else 0,
            "router": self.router.params(dim, self.routed),
        }

    def active_params(self, dim: int) -> int:
        return self.params(dim) - (self.experts - self.router.k) * self._expert_params(dim)

    def read_params(self, dim: int, tokens: int) -> float:
        idle = self.experts * (1 - self.router.k / self.routed) ** tokens  # expected number without a token
        return self.params(dim) - idle * self._expert_params(dim)

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
        """Each rank holds a part of the width of every expert."""
        same = self.shared is None or bool(self.shared.cuts()) == bool(self.expert.cuts())
        self.require(same, "ranks divide its experts and its shared expert, or neither")
        return super().shard(rank)

    def cuts(self) -> Cuts:
        shared = prefixed("shared", self.shared.cuts()) if self.shared else {}
        own = self.expert.cuts()
        if not isinstance(self.expert, LinearFeedForward):  # a module for each
            modules = (prefixed(f"experts.{e}", own) for e in range(self.experts))
            return shared | {name: cut for each in modules for name, cut in each.items()}
        stacked: dict[str, Cut | FirstRankOnly] = {}
        for name, cut in own.items():
            assert isinstance(cut, Cut)
            stacked[name] = cut.stacked()
            stacked[f"{name}_bias"] = cut.stacked() if cut.dim == 0 else FirstRankOnly()
        return shared | prefixed("experts", stacked)

    def facts(self) -> tuple[Fact, ...]:
        shared = [Fact("shared", phrase="shared expert")] if self.shared else []
        latent = [Fact("latent", self.latent, phrase="latent of {}", noun="latent of experts")] if self.latent else []
        return Fact("experts", (self.experts, self.router.k), "experts", "{:,} experts ({:,} active)"), *latent, *shared

    def describe(self) -> str:
        shared = f" + shared ({self.shared.describe()})" if self.shared else ""
        latent = f" over a latent of {self.latent}" if self.latent else ""
        return f"MoE {self.experts} x ({self.expert.describe()}){latent}{shared}, {self.router.describe()}"


class _MoE(nn.Module):
    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__()
        self.router = spec.router.build(dim, spec.routed)
        experts = _Experts if isinstance(spec.expert, LinearFeedForward) else _ExpertModules
        self.experts = experts(spec, spec.latent or dim)
        self.latent_in = Linear(dim, spec.latent, bias=False) if spec.latent else None
        self.latent_out = Linear(spec.latent, dim, bias=False) if spec.latent else None
        self.shared = spec.shared.build(dim) if spec.shared else None
        if spec.latent:  # the experts' outputs are not those of the block
            self.residual_outputs: tuple[str, ...] = ("latent_out",)
            self.experts.residual_outputs = ()

    def forward(self, x: Tensor, ctx: ForwardContext | None = None, routed_by: Tensor | None = None) -> Tensor:
        """(b, t, dim) -> (b, t, dim). The router sees `routed_by` where it is given, else x."""
        weights, chosen = self.router(x if routed_by is None else routed_by, ctx)
        out = self.experts(x if self.latent_in is None else self.latent_in(x), weights, chosen)
        if self.latent_out is not None:
            out = self.latent_out(out)
        return out if self.shared is None else out + self.shared(x, ctx)


class _Experts(nn.Module):
    """All experts of a layer, the matrices of each linear map stacked: (experts, outputs, inputs)."""

    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__()
        assert isinstance(spec.expert, LinearFeedForward)
        self.spec, self.count, self.scales_input = spec.expert, spec.experts, spec.router.scales_input
        for name, fan_in, fan_out in spec.expert.linears(dim):
            self.register_parameter(name, nn.Parameter(torch.empty(spec.experts, fan_out, fan_in)))
            bias = nn.Parameter(torch.empty(spec.experts, fan_out)) if spec.expert.bias else None
            self.register_parameter(f"{name}_bias", bias)
            self.residual_outputs: tuple[str, ...] = (name,)  # the last: the matrices whose products are the output

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (b, t, dim), weights (b, t, k), expert ids (b, t, k) -> the weighted sum of the chosen (b, t, dim)."""
        if type(self.spec) is GLU and not self.scales_input:
            matrices = *self._stacked("gate"), *self._stacked("up"), *self._stacked("down")
            parameters = *matrices[::2], *matrices[1::2]
            if allows_routed_glu(x, weights, *parameters):
                return routed_glu(self.spec.act.join, x, weights, chosen, *parameters)
        if self.scales_input:
            return self.outputs(x, chosen, weights).sum(-2)
        return (self.outputs(x, chosen) * weights[..., None]).sum(-2)

    def _stacked(self, name: str) -> tuple[Tensor, Tensor | None]:
        """The matrices of a linear map, and its biases."""
        return getattr(self, name), getattr(self, f"{name}_bias")

    def outputs(self, x: Tensor, chosen: Tensor, factors: Tensor | None = None) -> Tensor:
        """x (b, t, dim), expert ids (b, t, k) -> the output of each chosen expert (b, t, k, dim); with `factors`
        (b, t, k), of x times each."""
        first = self._stacked(self.spec.linears(1)[0][0])[0]
        if use_gemv(x, first) or (x.device.type == "cuda" and is_single_token(x)):
            rows = x.unsqueeze(-2)
            return self._each(
                rows if factors is None else rows * factors[..., None],
                lambda x, weight, bias: gathered_linear(x, chosen, weight, bias),
            )
        # Tokens are sorted by expert: each expert reads its matrices once and multiplies one contiguous block.
        ids = chosen.flatten()
        order = ids.argsort(stable=True)
        counts = torch.zeros(self.count, dtype=torch.long, device=ids.device)
        counts.scatter_add_(0, ids, torch.ones_like(ids))
        tokens = x.flatten(0, -2)[order // chosen.shape[-1]]
        if factors is not None:
            tokens = tokens * factors.flatten()[order][:, None]
        if torch.compiler.is_compiling() or x.device.type == "cuda" or torch.is_grad_enabled():
            done = self._each(tokens, lambda x, weight, bias: grouped_linear(x, counts, weight, bias))
        else:  # one expert after the other: its intermediate activations stay in the processor's caches
            blocks = enumerate(tokens.split(counts.tolist()))
            done = torch.cat([self._each(block, partial(expert_linear, e)) for e, block in blocks if len(block)])
        return torch.empty_like(done).index_copy_(0, order, done).view(*chosen.shape, -1)

    def _each(self, x: Tensor, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        return self.spec.combine(lambda name, x: linear(x, *self._stacked(name)), x)


class _ExpertModules(nn.ModuleList):
    """Experts whose parameters are not those of linear maps alone: one module each, one after the other."""

    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__(spec.expert.build(dim) for _ in range(spec.experts))
        self.scales_input = spec.router.scales_input

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """As `_Experts`. Compiled, each expert computes every token: how many come to it is unknown."""
        tokens, ids, factors = x.flatten(0, -2), chosen.flatten(0, -2), weights.flatten(0, -2)
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self):
            factor = torch.where(ids == e, factors, 0).sum(-1, keepdim=True)  # (n, 1), 0 where it is not chosen
            visits = (ids == e).any(-1, keepdim=True)
            if torch.compiler.is_compiling():
                out = out + torch.where(visits, self._output(expert, tokens, factor), 0)
            else:
                rows = visits.squeeze(-1).nonzero().squeeze(-1)
                if len(rows):
                    out = out.index_add(0, rows, self._output(expert, tokens[rows], factor[rows]))
        return out.view_as(x)

    def _output(self, expert: nn.Module, x: Tensor, factor: Tensor) -> Tensor:
        """x (n, dim), the router's weights (n, 1) -> (n, dim)"""
        y: Tensor = expert((x * factor if self.scales_input else x).unsqueeze(0)).squeeze(0)
        return y if self.scales_input else y * factor
