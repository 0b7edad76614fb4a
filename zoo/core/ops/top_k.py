"""The k highest scores, chosen alike in every pass: among equal scores the earlier one wins.

torch.topk leaves open which of several equal scores it chooses, and chooses differently for other lengths of a row.
Equal scores are common: those of keys for which every index head is zero after ReLU, probabilities that underflow.
Scores that are equal in exact arithmetic alone, such as those of two equal keys, tie only where they are rounded alike.
"""

from math import inf

import torch
from torch import Tensor


def plain(scores: Tensor, k: int) -> Tensor:
    """scores (..., n) -> the indices of the k highest (..., k): the first k of a stable sort."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """scores (..., n) -> the k highest and their indices, (..., k), the highest first and the earlier first among equal
    ones. 0.0 equals -0.0, and NaN is above all."""
    indices = plain(scores.detach(), k)
    return scores.gather(-1, indices), indices


def top_k_set(scores: Tensor, k: int) -> Tensor:
    """The indices that `top_k` gives, in no order. For long rows this is several times as fast as sorting them.

    The k-th highest score divides a row: every index above it is chosen, and so many of those that equal it as are
    missing, the earliest ones.
    """
    n = scores.shape[-1]
    highest = scores.topk(k, sorted=False).values
    last = highest.nan_to_num(inf, inf, -inf).amin(-1, keepdim=True)
    earliest = torch.arange(n, 0, -1, dtype=torch.int32, device=scores.device)
    order = torch.where(scores <= last, torch.where(scores == last, earliest, 0), n + earliest)  # NaN is not below
    return order.topk(k, sorted=False).indices
