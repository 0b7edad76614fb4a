"""Routers of a mixture of experts: they choose the experts for each token, and the weights of the chosen experts.

A router's spec defines how logits become scores, how scores choose experts, and how the scores of the chosen experts
become weights. LinearRouter, one module class, computes all three. Routers with more parameters have subclasses of it.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.core.float32 import Float32Parameters, empty, upcast
from zoo.core.forward_context import ForwardContext, RouterOutput
from zoo.core.ops.indexing import top_k
from zoo.core.ops.linear import linear
from zoo.costs import linear_params
from zoo.errors import UsageError
from zoo.facts import Fact
from zoo.registry import Spec

__all__ = [
    "GroupedSigmoidTopK",
    "GroupedSoftmaxTopK",
    "GroupedTopK",
    "HashTopK",
    "InputScaledTopK",
    "NormedSoftmaxTopK",
    "Router",
    "SoftmaxTopK",
    "SqrtSoftplusTopK",
]


class Router(Spec, abstract=True):
    """Chooses `k` experts for each token, and their weights. Among equal scores, the earlier expert wins."""

    k: int
    bias: bool = False  # whether logits have a learned bias
    role = "router"
    scales_input: ClassVar[bool] = False  # weights multiply the experts' input, not their output (Llama 4)
    has_correction: ClassVar[bool] = False  # the module has a `correction`, which balances the experts' load
    is_exact: ClassVar[bool] = False  # computes logits in at least float32, whatever the model's dtype
    reads_tokens: ClassVar[bool] = False  # reads the token ids from the context

    def build(self, dim: int, experts: int) -> nn.Module:
        """Returns the module: x (b, t, dim), a ForwardContext or None -> weights and expert ids, both (b, t, k)."""
        return LinearRouter(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        """The number of parameters."""
        return linear_params(dim, experts, bias=self.bias or self.has_correction)

    @property
    def table_rows(self) -> int | None:
        """The number of token ids in the router's table of experts; None for a router without a table."""
        return None

    def check_experts(self, experts: int) -> None:
        """Raises SpecError if this router cannot route among that many experts."""
        self.require(self.k <= experts, f"k={self.k} is above the {experts} experts there are")

    def among(self, experts: int, before: int, vocab: int) -> Self:
        """Returns this router for a model with `experts` experts instead of `before`, and `vocab` tokens in its
        vocabulary. k changes in proportion, but is at least 2 if a single expert's weight would have no gradient."""
        least = min(2, before) if self.renormalises else 1
        changes: dict[str, Any] = {"k": min(experts, max(least, round(self.k * experts / before)))}
        return replace(self, **changes)

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (..., experts) -> scores (..., experts), which choose the experts and become their weights."""
        return logits

    def choose(self, scores: Tensor) -> Tensor:
        """Scores (..., experts) -> expert ids (..., k)."""
        return top_k(scores, self.k)[1]

    @abstractmethod
    def weigh(self, top: Tensor) -> Tensor:
        """Scores (..., k) of the chosen experts -> their weights (..., k)."""

    @property
    def renormalises(self) -> bool:
        """Whether the weight of a single chosen expert is independent of its score. With k = 1, such a router gets no
        gradient."""
        low, high = (self.weigh(torch.tensor([score], device="cpu")) for score in (0.25, 0.5))
        return torch.allclose(low, high)


class LinearRouter(Float32Parameters):
    """The module of a router: logits are a linear map of x. If the spec has a correction, a learned `correction` per
    expert is added to the scores for the choice of experts, but not for their weights."""

    def __init__(self, spec: Router, dim: int, experts: int) -> None:
        super().__init__()
        self.spec: Any = spec
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.bias = nn.Parameter(torch.empty(experts)) if spec.bias else None
        if spec.has_correction:
            self.correction = nn.Parameter(empty(experts), requires_grad=False)
            self.in_float32 = ("correction",)  # it is updated in steps that are too small for bfloat16

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        scores = self.spec.scores(logits)
        chosen = self.choose(scores, ctx)
        if ctx is not None and ctx.routing is not None:
            ctx.routing.append(RouterOutput(logits, chosen))
        return self.weigh(scores.gather(-1, chosen), chosen).to(x.dtype), chosen

    def logits(self, x: Tensor) -> Tensor:
        """x (..., dim) -> logits (..., experts), in at least float32."""
        x, weight = (upcast(x), upcast(self.weight)) if self.spec.is_exact else (x, self.weight)
        return upcast(linear(x, weight, self.bias))

    def ranking(self, scores: Tensor) -> Tensor:
        """Scores (..., experts) -> values (..., experts) by which the experts are chosen."""
        return scores + self.correction if self.spec.has_correction else scores

    def choose(self, scores: Tensor, ctx: ForwardContext | None) -> Tensor:
        """Scores (..., experts) -> expert ids (..., k)."""
        chosen: Tensor = self.spec.choose(self.ranking(scores))
        return chosen

    def weigh(self, top: Tensor, chosen: Tensor) -> Tensor:
        """Scores and ids of the chosen experts, both (..., k) -> weights (..., k)."""
        weights: Tensor = self.spec.weigh(top)
        return weights


def routers_of(module: nn.Module) -> list[Any]:
    """Returns the router modules inside a module in the order of layers, as in `recorded_routing`."""
    return [each for each in module.modules() if isinstance(getattr(each, "spec", None), Router)]


@dataclass(frozen=True)
class SoftmaxTopK(Router):
    """Chooses the k experts with the highest softmax probabilities, which are the weights. `renormalise` divides them
    by their sum: a softmax over the k logits (Qwen3, gpt-oss). `bias` adds a learned bias to the logits."""

    k: int
    renormalise: bool = True
    bias: bool = False

    def scores(self, logits: Tensor) -> Tensor:
        return logits if self.renormalise else logits.softmax(-1)

    def weigh(self, top: Tensor) -> Tensor:
        return top.softmax(-1) if self.renormalise else top

    def facts(self) -> tuple[Fact, ...]:
        kind, raw = Fact("kind", self.k, phrase="softmax top-{} router"), Fact("renormalise", phrase="not renormalised")
        return self.in_use(kind, raw, Fact("bias", phrase="router bias"))


@dataclass(frozen=True)
class NormedSoftmaxTopK(Router):
    """Chooses the k experts with the highest logits. The logits are computed from norm(x) * dim^-0.5. The weights are a
    softmax over the k logits, multiplied by a learned scale per expert (Gemma 4)."""

    k: int
    norm: Norm

    def build(self, dim: int, experts: int) -> nn.Module:
        return _NormedSoftmaxTopK(self, dim, experts)

    def params(self, dim: int, experts: int) -> int:
        return self.norm.params(dim) + linear_params(dim, experts) + experts

    def weigh(self, top: Tensor) -> Tensor:
        return top.softmax(-1)

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", self.k, phrase="softmax top-{} router of the normalised input"),)

    def describe(self) -> str:
        return f"{super().describe()}, weights scaled by a learned scalar per expert"


class _NormedSoftmaxTopK(LinearRouter):
    def __init__(self, spec: NormedSoftmaxTopK, dim: int, experts: int) -> None:
        super().__init__(spec, dim, experts)
        self.norm = spec.norm.build(dim)
        self.expert_scale = nn.Parameter(torch.empty(experts))
        self.identity = {"expert_scale": 1.0}

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(self.norm(x) * x.shape[-1] ** -0.5)

    def weigh(self, top: Tensor, chosen: Tensor) -> Tensor:
        return super().weigh(top, chosen) * self.expert_scale[chosen]


@dataclass(frozen=True)
class InputScaledTopK(Router):
    """Chooses the k experts with the highest logits. The weights are the sigmoids of the logits, not renormalised, and
    multiply the experts' input instead of their output (Llama 4, as released)."""

    k: int
    scales_input = True

    def weigh(self, top: Tensor) -> Tensor:
        return top.sigmoid()

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", self.k, phrase="sigmoid top-{} router"),)

    def describe(self) -> str:
        return f"{super().describe()}, weights on the experts' input"


