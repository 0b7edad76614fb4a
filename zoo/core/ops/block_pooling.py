"""Averages of blocks of tokens, weighted by a softmax over a block's tokens, channel by channel (DeepSeek-V4, section
2.3.1, equations 11 and 12).

An unfinished block is stored as a pair: the average of its values, and the logarithm of the sum of their weights. Two
such pairs can be merged into one. A cache therefore holds one pair instead of the tokens of an unfinished block. Sizes:
b sequences, t tokens, n blocks; c channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.core.forward_context import block_count


class Pooled(NamedTuple):
    """Each block's average value, and the logarithm of its sum of weights, both (b, n, c), in float32 or float64."""

    mean: Tensor
    weight: Tensor

    def merged(self, other: "Pooled") -> "Pooled":
        """Returns the pairs for the values of both blocks together."""
        share = torch.sigmoid(other.weight - self.weight)  # 0 or 1 if one of the two is empty
        return Pooled(self.mean.lerp(other.mean, share), torch.logaddexp(self.weight, other.weight))

    def where(self, holds: Tensor) -> "Pooled":
        """Returns the same blocks where `holds`, a bool (1,) or (n, 1), is true, and empty blocks elsewhere."""
        return Pooled(self.mean, torch.where(holds, self.weight, nothing(self.weight.dtype)))

    def at(self, index: Tensor) -> "Pooled":
        """Returns the blocks at `index` (m,)."""
        return Pooled(*(each.index_select(1, index) for each in self))

    def shifted(self, before: "Pooled") -> "Pooled":
        """Returns each block's predecessor; the predecessor of the first block is `before`."""
        return Pooled(*(torch.cat([first, each[:, :-1]], dim=1) for first, each in zip(before, self, strict=True)))


def nothing(dtype: torch.dtype) -> float:
    """Returns the log weight of an empty block: negligible beside any other, and finite so that differences are too."""
    return torch.finfo(dtype).min / 4


def plain(values: Tensor, scores: Tensor, positions: Tensor, every: int, pending: Pooled) -> Pooled:
    """Computes `pooled` block by block: mean = sum of softmax(scores) * values, weight = log(sum of exp(scores)).

    Earlier tokens of the first block count as one more token.
    """
    if positions[0] % every:
        values, scores = (torch.cat([first, x], dim=1) for first, x in zip(pending, (values, scores), strict=True))
        positions = torch.cat([positions[:1], positions])
    numbers = positions // every
    blocks = [numbers == number for number in numbers.unique().tolist()]
    means = [(scores[:, block].softmax(1) * values[:, block]).sum(1) for block in blocks]
    return Pooled(torch.stack(means, 1), torch.stack([scores[:, block].logsumexp(1) for block in blocks], 1))


def pooled(values: Tensor, scores: Tensor, positions: Tensor, every: int, pending: Pooled) -> Pooled:
    """Returns the pairs of `block_count(t, every)` blocks of `every` tokens, starting with the first token's block.

    `values` and `scores` (b, t, c) belong to tokens at consecutive `positions` (t,). The weights are the exponentials
    of the scores. `pending` (b, 1, c) is the pair of earlier tokens in the first block; it is ignored if the first
    token begins a block. Blocks after the last token's block are empty.
    """
    (new, channels), lowest = values.shape[1:], nothing(scores.dtype)
    blocks, slots = block_count(new, every), every if new > 1 else 1
    places = positions - positions[:1] // every * every if new > 1 else torch.zeros_like(positions)
    grid = (values.shape[0], blocks * slots, channels)
    values = values.new_zeros(grid).index_copy(1, places, values).unflatten(1, (blocks, slots))
    scores = scores.new_full(grid, lowest).index_copy(1, places, scores).unflatten(1, (blocks, slots))
    highest = scores.detach().amax(2, keepdim=True)
    weights = (scores - highest).exp()
    total = weights.sum(2)
    own = Pooled((weights * values).sum(2) / total, highest.squeeze(2) + total.log())
    first = Pooled(own.mean[:, :1], own.weight[:, :1]).merged(pending.where(positions[:1] % every != 0))
    return Pooled(*(torch.cat([one, each[:, 1:]], dim=1) for one, each in zip(first, own, strict=True)))
