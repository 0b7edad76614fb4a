"""Mixture of experts: many feed-forward blocks, of which each token visits a few (Shazeer et al. 2017)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from zoo.blocks.experts import expert, gathered, grouped
from zoo.blocks.glu import GLU
from zoo.core.linear import is_single_token, linear, use_gemv
from zoo.costs import Breakdown, linear_flops, linear_params
from zoo.registry import Block, Spec


class Router(Spec, abstract=True):
    """Chooses `k` experts for each token and weighs them."""

    k: int
    role = "router"

    @abstractmethod
    def build(self, dim: int, experts: int) -> nn.Module:
        """A module (b, t, dim) -> weights and expert ids, both (b, t, k)."""

    @abstractmethod
    def params(self, dim: int, experts: int) -> int:
        """Stored numbers."""

    def check_experts(self, experts: int) -> None:
        """Raise SpecError unless this routes among that many experts."""
        self.require(self.k <= experts, f"k={self.k} is above the {experts} experts there are")


@dataclass(frozen=True)
class SoftmaxTopK(Router):
    """The k experts of the largest softmax probability. `renormalise` divides by the sum of the k, which is a softmax
    over their logits alone (Qwen3, gpt-oss). `bias` adds a learned bias to the logits."""

    k: int
    renormalise: bool = True
    bias: bool = False

    def build(self, dim: int, experts: int) -> nn.Module:
        return _SoftmaxTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts, self.bias)

    def describe(self) -> str:
        weights = "" if self.renormalise else ", not renormalised"
        return f"softmax top-{self.k} router{weights}" + (", router bias" if self.bias else "")


class _SoftmaxTopK(nn.Module):
    def __init__(self, spec: SoftmaxTopK, dim: int, experts: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.bias = nn.Parameter(torch.empty(experts)) if spec.bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = linear(x, self.weight, self.bias).float()
        scores = logits if self.spec.renormalise else logits.softmax(-1)
        top, chosen = scores.topk(self.spec.k)
        return (top.softmax(-1) if self.spec.renormalise else top).to(x.dtype), chosen


@dataclass(frozen=True)
class GroupedSigmoidTopK(Router):
    """DeepSeek-V3's routing (section 2.1.2), in float32 whatever the model's dtype.

    Scores are sigmoids. A learned correction is added for choosing only: first the `keep` best of `groups` equal groups
    of experts, each judged by its two best, then the k best experts in them. The weights are the uncorrected scores of
    the chosen, divided by their sum and multiplied by `scale`.
    """

    k: int
    groups: int
    keep: int
    scale: float

    def build(self, dim: int, experts: int) -> nn.Module:
        return _GroupedSigmoidTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts, bias=True)

    def check(self) -> None:
        self.require(self.keep <= self.groups, f"keep={self.keep} is above groups={self.groups}")

    def check_experts(self, experts: int) -> None:
        self.require(experts % self.groups == 0, f"groups={self.groups} must divide the {experts} experts")
        few = f"groups={self.groups} leave fewer than 2 of {experts} experts in each"
        self.require(experts >= 2 * self.groups, few)
        reach = self.keep * experts // self.groups
        self.require(self.k <= reach, f"k={self.k} is above the {reach} experts in {self.keep} groups")

    def describe(self) -> str:
        return f"sigmoid top-{self.k} router in {self.keep} of {self.groups} groups, weights x{self.scale:g}"


class _GroupedSigmoidTopK(nn.Module):
    def __init__(self, spec: GroupedSigmoidTopK, dim: int, experts: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.correction = nn.Parameter(torch.empty(experts, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The correction follows the module to a device, never to a dtype: its steps are finer than bfloat16's."""
        kept = self.correction.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.correction.dtype != torch.float32:
            self.correction.data = kept.to(self.correction.device)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = linear(x.float(), self.weight.float()).sigmoid()
        chosen = self._choose(scores + self.correction)
        top = scores.gather(-1, chosen)
        return (top / (top.sum(-1, keepdim=True) + 1e-20) * self.spec.scale).to(x.dtype), chosen

    def _choose(self, scores: Tensor) -> Tensor:
        """(..., experts) corrected scores -> (..., k) expert ids."""
        grouped = scores.unflatten(-1, (self.spec.groups, -1))
        best = grouped.topk(2).values.sum(-1).topk(self.spec.keep).indices
        kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, True)
        return grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2).topk(self.spec.k).indices


@dataclass(frozen=True)
class MoE(Block):
    """`experts` blocks like `expert`, of which `router` chooses k for each token, beside a `shared` one for all."""

    experts: int
    expert: GLU
    router: Router
    shared: GLU | None = None

    role = "ffn"

    def check(self) -> None:
        self.router.check_experts(self.experts)

    def build(self, dim: int) -> nn.Module:
        return _MoE(self, dim)

    def params(self, dim: int) -> int:
        return sum(self.param_breakdown(dim).values())

    def param_breakdown(self, dim: int) -> Breakdown:
        return {
            "routed": self.experts * self.expert.params(dim),
            "shared": self.shared.params(dim) if self.shared else 0,
            "router": self.router.params(dim, self.experts),
        }

    def active_params(self, dim: int) -> int:
        return self.params(dim) - (self.experts - self.router.k) * self.expert.params(dim)

    def read_params(self, dim: int, tokens: int) -> float:
        missed = self.experts * (1 - self.router.k / self.experts) ** tokens  # experts that no token is routed to
        return self.params(dim) - missed * self.expert.params(dim)

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return sum(self.flop_breakdown(dim, past, new, causal).values())

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

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        weights, chosen = self.router(x)
        visited = self.experts(x, chosen)
        out = (visited * weights[..., None]).sum(-2)
        return out if self.shared is None else out + self.shared(x)


class _Experts(nn.Module):
    """All experts of a layer, stacked: gate and up (experts, hidden, dim), down (experts, dim, hidden)."""

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

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x (b, t, dim), expert ids (b, t, k) -> what each of them makes of its token (b, t, k, dim)."""
        if use_gemv(x, self.gate) or (x.device.type == "cuda" and is_single_token(x)):
            return self._through(x.unsqueeze(-2), lambda x, weight, bias: gathered(x, chosen, weight, bias))
        # Tokens are sorted by expert: each that is hit reads its matrices once and multiplies one contiguous block.
        ids = chosen.flatten()
        order = ids.argsort(stable=True)
        counts = torch.zeros(len(self.gate), dtype=torch.long, device=ids.device)
        counts.scatter_add_(0, ids, torch.ones_like(ids))
        tokens = x.flatten(0, -2)[order // chosen.shape[-1]]
        if torch.compiler.is_compiling() or x.device.type == "cuda":
            done = self._through(tokens, lambda x, weight, bias: grouped(x, counts, weight, bias))
        else:  # one expert after the other: what is between its products stays in the processor's caches
            blocks = enumerate(tokens.split(counts.tolist()))
            done = torch.cat([self._through(block, partial(expert, e)) for e, block in blocks if len(block)])
        return torch.empty_like(done).index_copy_(0, order, done).view(*chosen.shape, -1)

    def _through(self, x: Tensor, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        gate = linear(x, self.gate, self.gate_bias)
        up = linear(x, self.up, self.up_bias)
        return linear(self.act.join(gate, up), self.down, self.down_bias)
