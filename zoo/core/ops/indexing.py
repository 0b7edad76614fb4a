"""Sparse attention: a cheap index scores all stored keys, and each query attends to the k best.

The lightning indexer of DeepSeek-V3.2 (section 2.1) chooses tokens. The indexer of DeepSeek-V4 (section 2.3) chooses
entries, each of which stands for several tokens. Attention's work is proportional to k. Routers also use `top_k`.

This file has its own top-k, because torch.topk does not define the order of equal scores: its choice changes with the
length of a row. Equal scores are common: keys whose index heads are all zero after ReLU, or probabilities that
underflow. Scores that are equal in exact arithmetic count as equal here only if they are rounded alike.

Sizes: b sequences, t queries, s stored keys, k chosen keys. In an index: h index heads of width d. In attention: h
heads, which share one key per token; d width of queries and keys, w width of values.
"""

from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.float32 import upcast_dtype
from zoo.core.forward_context import causal
from zoo.core.ops import attention as scores
from zoo.core.ops.attention import attention
from zoo.core.ops.flash import operator
from zoo.core.ops.linear import allows_operators

NOT_CHOSEN = -1
SCORE_ELEMENTS = 2**19  # maximum scores of all heads in memory at once
CONVERTED_ELEMENTS = 2**18  # maximum elements of keys converted to float32 at once
QUERY_BLOCK = 64  # queries that are scored together, over all keys that the last of these queries can see
GATHERED_ELEMENTS = 2**21  # maximum elements of keys gathered at once; more if one query needs more


class Index(NamedTuple):
    """The tensors of top-k selection. A key's score is the sum over heads of weight * relu(query . key)."""

    queries: Tensor  # (b, t, h, d)
    weights: Tensor  # (b, t, h)
    keys: Tensor  # (b, 1, s, d)
    k: int


def plain(index: Index, past: int, every: int = 1, mask: Tensor | None = None) -> Tensor:
    """Computes `choose_keys` with all scores in memory: the k visible keys s with the highest

    score(s) = sum over heads of weight(head) * relu(query(head) . key(s)).
    """
    products = torch.einsum("bthd,bsd->bths", index.queries, index.keys[:, 0]).relu()
    scores = torch.einsum("bth,bths->bts", index.weights, products)
    positions = torch.arange(past, past + scores.shape[1], device=scores.device)
    seen = complete(positions, scores.shape[2], every) if mask is None else mask
    chosen = top_k(F.pad(scores.masked_fill(~seen, -inf), (0, index.k), value=-inf), index.k)
    return chosen[1].to(torch.int32).masked_fill(chosen[0] == -inf, NOT_CHOSEN)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """scores (..., n) -> the k highest scores and their indices, both (..., k). The highest come first; among equal
    scores, the earlier come first. 0.0 equals -0.0, and NaN is above all numbers."""
    indices = scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return scores.gather(-1, indices), indices


def top_k_set(scores: Tensor, k: int) -> Tensor:
    """Returns the indices of `top_k` in any order. For long rows this is several times as fast as sorting.

    All scores above the k-th highest are chosen, then scores equal to it, the earliest first, until there are k.
    """
    n = scores.shape[-1]
    highest = scores.topk(k, sorted=False).values
    last = highest.nan_to_num(inf, inf, -inf).amin(-1, keepdim=True)
    earliest = torch.arange(n, 0, -1, dtype=torch.int32, device=scores.device)
    order = torch.where(scores <= last, torch.where(scores == last, earliest, 0), n + earliest)  # NaN is not <= last
    return order.topk(k, sorted=False).indices


def index_scores(q: Tensor, weights: Tensor, keys: Tensor, at_once: bool = False) -> Tensor:
    """Returns scores (b, t, s), in at least float32, for q (b, t, h, d), weights (b, t, h) and keys (b, s, d).

    score(t, s) = sum over heads of weights(t, head) * relu(q(t, head) . keys(s)) (DeepSeek-V3.2, equation 1). It takes
    one block of keys at a time unless `at_once`: scores of all heads take h times the result's memory.
    """
    exact = upcast_dtype(q.dtype)
    rows, weights = q.to(exact).flatten(1, 2), weights.to(exact).unsqueeze(2)
    parts = [
        (weights @ (rows @ part.to(exact).transpose(1, 2)).relu_().unflatten(1, q.shape[1:3])).squeeze(2)
        for part in ([keys] if at_once else _key_blocks(keys, rows.shape[0] * rows.shape[1], exact))
    ]
    return torch.cat(parts, dim=-1)


