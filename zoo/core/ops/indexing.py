"""Sparse attention: a cheap index scores all stored keys, and each query attends to the k best.

The lightning indexer of DeepSeek-V3.2 (section 2.1) chooses tokens. That of DeepSeek-V4 (section 2.3) chooses entries,
each of which stands for several tokens. The work of attention is in proportion to k. Routers choose experts by `top_k`.

torch.topk does not define the order of equal scores, and its choice changes with the length of a row. Equal scores are
common: keys whose index heads are all zero after ReLU, or probabilities that underflow. Scores that are equal only in
exact arithmetic, such as those of two equal keys, tie only if they are rounded alike.

Sizes: b sequences, t queries, s stored keys, k chosen keys. In an index: h index heads and d their width. In attention:
h heads, which share one key per token; d the width of queries and keys, w that of values.
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
QUERY_BLOCK = 64  # queries that are scored together, over the keys up to the last of them
GATHERED_ELEMENTS = 2**21  # maximum elements of keys gathered at once, for at least one query


class Index(NamedTuple):
    """Scores for top-k selection: a key's score is the sum over heads of weight * relu(query . key)."""

    queries: Tensor  # (b, t, h, d)
    weights: Tensor  # (b, t, h)
    keys: Tensor  # (b, 1, s, d)
    k: int


def plain(index: Index, past: int, every: int = 1, mask: Tensor | None = None) -> Tensor:
    """`choose_keys` with all scores in memory: the k highest of the keys s that a query sees, of

    score(s) = sum over heads of weight(head) * relu(query(head) . key(s)).
    """
    products = torch.einsum("bthd,bsd->bths", index.queries, index.keys[:, 0]).relu()
    scores = torch.einsum("bth,bths->bts", index.weights, products)
    positions = torch.arange(past, past + scores.shape[1], device=scores.device)
    seen = complete(positions, scores.shape[2], every) if mask is None else mask
    chosen = top_k(F.pad(scores.masked_fill(~seen, -inf), (0, index.k), value=-inf), index.k)
    return chosen[1].to(torch.int32).masked_fill(chosen[0] == -inf, NOT_CHOSEN)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """scores (..., n) -> the k highest and their indices, (..., k), the highest first and the earlier first among equal
    ones. 0.0 equals -0.0, and NaN is above all."""
    indices = scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return scores.gather(-1, indices), indices


def top_k_set(scores: Tensor, k: int) -> Tensor:
    """Returns the indices of `top_k`, unordered. For long rows this is several times as fast as sorting.

    The k-th highest score divides a row: every higher score is chosen, and then the earliest of the scores that equal
    it, until there are k.
    """
    n = scores.shape[-1]
    highest = scores.topk(k, sorted=False).values
    last = highest.nan_to_num(inf, inf, -inf).amin(-1, keepdim=True)
    earliest = torch.arange(n, 0, -1, dtype=torch.int32, device=scores.device)
    order = torch.where(scores <= last, torch.where(scores == last, earliest, 0), n + earliest)  # NaN is not below
    return order.topk(k, sorted=False).indices


def index_scores(q: Tensor, weights: Tensor, keys: Tensor, at_once: bool = False) -> Tensor:
    """Returns scores (b, t, s), in at least float32, for q (b, t, h, d), weights (b, t, h) and keys (b, s, d).

    score(t, s) = sum over heads of weights(t, head) * relu(q(t, head) . keys(s)) (DeepSeek-V3.2, equation 1). It takes
    one block of keys at a time, unless `at_once`: the scores of all heads take h times the memory of the result.
    """
    exact = upcast_dtype(q.dtype)
    rows, weights = q.to(exact).flatten(1, 2), weights.to(exact).unsqueeze(2)
    parts = [
        (weights @ (rows @ part.to(exact).transpose(1, 2)).relu_().unflatten(1, q.shape[1:3])).squeeze(2)
        for part in ([keys] if at_once else _key_blocks(keys, rows.shape[0] * rows.shape[1], exact))
    ]
    return torch.cat(parts, dim=-1)


