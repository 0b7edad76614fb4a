"""How far two models' logits are apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, nan

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # logits compared at a time, in float64


@dataclass(frozen=True)
class PositionError:
    """The difference at one position, over the prompts compared there; NaN where there are none."""

    largest: float
    mean: float
    kl: float


@dataclass(frozen=True)
class Difference:
    """How far logits are from a reference's: absolute differences; KL (reference || other) in nats per token; `top1`,
    the share of tokens with the same argmax; `top10`, the share of the ten most likely tokens that are among the
    other's ten. `median` and `kl_median` are over each token's own mean difference and KL."""

    tokens: int  # compared
    scale: float  # the reference's largest absolute logit
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


def chunks_of_positions(batch: int, length: int, vocab: int) -> Iterator[slice]:
    """Slices of positions with at most CHUNK_ELEMENTS logits each, and at least one position."""
    step = max(1, CHUNK_ELEMENTS // (batch * vocab))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


@torch.no_grad()
def compare(reference: Tensor, other: Tensor, counted: Tensor | None = None) -> Difference:
    """The difference of logits (batch, t, vocab) from the reference's, over tokens `counted` (batch, t); None: all."""
    batch, length, vocab = reference.shape
    counted = torch.ones(batch, length, dtype=torch.bool) if counted is None else counted
    elements = int(counted.sum()) * vocab
    tail_size = elements - ceil(0.999 * elements) + 1  # how many differences are at or above the percentile
    columns, scale, tail = [], 0.0, torch.empty(0) if elements else torch.tensor([nan])
    for chunk in chunks_of_positions(batch, length, vocab):
        one, two = reference[:, chunk], other[:, chunk]
        scale = max(scale, float(one.abs().max()))
        difference = (one.float() - two.float()).abs()
        largest_and_mean = difference.amax(-1).double(), difference.double().mean(-1)
        columns.append(torch.stack([*largest_and_mean, *_distributions(one, two)]))
        both = torch.cat([tail, difference[counted[:, chunk]].flatten()])
        tail = both.topk(min(tail_size, len(both))).values
    each = torch.cat(columns, dim=2)  # (quantity, batch, t)
    positions = [_selected(each[:3, :, i], counted[:, i]) for i in range(length)]
    by_position = tuple(PositionError(float(a.max()), float(b.mean()), float(kl.mean())) for a, b, kl in positions)
    largest, mean, kl, top1, top10 = _selected(each, counted)
    figures = {"largest": largest.max(), "mean": mean.mean(), "median": mean.median(), "p999": tail[-1]}
    figures |= {"kl_mean": kl.mean(), "kl_median": kl.median(), "kl_max": kl.max()}
    figures |= {"top1": top1.mean(), "top10": top10.mean()}
    values = {name: float(value) for name, value in figures.items()}
    return Difference(int(counted.sum()), scale, by_position=by_position, **values)


def _distributions(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL (one || two), whether the argmax is the same, and the share of the top 10 in common: each (batch, t)."""
    p, q = one.double().log_softmax(-1), two.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    k = min(10, one.shape[-1])
    best, others = one.topk(k).indices, two.topk(k).indices
    shared = (best[..., None] == others[..., None, :]).any(-1).double().mean(-1)
    return kl, (best[..., 0] == others[..., 0]).double(), shared


def _selected(each: Tensor, counted: Tensor) -> Tensor:
    """(quantity, ...) -> (quantity, n) at the counted places; one NaN of each quantity where there are none."""
    return each[:, counted] if counted.any() else each.new_full((len(each), 1), nan)
