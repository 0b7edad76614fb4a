"""The routers of DeepSeek-V4 (section 2.1): scores that are the square root of softplus, and layers whose experts
follow from the token id alone (Roller et al. 2021, "Hash Layers")."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.routers import LinearRouter, Router, record
from zoo.core.float32 import Float32Parameters, empty, upcast
from zoo.core.forward_context import ForwardContext
from zoo.core.linear import linear
from zoo.core.top_k import top_k
from zoo.costs import linear_params
from zoo.errors import UsageError
from zoo.facts import Fact

__all__ = ["HashTopK", "SqrtSoftplusTopK"]


@dataclass(frozen=True)
class SqrtSoftplusTopK(Router):
    """The k experts of the highest score sqrt(softplus(logit)), in float32 whatever the model's dtype. A learned
    correction is added for the choice alone. The weights are the uncorrected scores, divided by their sum, times
    `scale`."""

    k: int
    scale: float

    has_correction = True

    def build(self, dim: int, experts: int) -> nn.Module:
        return _SqrtSoftplusTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts, bias=True)

    def facts(self) -> tuple[Fact, ...]:
        kind = Fact("kind", self.k, phrase="sqrt-softplus top-{} router")
        return kind, Fact("scale", self.scale, phrase="weights x{:g}")


@dataclass(frozen=True)
class HashTopK(Router):
    """The k experts that a table has for the token's id, weighed as by SqrtSoftplusTopK. The table has a row for each
    of `vocab` tokens, and is not trained: a buffer, and no parameter."""

    k: int
    scale: float
    vocab: int

    reads_tokens = True
    toy: ClassVar = {"vocab": 512}

    def build(self, dim: int, experts: int) -> nn.Module:
        return _HashTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts)

    def facts(self) -> tuple[Fact, ...]:
        kind = Fact("kind", self.k, phrase="hash router of {} experts by token id")
        return kind, Fact("scale", self.scale, phrase="sqrt-softplus weights x{:g}")


class _SoftplusRouter(LinearRouter):
    """Logits, and the weights of chosen experts."""

    def logits(self, x: Tensor) -> Tensor:
        return upcast(linear(upcast(x), upcast(self.weight)))

    def weigh(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """(..., experts) scores, (..., k) expert ids -> (..., k) weights."""
        top = scores.gather(-1, chosen)
        return top / (top.sum(-1, keepdim=True) + 1e-20) * self.spec.scale


class _SqrtSoftplusTopK(_SoftplusRouter, Float32Parameters):
    in_float32 = ("correction",)  # its steps are finer than bfloat16's

    def __init__(self, spec: SqrtSoftplusTopK, dim: int, experts: int) -> None:
        super().__init__(spec, dim, experts)
        self.correction = nn.Parameter(empty(experts), requires_grad=False)

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        _, chosen = top_k(self.ranking(logits), self.spec.k)
        record(ctx, logits, chosen)
        return self.weigh(F.softplus(logits).sqrt(), chosen).to(x.dtype), chosen

    def ranking(self, logits: Tensor) -> Tensor:
        return F.softplus(logits).sqrt() + self.correction


class _HashTopK(_SoftplusRouter):
    """A fresh table gives the experts in turn, k to each token: all get as many tokens of the vocabulary."""

    def __init__(self, spec: HashTopK, dim: int, experts: int) -> None:
        super().__init__(spec, dim, experts)
        self.register_buffer("table", (torch.arange(spec.vocab * spec.k) % experts).view(spec.vocab, spec.k))

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        if ctx is None or ctx.tokens is None:
            raise UsageError("a hash router needs the token ids of a forward pass")
        logits = self.logits(x)
        chosen = self.get_buffer("table")[ctx.tokens]
        record(ctx, logits, chosen)
        return self.weigh(F.softplus(logits).sqrt(), chosen).to(x.dtype), chosen
