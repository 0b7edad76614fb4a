"""Routers of a mixture of experts: which experts a token is sent to, and with which weights."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.core.float32 import Float32Parameters, empty, upcast
from zoo.core.forward_context import ForwardContext, RouterOutput
from zoo.core.linear import linear
from zoo.core.top_k import top_k
from zoo.costs import linear_params
from zoo.facts import Fact
from zoo.registry import Spec

__all__ = [
    "GroupedSigmoidTopK",
    "GroupedSoftmaxTopK",
    "GroupedTopK",
    "InputScaledTopK",
    "NormedSoftmaxTopK",
    "Router",
    "SoftmaxTopK",
]


class Router(Spec, abstract=True):
    """Chooses `k` experts for each token, and their weights. Of equal scores the earlier is chosen, as by `top_k`."""

    k: int
    role = "router"
    scales_input: ClassVar[bool] = False  # weights multiply what an expert is given, not what it returns (Llama 4)
    has_correction: ClassVar[bool] = False  # its module's `correction`, which keeps experts equally used
    reads_tokens: ClassVar[bool] = False  # the context has the token ids

    @abstractmethod
    def build(self, dim: int, experts: int) -> nn.Module:
        """A module: x (b, t, dim) and a ForwardContext or None -> weights and expert ids, both (b, t, k). Its logits
        are handed out with `record`."""

    @abstractmethod
    def params(self, dim: int, experts: int) -> int:
        """Parameters."""

    def check_experts(self, experts: int) -> None:
        """Raise SpecError unless this can route among that many experts."""
        self.require(self.k <= experts, f"k={self.k} is above the {experts} experts there are")


class LinearRouter(nn.Module):
    """The module of a router whose logits are a linear map of x."""

    def __init__(self, spec: Router, dim: int, experts: int) -> None:
        super().__init__()
        self.spec: Any = spec
        self.weight = nn.Parameter(torch.empty(experts, dim))

    def logits(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., experts), in float32 at least."""
        return upcast(linear(x, self.weight))

    def ranking(self, logits: Tensor) -> Tensor:
        """(..., experts) logits -> the scores that experts are chosen by, the highest first."""
        return logits


def record(ctx: ForwardContext | None, logits: Tensor, chosen: Tensor) -> None:
    """Hand out a router's logits (b, t, experts) and chosen experts (b, t, k), if the pass records them."""
    if ctx is not None and ctx.routing is not None:
        ctx.routing.append(RouterOutput(logits, chosen))


@dataclass(frozen=True)
class SoftmaxTopK(Router):
    """The k experts of the highest softmax probability. `renormalise` divides by the sum of the k probabilities, which
    equals a softmax over the k logits (Qwen3, gpt-oss). `bias` adds a learned bias to the logits."""

    k: int
    renormalise: bool = True
    bias: bool = False

    def build(self, dim: int, experts: int) -> nn.Module:
        return _SoftmaxTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts, self.bias)

    def facts(self) -> tuple[Fact, ...]:
        optional = [] if self.renormalise else [Fact("renormalise", phrase="not renormalised")]
        optional += [Fact("bias", phrase="router bias")] if self.bias else []
        return Fact("kind", self.k, phrase="softmax top-{} router"), *optional


class _SoftmaxTopK(LinearRouter):
    def __init__(self, spec: SoftmaxTopK, dim: int, experts: int) -> None:
        super().__init__(spec, dim, experts)
        self.bias = nn.Parameter(torch.empty(experts)) if spec.bias else None

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        scores = logits if self.spec.renormalise else logits.softmax(-1)
        top, chosen = top_k(scores, self.spec.k)
        record(ctx, logits, chosen)
        return (top.softmax(-1) if self.spec.renormalise else top).to(x.dtype), chosen

    def logits(self, x: Tensor) -> Tensor:
        return upcast(linear(x, self.weight, self.bias))


@dataclass(frozen=True)
class NormedSoftmaxTopK(Router):
    """Softmax over the k highest logits, which are those of norm(x) * dim^-0.5; the weights are multiplied by a learned
    number of each expert (Gemma 4)."""

    k: int
    norm: Norm

    def build(self, dim: int, experts: int) -> nn.Module:
        return _NormedSoftmaxTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return self.norm.params(dim) + linear_params(dim, experts) + experts

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", self.k, phrase="softmax top-{} router of the normalised input"),)

    def describe(self) -> str:
        return f"{super().describe()}, weights times a number of each expert"


class _NormedSoftmaxTopK(LinearRouter):
    def __init__(self, spec: NormedSoftmaxTopK, dim: int, experts: int) -> None:
        super().__init__(spec, dim, experts)
        self.norm = spec.norm.build(dim)
        self.expert_scale = nn.Parameter(torch.empty(experts))
        self.identity = {"expert_scale": 1.0}

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        top, chosen = top_k(logits, self.spec.k)
        record(ctx, logits, chosen)
        return (top.softmax(-1) * self.expert_scale[chosen]).to(x.dtype), chosen

    def logits(self, x: Tensor) -> Tensor:
        return upcast(linear(self.norm(x) * x.shape[-1] ** -0.5, self.weight))


