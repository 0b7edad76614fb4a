"""Measures the distance of a model's logits from exact ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # logits compared at a time, in float64


@dataclass(frozen=True)
class PositionError:
    """The difference at one position, over all prompts."""

    largest: float
    mean: float
    kl: float


@dataclass(frozen=True)
class Difference:
    """The distance of logits from exact ones.

    `rms` is the root mean square over all elements, relative to that of the exact logits. `largest`, `mean`, `median`
    and `p999` are of absolute differences. KL (exact || other) is in nats per token. `top1` is the share of tokens with
    the same argmax, `top10` the share of the ten most likely tokens that are among the other's ten. `median` and
    `kl_median` are over each token's own mean difference and KL.
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
    """Returns KL (one || two), whether the argmax is the same, and the share of the top 10 in common: each (batch,
    t)."""
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)  # for equal distributions, rounding may make it negative
    k = min(10, one.shape[-1])
    best, others = one.topk(k).indices, two.topk(k).indices
    shared = (best[..., None] == others[..., None, :]).any(-1).double().mean(-1)
    return kl, (best[..., 0] == others[..., 0]).double(), shared
