"""How far two models' logits are apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, nan

import torch
from torch import Tensor

CHUNK = 2**24  # numbers of a chunk of logits: each is compared in float64


@dataclass(frozen=True)
class Position:
    """The difference at one position, over the prompts compared there; NaN where there is none."""

    largest: float
    mean: float
    kl: float


@dataclass(frozen=True)
class Difference:
    """How far logits are from those of a reference: absolute differences; KL (reference || other) in nats a token; the
    share of tokens with the same likeliest token, and of the ten likeliest that are among the other's ten. `median` and
    `kl_median` are of the tokens' own mean difference and KL."""

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
    by_position: tuple[Position, ...]


def slices(batch: int, length: int, vocab: int) -> Iterator[slice]:
    """Positions in chunks of which the logits fit in memory several times."""
    step = max(1, CHUNK // (batch * vocab))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


@torch.no_grad()
def compare(reference: Tensor, other: Tensor, counted: Tensor) -> Difference:
    """The difference of logits (batch, t, vocab) from the reference's, over the tokens `counted` (batch, t)."""
    batch, length, vocab = reference.shape
    numbers = int(counted.sum()) * vocab
    beyond = numbers - ceil(0.999 * numbers) + 1  # so many differences are at or above the percentile
    columns, tail, scale = [], torch.empty(0), 0.0
    for positions in slices(batch, length, vocab):
        one, two = reference[:, positions], other[:, positions]
        scale = max(scale, float(one.abs().max()))
        apart = (one.float() - two.float()).abs()
        columns.append(torch.stack([apart.amax(-1).double(), apart.double().mean(-1), *_distributions(one, two)]))
        if numbers:
            both = torch.cat([tail, apart[counted[:, positions]].flatten()])
            tail = both.topk(min(beyond, len(both))).values
    each = torch.cat(columns, dim=2)  # (quantity, batch, t)
    if not numbers:
        nowhere = tuple(Position(nan, nan, nan) for _ in range(length))
        return Difference(0, scale, nan, nan, nan, nan, nan, nan, nan, nan, nan, nowhere)
    largest, mean, kl, top1, top10 = each[:, counted]
    return Difference(
        tokens=len(kl),
        scale=scale,
        largest=float(largest.max()),
        mean=float(mean.mean()),
        median=float(mean.median()),
        p999=float(tail[-1]),
        kl_mean=float(kl.mean()),
        kl_median=float(kl.median()),
        kl_max=float(kl.max()),
        top1=float(top1.mean()),
        top10=float(top10.mean()),
        by_position=tuple(_position(each[:3, :, i], counted[:, i]) for i in range(length)),
    )


def _distributions(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL (one || two), whether the likeliest token is the same, and the share of the ten likeliest: each (batch, t)."""
    p, q = one.double().log_softmax(-1), two.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    k = min(10, one.shape[-1])
    best, others = one.topk(k).indices, two.topk(k).indices
    shared = (best[..., None] == others[..., None, :]).any(-1).double().mean(-1)
    return kl, (best[..., 0] == others[..., 0]).double(), shared


def _position(each: Tensor, counted: Tensor) -> Position:
    """(quantity, batch) at one position."""
    if not counted.any():
        return Position(nan, nan, nan)
    largest, mean, kl = each[:, counted]
    return Position(float(largest.max()), float(mean.mean()), float(kl.mean()))
