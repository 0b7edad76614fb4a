"""Measures how the zoo differs from the reference: in the logits, and in each part by itself.

In a whole forward pass, a difference spreads to all later layers. Therefore each branch of each layer also runs on the
exact input of the reference's branch, in float64: a difference in its output then comes from this branch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.float32 import BOUND, largest_difference
from zoo.model.module import Model

CHUNK_ELEMENTS = 2**24  # logits compared at a time, in float64


@dataclass(frozen=True)
class PositionError:
    """The difference at one position, over all prompts."""

    largest: float
    mean: float
    kl: float


@dataclass(frozen=True)
class Difference:
    """The differences of logits from the exact logits.

    `rms` is the RMS of the differences, relative to the RMS of the exact logits. `largest`, `mean`, `median` and `p999`
    are of absolute differences. KL (exact || other) is in nats per token. `top1` is the share of tokens with the same
    argmax, `top10` the share of the ten most likely tokens that both have in common. `median` and `kl_median` are
    medians over tokens, of each token's mean difference and of its KL.
    """

    tokens: int
    scale: float  # the largest absolute exact logit
    rms: float
    largest: float
    mean: float
    median: float
    p999: float  # 99.9th percentile
    kl_mean: float
    kl_median: float
    kl_max: float
    top1: float
    top10: float
    by_position: tuple[PositionError, ...]

    @property
    def relative(self) -> float:
        """The largest difference, relative to the largest exact logit."""
        return self.largest / self.scale if self.scale > 0 else self.largest


def chunks_of_positions(batch: int, length: int, vocab: int) -> Iterator[slice]:
    """Yields slices of positions with at most CHUNK_ELEMENTS logits each, and at least one position."""
    step = max(1, CHUNK_ELEMENTS // (batch * vocab))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


@torch.no_grad()
def compare(exact: Tensor, other: Tensor) -> Difference:
    """Returns the difference of logits (batch, t, vocab) from the `exact` ones, which are in float64."""
    batch, length, vocab = exact.shape
    elements = exact.numel()
    tail_size = elements - ceil(0.999 * elements) + 1  # differences at or above the percentile
    columns, scale, tail, squares = [], 0.0, torch.empty(0), torch.zeros(2, dtype=torch.float64)
    for chunk in chunks_of_positions(batch, length, vocab):
        one, two = exact[:, chunk].double(), other[:, chunk].double()
        scale = max(scale, float(one.abs().max()))
        difference = (one - two).abs()
        squares += torch.stack([difference.square().sum(), one.square().sum()])
        columns.append(torch.stack([difference.amax(-1), difference.mean(-1), *_distributions(one, two)]))
        both = torch.cat([tail, difference.flatten()])
        tail = both.topk(min(tail_size, len(both))).values
    each = torch.cat(columns, dim=2)  # (quantity, batch, t)
    positions = each[:3].unbind(2)
    by_position = tuple(PositionError(float(a.max()), float(b.mean()), float(kl.mean())) for a, b, kl in positions)
    largest, mean, kl, top1, top10 = each.flatten(1)
    figures = {"rms": (squares[0] / squares[1]).sqrt(), "largest": largest.max(), "mean": mean.mean()}
    figures |= {"median": mean.median(), "p999": tail[-1]}
    figures |= {"kl_mean": kl.mean(), "kl_median": kl.median(), "kl_max": kl.max()}
    figures |= {"top1": top1.mean(), "top10": top10.mean()}
    values = {name: float(value) for name, value in figures.items()}
    return Difference(batch * length, scale, by_position=by_position, **values)


def _distributions(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns KL (one || two), whether the argmax is the same, and the common share of the top 10, each (batch, t)."""
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)  # for equal distributions, rounding may make it negative
    k = min(10, one.shape[-1])
    best, others = one.topk(k).indices, two.topk(k).indices
    shared = (best[..., None] == others[..., None, :]).any(-1).double().mean(-1)
    return kl, (best[..., 0] == others[..., 0]).double(), shared


@dataclass(frozen=True)
class Part:
    """The comparison of one part of the model: "embedding", a layer's "attention", "feed-forward" or "per-layer input",
    or "head" (with the last norm). `error` is the largest difference from the reference's output, relative to the
    largest element of that output."""

    name: str
    layer: int | None
    error: float

    @property
    def passed(self) -> bool:
        """Whether the difference is only rounding."""
        return self.error <= BOUND

    def __str__(self) -> str:
        return f"the {self.name}" if self.layer is None else f"layer {self.layer}'s {self.name}"


@dataclass(frozen=True)
class LayerActivations:
    """The activations of one layer of the reference, each (batch, t, dim). `x`, `between` and `gated` are the inputs of
    the attention branch, of the feed-forward branch and of the per-layer input's gate; `out` is the layer's output.
    Without a gate, `gated` is `out`; without a feed-forward, `between` is `gated`."""

    layer: int
    x: Tensor
    between: Tensor
    gated: Tensor
    out: Tensor


class PartwiseComparison:
    """Runs each of the zoo's parts on the input of the reference's part, during the reference's forward pass. `parts`
    collects the results."""

    def __init__(self, model: Model, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.ctx, self.layer_caches = model.prepare(tokens)
        self.parts: list[Part] = []
        self.last = torch.empty(0)  # the output of the reference's last layer
        self.inputs: Sequence[Tensor | None] = ()  # the per-layer inputs

    def embedding(self, x: Tensor) -> None:
        """Compares the embeddings with the reference's `x` (batch, t, dim)."""
        embedded = self.model.embedded(self.tokens, self.ctx.positions)
        self._add("embedding", None, self.model.expanded(embedded), x)
        self.inputs = self.model.layer_inputs(self.tokens, x)

    def layer(self, reference: LayerActivations) -> None:
        """Compares the branches of one layer. The last branch includes the factor that scales the layer's output."""
        index, self.last = reference.layer, reference.out
        layer: Any = self.model.layers[index]
        ctx = replace(self.ctx, layer_input=self.inputs[index], tokens=self.tokens)
        scaled = layer.output_scale or nn.Identity()
        if layer.inputs is not None:
            self._add("per-layer input", index, scaled(layer.inputs(reference.gated, ctx)), reference.out)
            scaled = nn.Identity()
        if layer.attn is not None:
            between = layer.attn(reference.x, ctx, self.layer_caches[index])
            between = scaled(between) if layer.ffn is None else between
            self._add("attention", index, between, reference.between)
        if layer.ffn is not None:
            self._add("feed-forward", index, scaled(layer.ffn(reference.between, ctx)), reference.gated)

    def head(self, logits: Tensor) -> None:
        """Compares the last norm and the head with the reference's `logits` (batch, t, vocab)."""
        largest = float(logits.abs().max())
        errors = []
        for chunk in chunks_of_positions(*logits.shape):
            part, scale = logits[:, chunk], float(logits[:, chunk].abs().max())
            errors.append(largest_difference(self.model.logits(self.last[:, chunk]), part) * (scale / largest))
        self.parts.append(Part("head", None, float(torch.tensor(errors).max())))  # NaN if any error is NaN

    def _add(self, name: str, layer: int | None, value: Tensor, reference: Tensor) -> None:
        self.parts.append(Part(name, layer, largest_difference(value.flatten(2), reference.flatten(2))))