def _key_blocks(keys: Tensor, rows: int, exact: torch.dtype) -> Sequence[Tensor]:
    """Splits keys (b, s, d) into blocks small enough to be scored against `rows` query vectors in dtype `exact`."""
    if torch.compiler.is_exporting():  # no loop over an unknown number of keys
        return [keys]
    block = SCORE_ELEMENTS // rows
    if keys.dtype != exact:
        block = min(block, CONVERTED_ELEMENTS // keys.shape[2])
    return keys.split(max(block, 1), dim=1)


def top_keys(scores: Tensor, k: int, visible: Tensor) -> Tensor:
    """Returns the k stored tokens with the highest scores (b, t, s) for each query: (b, t, k) int32, unordered.

    `visible` (t, s) is True where a query sees a token. A query that sees fewer than k tokens gets all of them, and
    NOT_CHOSEN in the other columns. Among equal scores the earlier token wins. The result has k columns for every s, so
    that compiled code has one shape for all lengths.
    """
    scores = F.pad(scores.masked_fill(~visible, -inf), (0, torch.sym_max(k - scores.shape[-1], 0)), value=-inf)
    chosen = top_k_set(scores, k)
    return chosen.to(torch.int32).masked_fill(scores.gather(-1, chosen) == -inf, NOT_CHOSEN)


def sees(chosen: Tensor, keys: int) -> Tensor:
    """Returns the mask (b, 1, t, s) of `chosen` tokens (b, t, k), with s = `keys`: True where a query attends."""
    seen = chosen.new_zeros(*chosen.shape[:2], keys + 1, dtype=torch.bool)
    places = torch.where(chosen == NOT_CHOSEN, keys, chosen).long()
    return seen.scatter(2, places, torch.ones_like(places, dtype=torch.bool))[:, None, :, :keys]


def sees_all(k: int, past: int, new: int, every: int = 1) -> int:
    """Returns how many of the first of `new` tokens after `past` see at most k keys of `every` tokens each.

    For these tokens all visible keys are chosen.
    """
    return min(max((k + 1) * every - 1 - past, 0), new)


def chooses_all(new: int, stored: int, k: int, mask: Tensor | None) -> bool:
    """Whether each of `new` queries attends to all keys that it sees, because at most k keys are `stored`.

    False in compiled code that has one graph for all numbers of keys. Compiled code has a fixed number of keys with
    gradients, and in a static cache (where a single token has a `mask`).
    """
    is_known = mask is not None if new == 1 else torch.is_grad_enabled()
    return (is_known or not torch.compiler.is_compiling()) and stored <= k


def query_blocks(first: int, new: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each block of the queries from `first` to `new`."""
    return ((start, min(start + QUERY_BLOCK, new)) for start in range(first, new, QUERY_BLOCK))


def complete(positions: Tensor, keys: int, every: int) -> Tensor:
    """Returns the mask (t, s) for tokens at `positions` (t,): True where a token completes or follows a block.

    The blocks are the first s = `keys` blocks of `every` tokens.
    """
    return torch.arange(keys, device=positions.device) < ((positions + 1) // every)[:, None]


def choose_keys(index: Index, past: int, every: int = 1, mask: Tensor | None = None) -> Tensor:
    """Returns the keys chosen for each of t tokens after `past`, as (b, t, k) int32 from `top_keys`.

    A key stands for `every` tokens, and a token sees the keys that are complete with it. A `mask` (t, s) replaces this
    rule; `past` is then s - t. There is no gradient. In compiled code it is one operator for all lengths.
    """
    run = _choice_operator if torch.compiler.is_compiling() and not torch.compiler.is_exporting() else _choose_keys
    return run(*index, past, every, mask)


@torch.no_grad()
def _choose_keys(
    q: Tensor, weights: Tensor, keys: Tensor, k: int, past: int, every: int, mask: Tensor | None
) -> Tensor:
    new, keys = q.shape[1], keys[:, 0]
    if torch.compiler.is_exporting():  # no loop over an unknown number of queries
        visible = causal(new, keys.shape[1], q.device) if mask is None else mask
        return top_keys(index_scores(q, weights, keys), k, visible)
    is_static = new == 1 and mask is not None  # the token may be anywhere among the places that are read
    first = 0 if is_static else sees_all(k, past, new, every)
    positions = torch.arange(past, past + new, device=q.device)
    places = torch.arange(k, dtype=torch.int32, device=q.device)
    chosen = [places.where(complete(positions[:first], k, every), NOT_CHOSEN).expand(len(q), -1, -1)]
    for start, end in query_blocks(first, new):
        stored = (past + end) // every
        visible = complete(positions[start:end], stored, every) if mask is None else mask[start:end, :stored]
        scores = index_scores(q[:, start:end], weights[:, start:end], keys[:, :stored])
        chosen.append(top_keys(scores, k, visible))
    return torch.cat(chosen, dim=1)


_choice_operator = custom_op("zoo::choose_keys", _choose_keys, mutates_args=())
_choice_operator.register_fake(lambda q, weights, keys, k, *_: q.new_empty(*q.shape[:2], k, dtype=torch.int32))


def plain_sparse_attention(q: Tensor, latent: Tensor, chosen: Tensor, scale: float, width: int) -> Tensor:
    """Computes `sparse_attention` with the scores of all tokens in memory, masking the tokens that are not chosen."""
    return scores.plain(q, latent, latent[..., :width], sees(chosen, latent.shape[2]), scale)


def sparse_attention(
    q: Tensor, latent: Tensor, chosen: Tensor, mask: Tensor | None, scale: float, width: int
) -> Tensor:
    """Returns (b, h, t, width) for q (b, h, t, d), latent (b, 1, s, d) and chosen (b, t, k) from `top_keys`.

    All heads share one key per token, and the key's first `width` elements are the value: the absorbed form of latent
    attention. `mask` is as in `attention`. It is read only if at most k tokens are stored: queries then attend to all
    visible tokens. Each query must have at least one chosen token.

    With gradients, the gathered keys (b, t, k, d) stay in memory for the backward pass. For more than a few queries,
    attention under the mask `sees(chosen, s)` takes less memory.
    """
    if not torch.compiler.is_compiling():
        return _sparse_attention(q, latent, chosen, mask, scale, width)
    if allows_operators(q, latent):  # one operator for every number of queries and keys
        return _attention_operator(q, latent, chosen, mask, scale, width)
    absent, sequence = chosen == NOT_CHOSEN, torch.arange(q.shape[0], device=q.device)[:, None, None]
    gathered = latent[:, 0][sequence, chosen.masked_fill(absent, 0)].flatten(0, 1)
    out = _over_gathered(q.transpose(1, 2).flatten(0, 1), gathered, absent.flatten(0, 1), scale)
    return out.unflatten(0, chosen.shape[:2]).transpose(1, 2)[..., :width]


def gathered_attention(q: Tensor, keys: Tensor, chosen: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
    """Returns the output (b, h, t, d) of each query's attention over its own gathered keys, which are also the values.

    Shapes: q (b, h, t, d), keys (b, 1, s, d), chosen (b, t, k) from `top_keys`, sinks (h,) as in `attention`. It loops
    over the queries, so compiled code cannot trace it.
    """
    block = max(GATHERED_ELEMENTS // (chosen.shape[2] * q.shape[3]), 1)
    # One buffer serves all blocks: mapping the pages of fresh memory takes as long as the attention.
    buffer = None if torch.is_grad_enabled() else keys.new_empty(block * chosen.shape[2], q.shape[3])
    out = []
    for queries, stored, indices in zip(q.transpose(1, 2), keys[:, 0], chosen, strict=True):
        for part, index in zip(queries.split(block), indices.split(block), strict=True):
            absent, into = index == NOT_CHOSEN, None if buffer is None else buffer[: index.numel()]
            gathered = torch.index_select(stored, 0, index.masked_fill(absent, 0).flatten(), out=into)
            out.append(_over_gathered(part, gathered.unflatten(0, index.shape), absent, scale, sinks))
    return torch.cat(out).unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def _over_gathered(q: Tensor, keys: Tensor, absent: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
    """Returns (n, h, d) for q (n, h, d), keys (n, k, d) and absent (n, k). Heads are queries over the shared keys."""
    seen = ~absent[:, None, None]
    if sinks is not None:
        return attention(q.unsqueeze(2), keys[:, None], keys[:, None], seen, scale, sinks).squeeze(2)
    # Values stay as wide as keys, because torch's kernels need equal widths. The keys serve as values without a copy.
    return F.scaled_dot_product_attention(q[:, None], keys[:, None], keys[:, None], seen, scale=scale)[:, 0]


def _sparse_attention(
    q: Tensor, latent: Tensor, chosen: Tensor, mask: Tensor | None, scale: float, width: int
) -> Tensor:
    if latent.shape[2] <= chosen.shape[2]:
        return attention(q, latent, latent, mask, scale)[..., :width]
    return gathered_attention(q, latent, chosen, scale)[..., :width]


_attention_operator = operator(
    "zoo::sparse_attention", _sparse_attention, lambda q, *given: q.new_empty(*q.shape[:3], given[-1])
)
