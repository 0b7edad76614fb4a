"""Mixture of experts: many feed-forward blocks, of which each token visits a few (Shazeer et al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from zoo.blocks.experts import expert_linear, gathered_linear, grouped_linear
from zoo.blocks.glu import GLU
from zoo.blocks.routed_glu import allows_routed_glu, routed_glu
from zoo.blocks.routers import Router
from zoo.core.forward_context import ForwardContext
from zoo.core.linear import is_single_token, use_gemv
from zoo.costs import Breakdown, linear_flops
from zoo.registry import Block

__all__ = ["MoE"]


@dataclass(frozen=True)
class MoE(Block):
    """`experts` copies of `expert`, of which `router` chooses k for each token, plus a `shared` one for all tokens."""

    experts: int
    expert: GLU
    router: Router
    shared: GLU | None = None

    role = "ffn"

    def check(self) -> None:
        self.router.check_experts(self.experts)

    def build(self, dim: int) -> nn.Module:
        return _MoE(self, dim)

    def param_breakdown(self, dim: int) -> Breakdown:
        return {
            "routed": self.experts * self.expert.params(dim),
            "shared": self.shared.params(dim) if self.shared else 0,
            "router": self.router.params(dim, self.experts),
        }

    def active_params(self, dim: int) -> int:
        return self.params(dim) - (self.experts - self.router.k) * self.expert.params(dim)

    def read_params(self, dim: int, tokens: int) -> float:
        idle = self.experts * (1 - self.router.k / self.experts) ** tokens  # expected number without a token
        return self.params(dim) - idle * self.expert.params(dim)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {
            "routed": self.router.k * self.expert.flops(dim, past, new, causal),
            "shared": self.shared.flops(dim, past, new, causal) if self.shared else 0,
            "router": linear_flops(new, dim, self.experts),
        }

    def describe(self) -> str:
        shared = f" + shared ({self.shared.describe()})" if self.shared else ""
        return f"MoE {self.experts} x ({self.expert.describe()}){shared}, {self.router.describe()}"


class _MoE(nn.Module):
    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__()
        self.router = spec.router.build(dim, spec.experts)
        self.experts = _Experts(spec, dim)
        self.shared = spec.shared.build(dim) if spec.shared else None

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        weights, chosen = self.router(x, ctx)
        out = self.experts(x, weights, chosen)
        return out if self.shared is None else out + self.shared(x)


class _Experts(nn.Module):
    """All experts of a layer, stacked: gate and up (experts, hidden, dim), down (experts, dim, hidden)."""

    residual_outputs = ("down",)  # matrices whose products are the output

    def __init__(self, spec: MoE, dim: int) -> None:
        super().__init__()
        self.act, hidden = spec.expert.act, spec.expert.hidden
        self.gate = nn.Parameter(torch.empty(spec.experts, hidden, dim))
        self.up = nn.Parameter(torch.empty(spec.experts, hidden, dim))
        self.down = nn.Parameter(torch.empty(spec.experts, dim, hidden))
        bias = spec.expert.bias
        self.gate_bias = nn.Parameter(torch.empty(spec.experts, hidden)) if bias else None
        self.up_bias = nn.Parameter(torch.empty(spec.experts, hidden)) if bias else None
        self.down_bias = nn.Parameter(torch.empty(spec.experts, dim)) if bias else None

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (b, t, dim), weights (b, t, k), expert ids (b, t, k) -> the weighted sum of the chosen (b, t, dim)."""
        parameters = self.gate, self.up, self.down, self.gate_bias, self.up_bias, self.down_bias
        if allows_routed_glu(x, weights, *parameters):
            return routed_glu(self.act.join, x, weights, chosen, *parameters)
        return (self._outputs(x, chosen) * weights[..., None]).sum(-2)

    def _outputs(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x (b, t, dim), expert ids (b, t, k) -> the output of each chosen expert (b, t, k, dim)."""
        if use_gemv(x, self.gate) or (x.device.type == "cuda" and is_single_token(x)):
            return self._glu(x.unsqueeze(-2), lambda x, weight, bias: gathered_linear(x, chosen, weight, bias))
        # Tokens are sorted by expert: each expert reads its matrices once and multiplies one contiguous block.
        ids = chosen.flatten()
        order = ids.argsort(stable=True)
        counts = torch.zeros(len(self.gate), dtype=torch.long, device=ids.device)
        counts.scatter_add_(0, ids, torch.ones_like(ids))
        tokens = x.flatten(0, -2)[order // chosen.shape[-1]]
        if torch.compiler.is_compiling() or x.device.type == "cuda" or torch.is_grad_enabled():
            done = self._glu(tokens, lambda x, weight, bias: grouped_linear(x, counts, weight, bias))
        else:  # one expert after the other: its intermediate activations stay in the processor's caches
            blocks = enumerate(tokens.split(counts.tolist()))
            done = torch.cat([self._glu(block, partial(expert_linear, e)) for e, block in blocks if len(block)])
        return torch.empty_like(done).index_copy_(0, order, done).view(*chosen.shape, -1)

    def _glu(self, x: Tensor, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        gate = linear(x, self.gate, self.gate_bias)
        up = linear(x, self.up, self.up_bias)
        return linear(self.act.join(gate, up), self.down, self.down_bias)