def _key_blocks(keys: Tensor, rows: int, exact: torch.dtype) -> Sequence[Tensor]:
    """Splits keys (b, s, d) into blocks small enough to score `rows` rows (queries times heads) in dtype `exact`."""
    if torch.compiler.is_exporting():  # no loop over an unknown number of keys
        return [keys]
    block = SCORE_ELEMENTS // rows
    if keys.dtype != exact:
        block = min(block, CONVERTED_ELEMENTS // keys.shape[2])
    return keys.split(max(block, 1), dim=1)


def top_keys(scores: Tensor, k: int, visible: Tensor) -> Tensor:
    """Returns the k stored tokens with the highest scores (b, t, s) for each query: (b, t, k) int32, unordered.

    `visible` (t, s) is True where a query sees a token. A query that sees fewer than k tokens gets all of them, and
    NOT_CHOSEN in the other places. Among equal scores the earlier token wins. The result is k wide for
    every s, so that compiled code has one shape for all lengths.
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
    """The number of leading tokens, among `new` after `past`, that see at most k keys of `every` tokens each.

    All keys are chosen for these tokens.
    """
    return min(max((k + 1) * every - 1 - past, 0), new)


def chooses_all(new: int, stored: int, k: int, mask: Tensor | None) -> bool:
    """Whether each of `new` queries attends to all that it sees, at most k of the `stored` keys.

    False where compiled code does not know. It knows the number of keys with gradients and in a static cache (which
    has a `mask` of a single token), and otherwise has one graph for all lengths.
    """
    is_known = mask is not None if new == 1 else torch.is_grad_enabled()
    return (is_known or not torch.compiler.is_compiling()) and stored <= k


def query_blocks(first: int, new: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each block of the queries from `first` to `new`."""
    return ((start, min(start + QUERY_BLOCK, new)) for start in range(first, new, QUERY_BLOCK))


def complete(positions: Tensor, keys: int, every: int) -> Tensor:
    """Returns the mask (t, s) for tokens at `positions` (t,): True where a block of `every` tokens is complete.

    The token itself counts; the blocks are the first s = `keys`.
    """
    return torch.arange(keys, device=positions.device) < ((positions + 1) // every)[:, None]


def choose_keys(index: Index, past: int, every: int = 1, mask: Tensor | None = None) -> Tensor:
    """Returns the keys chosen for each of t tokens after `past`, (b, t, k), in the form of `top_keys`.

    A key stands for `every` tokens, and a token sees the keys that are complete with it. A `mask` (t, s) replaces this
    rule; `past` then counts the tokens before the last place. No gradient flows through. Compiled, it is one operator
    for all lengths.
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
    is_static = new == 1 and mask is not None  # the token is not the last of the places that are read
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
    """`sparse_attention`, with the scores of all tokens in memory and those that are not chosen masked."""
    return scores.plain(q, latent, latent[..., :width], sees(chosen, latent.shape[2]), scale)


def sparse_attention(
    q: Tensor, latent: Tensor, chosen: Tensor, mask: Tensor | None, scale: float, width: int
) -> Tensor:
    """Returns (b, h, t, width) for q (b, h, t, d), latent (b, 1, s, d) and chosen (b, t, k) from `top_keys`.

    All heads share one key per token, whose first `width` elements are the value: the absorbed form of latent
    attention. `mask` is that of `attention`. It is read only if at most k tokens are stored: queries then attend to
    every visible one. Each query has at least one chosen token.

    With gradients, the gathered keys (b, t, k, d) are kept for the backward pass. For more than a few queries,
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
    """Returns (b, h, t, d): attention of each query over its gathered keys, which are the values too.

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
    # Values stay as wide as the keys, as torch's kernels need; no kernel copies values that are the keys.
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