@dataclass(frozen=True)
class InputScaledTopK(Router):
    """The k experts of the highest logits. Their weights are the sigmoids of those, not renormalised, and multiply what
    an expert is given, not what it returns (Llama 4, as released)."""

    k: int
    scales_input = True

    def build(self, dim: int, experts: int) -> nn.Module:
        return _InputScaledTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts)

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", self.k, phrase="sigmoid top-{} router"),)

    def describe(self) -> str:
        return f"{super().describe()}, weights on the experts' input"


class _InputScaledTopK(LinearRouter):
    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        top, chosen = top_k(logits, self.spec.k)
        record(ctx, logits, chosen)
        return top.sigmoid().to(x.dtype), chosen


@dataclass(frozen=True)
class GroupedTopK(Router, abstract=True):
    """The k experts of the highest scores in the `keep` best of `groups` equal groups, which are ranked by the sum of
    their two best scores. The weights are the scores of the chosen, divided by their sum plus `eps`, times `scale`."""

    k: int
    groups: int
    keep: int
    scale: float
    eps: float = 1e-20  # LFM2 adds 1e-6
    scores: ClassVar[str]  # in a word

    def check(self) -> None:
        self.require(self.keep <= self.groups, f"keep={self.keep} is above groups={self.groups}")

    def check_experts(self, experts: int) -> None:
        self.require(experts % self.groups == 0, f"groups={self.groups} must divide the {experts} experts")
        few = f"groups={self.groups} leave fewer than 2 of {experts} experts in each"
        self.require(experts >= 2 * self.groups, few)
        reach = self.keep * experts // self.groups
        self.require(self.k <= reach, f"k={self.k} is above the {reach} experts in {self.keep} groups")

    def choose(self, scores: Tensor) -> Tensor:
        """(..., experts) scores -> (..., k) expert ids."""
        if self.keep < self.groups:
            grouped = scores.unflatten(-1, (self.groups, -1))
            _, best = top_k(top_k(grouped, 2)[0].sum(-1), self.keep)
            kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, True)
            scores = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
        return top_k(scores, self.k)[1]

    def weigh(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """(..., experts) scores, (..., k) expert ids -> (..., k) weights."""
        top = scores.gather(-1, chosen)
        return top / (top.sum(-1, keepdim=True) + self.eps) * self.scale

    def facts(self) -> tuple[Fact, ...]:
        grouped = (Fact("grouped", (self.keep, self.groups), phrase="in {} of {} groups", noun="groups of experts"),)
        kind = Fact("kind", self.k, phrase=f"{self.scores} top-{{}} router")
        return kind, *grouped * (self.groups > 1), Fact("scale", self.scale, phrase="weights x{:g}")

    def describe(self) -> str:
        *router, scale = map(str, self.facts())
        return f"{' '.join(router)}, {scale}"


@dataclass(frozen=True)
class GroupedSigmoidTopK(GroupedTopK):
    """DeepSeek-V3's routing (section 2.1.2), in float32 at least.

    Scores are sigmoids. A learned correction is added for the choice only, of groups and of experts: the weights are of
    uncorrected scores.
    """

    scores = "sigmoid"
    has_correction = True

    def build(self, dim: int, experts: int) -> nn.Module:
        return _GroupedSigmoidTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts, bias=True)


class _GroupedSigmoidTopK(LinearRouter, Float32Parameters):
    in_float32 = ("correction",)  # its steps are finer than bfloat16's

    def __init__(self, spec: GroupedSigmoidTopK, dim: int, experts: int) -> None:
        super().__init__(spec, dim, experts)
        self.correction = nn.Parameter(empty(experts), requires_grad=False)

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        chosen = self.spec.choose(self.ranking(logits))
        record(ctx, logits, chosen)
        return self.spec.weigh(logits.sigmoid(), chosen).to(x.dtype), chosen

    def logits(self, x: Tensor) -> Tensor:
        return upcast(linear(upcast(x), upcast(self.weight)))

    def ranking(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() + self.correction


@dataclass(frozen=True)
class GroupedSoftmaxTopK(GroupedTopK):
    """The same with probabilities as scores, and without a correction (Mistral Small 4)."""

    scores = "softmax"

    def build(self, dim: int, experts: int) -> nn.Module:
        return _GroupedSoftmaxTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return linear_params(dim, experts)


class _GroupedSoftmaxTopK(LinearRouter):
    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        scores = self.ranking(logits)
        chosen = self.spec.choose(scores)
        record(ctx, logits, chosen)
        return self.spec.weigh(scores, chosen).to(x.dtype), chosen

    def ranking(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)