class ShareTopK(Router, abstract=True):
    """A router whose weights are the scores of the chosen experts, divided by their sum plus `eps`, times `scale`."""

    scale: float
    eps: float = 1e-20

    def weigh(self, top: Tensor) -> Tensor:
        return top / (top.sum(-1, keepdim=True) + self.eps) * self.scale


@dataclass(frozen=True)
class GroupedTopK(ShareTopK, abstract=True):
    """Divides the experts into `groups` equal groups, keeps the `keep` best groups, and chooses the k experts with the
    highest scores in these. Groups are ranked by the sum of their two best scores."""

    k: int
    groups: int
    keep: int
    scale: float
    eps: float = 1e-20  # LFM2 adds 1e-6
    function: ClassVar[str]  # the name of the function that maps logits to scores

    def check(self) -> None:
        self.require(self.keep <= self.groups, f"keep={self.keep} is above groups={self.groups}")

    def check_experts(self, experts: int) -> None:
        self.require(experts % self.groups == 0, f"groups={self.groups} must divide the {experts} experts")
        few = f"groups={self.groups} leave fewer than 2 of {experts} experts in each"
        self.require(experts >= 2 * self.groups, few)
        reach = self.keep * experts // self.groups
        self.require(self.k <= reach, f"k={self.k} is above the {reach} experts in {self.keep} groups")

    def among(self, experts: int, before: int, vocab: int) -> Self:
        """Returns this router for another number of experts. Groups are equal; kept groups have k experts or more."""
        small, most = super().among(experts, before, vocab), min(self.groups, max(experts // 2, 1))
        groups = next(number for number in range(most, 0, -1) if experts % number == 0)
        keep = max(1, round(groups * self.keep / self.groups), ceil(small.k * groups / experts))
        return replace(small, groups=groups, keep=keep)

    def choose(self, scores: Tensor) -> Tensor:
        if self.keep < self.groups:
            grouped = scores.unflatten(-1, (self.groups, -1))
            _, best = top_k(top_k(grouped, 2)[0].sum(-1), self.keep)
            kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, True)
            scores = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
        return super().choose(scores)

    def facts(self) -> tuple[Fact, ...]:
        grouped = (Fact("grouped", (self.keep, self.groups), phrase="in {} of {} groups", noun="groups of experts"),)
        kind = Fact("kind", self.k, phrase=f"{self.function} top-{{}} router")
        return kind, *grouped * (self.groups > 1), Fact("scale", self.scale, phrase="weights x{:g}")

    def describe(self) -> str:
        *router, scale = map(str, self.facts())
        return f"{' '.join(router)}, {scale}"


@dataclass(frozen=True)
class GroupedSigmoidTopK(GroupedTopK):
    """DeepSeek-V3's routing (section 2.1.2), in at least float32.

    Scores are sigmoids. A learned correction is added for the choice of groups and experts, but not for the weights.
    """

    function = "sigmoid"
    has_correction = is_exact = True

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


@dataclass(frozen=True)
class GroupedSoftmaxTopK(GroupedTopK):
    """DeepSeek-V3's routing, but with softmax probabilities as scores and without a correction (Mistral Small 4)."""

    function = "softmax"

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


class _SqrtSoftplus(ShareTopK, abstract=True):
    """A router with scores sqrt(softplus(logit)), in float32 whatever the model's dtype."""

    is_exact = True

    def scores(self, logits: Tensor) -> Tensor:
        return F.softplus(logits).sqrt()


@dataclass(frozen=True)
class SqrtSoftplusTopK(_SqrtSoftplus):
    """Chooses the k experts with the highest scores. A learned correction affects the choice, but not the weights."""

    k: int
    scale: float

    has_correction = True

    def facts(self) -> tuple[Fact, ...]:
        kind = Fact("kind", self.k, phrase="sqrt-softplus top-{} router")
        return kind, Fact("scale", self.scale, phrase="weights x{:g}")


@dataclass(frozen=True)
class HashTopK(_SqrtSoftplus):
    """Chooses the k experts that a table lists for the token id, with weights as in SqrtSoftplusTopK. The table has one
    row for each of `vocab` token ids. It is a buffer and is not trained."""

    k: int
    scale: float
    vocab: int

    reads_tokens = True
    toy: ClassVar = {"vocab": 512}

    @property
    def table_rows(self) -> int | None:
        return self.vocab

    def among(self, experts: int, before: int, vocab: int) -> Self:
        return replace(super().among(experts, before, vocab), vocab=vocab)

    def build(self, dim: int, experts: int) -> nn.Module:
        return _HashTopK(self, dim, experts)

    def facts(self) -> tuple[Fact, ...]:
        kind = Fact("kind", self.k, phrase="hash router of {} experts by token id")
        return kind, Fact("scale", self.scale, phrase="sqrt-softplus weights x{:g}")


class _HashTopK(LinearRouter):
    """A hash router. A fresh table assigns experts to token ids in turn, so that every expert gets the same number of
    ids."""

    stored_buffers = ("table",)  # buffers that a checkpoint holds

    def __init__(self, spec: HashTopK, dim: int, experts: int) -> None:
        super().__init__(spec, dim, experts)
        self.register_buffer("table", (torch.arange(spec.vocab * spec.k) % experts).view(spec.vocab, spec.k))

    def stored_problem(self) -> str:
        """Returns an error message if the loaded table has expert ids out of range, "" otherwise."""
        lowest, highest = (int(end) for end in torch.aminmax(self.get_buffer("table")))
        experts = len(self.weight)
        is_right = 0 <= lowest <= highest < experts
        return "" if is_right else f"table has expert ids from {lowest} to {highest}, of {experts} experts"

    def choose(self, scores: Tensor, ctx: ForwardContext | None) -> Tensor:
        if ctx is None or ctx.tokens is None:
            raise UsageError("a hash router needs the token ids of a forward pass")
        return self.get_buffer("table")[ctx.tokens]
