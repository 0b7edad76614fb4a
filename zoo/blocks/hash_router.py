"""The routers of DeepSeek-V4 (section 2.1): one scores experts by the square root of softplus, the other chooses them
by the token id alone (Roller et al. 2021, "Hash Layers")."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.routers import CorrectedRouter, Float32Router, ShareTopK
from zoo.core.forward_context import ForwardContext
from zoo.errors import UsageError
from zoo.facts import Fact

__all__ = ["HashTopK", "SqrtSoftplusTopK"]


class _SqrtSoftplus(ShareTopK, abstract=True):
    """A router with scores sqrt(softplus(logit)), in float32 whatever the model's dtype."""

    def scores(self, logits: Tensor) -> Tensor:
        return F.softplus(logits).sqrt()


@dataclass(frozen=True)
class SqrtSoftplusTopK(_SqrtSoftplus):
    """Chooses the k experts with the highest score. A learned correction is added for the choice only: the weights are
    computed from uncorrected scores."""

    k: int
    scale: float

    has_correction = True

    def build(self, dim: int, experts: int) -> nn.Module:
        return CorrectedRouter(self, dim, experts)

    def facts(self) -> tuple[Fact, ...]:
        kind = Fact("kind", self.k, phrase="sqrt-softplus top-{} router")
        return kind, Fact("scale", self.scale, phrase="weights x{:g}")


@dataclass(frozen=True)
class HashTopK(_SqrtSoftplus):
    """Chooses the k experts that a table lists for the token id, with weights as in SqrtSoftplusTopK. The table has a
    row for each of `vocab` token ids. It is a buffer, not a parameter, and is not trained."""

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


class _HashTopK(Float32Router):
    """A hash router. A fresh table assigns k experts to each token in turn: all get equally many tokens."""

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
