"""Attention over a sliding window of tokens and over entries in one softmax (DeepSeek-V4, section 2.3).

An entry stands for a block of tokens. A token sees the entries of all blocks that are complete with it, or the k
entries among them that an indexer chooses. Keys are also the values, and all heads share them. Sizes: b sequences, t
queries, s keys of the window, n entries, k chosen entries; h heads of width d; i index heads of width w.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.forward_context import Mask, ReachMask, visible, whole_mask
from zoo.core.ops import attention as scores
from zoo.core.ops import indexing
from zoo.core.ops.attention import attention
from zoo.core.ops.flash import token_by_token
from zoo.core.ops.indexing import (
    NOT_CHOSEN,
    Index,
    choose_keys,
    complete,
    gathered_attention,
    index_scores,
    query_blocks,
    sees,
    sees_all,
    top_keys,
)
from zoo.core.ops.linear import allows_operators
from zoo.costs import Full, Reach, Window, reach_of


def plain(
    q: Tensor,
    keys: Tensor,
    entries: Tensor,
    mask: Mask,
    positions: Tensor,
    every: int,
    scale: float,
    sinks: Tensor | None,
    index: Index | None = None,
) -> Tensor:
    """Computes `entry_attention` for several tokens: one softmax over the window's keys and the entries that each query
    sees. With an `index`, only the k entries with the highest scores are included."""
    past, stored = int(positions[0]), entries.shape[2]
    in_window = whole_mask(mask, q.shape[2], keys.shape[2], q.device)
    seen = complete(positions, stored, every)
    if index is not None:
        seen = sees(indexing.plain(index, past, every), stored)
        in_window = in_window.expand(q.shape[0], 1, -1, -1)
    both = torch.cat([keys, entries], dim=2)
    return scores.plain(q, both, both, torch.cat([in_window, seen], dim=-1), scale, sinks)


def entry_attention(
    q: Tensor,
    keys: Tensor,
    entries: Tensor,
    mask: Mask,
    positions: Tensor,
    so_far: Tensor | None,
    every: int,
    scale: float,
    sinks: Tensor | None,
    index: Index | None = None,
) -> Tensor:
    """Returns (b, h, t, d) for q (b, h, t, d) of tokens at `positions` (t,), keys (b, 1, s, d), entries (b, 1, n, d).

    Each entry stands for `every` tokens; its index is the number of its block. `mask` is the cache's mask of the
    window's keys, and `sinks` (h,) are as in `attention`. `so_far` is a tensor whose length is the number of all tokens
    so far, this pass included; for a single token, all `entries` must then be complete. It is None for a single token
    over a static cache, where shapes do not depend on the position.
    """
    # Only eager code and operators can loop over lengths. All other code computes all pairs under one mask.
    has_operator = not torch.compiler.is_compiling() or allows_operators(q, keys, entries)
    if so_far is None or isinstance(mask, Tensor) or not has_operator:
        return _under_a_mask(q, keys, entries, mask, positions, so_far, every, scale, sinks, index)
    key_positions, reach = (mask.keys, mask.reach) if isinstance(mask, ReachMask) else (positions, Full())
    chosen_by = (None, None, None, 0) if index is None else index
    lengths = key_positions, positions, len(so_far), *reach.arguments, every
    run = _operator if torch.compiler.is_compiling() else _entry_attention
    return run(q, keys, entries, *lengths, scale, sinks, *chosen_by)


def chooses_all_entries(so_far: Tensor | None, every: int, k: int) -> bool:
    """Whether the tokens so far have at most k complete entries, so that no index is needed. False if this is unknown:
    in compiled code, and for a single token over a static cache."""
    return so_far is not None and not torch.compiler.is_compiling() and len(so_far) // every <= k


def dense_entry_pairs(past: int, new: int, every: int, window: int, most: int | None) -> int:
    """Counts the (query, key) pairs that `entry_attention` computes for `new` tokens after `past`, with masked pairs.

    Keys are the window's keys and the entries; an index chooses at most `most` entries (None: there is no index).
    """
    if new == 1:
        complete = (past + 1) // every
        return min(past + 1, window) + (complete if most is None else min(complete, most))
    first = _first_that_see_all(past, new, every, most)
    held, gathered = min(past, window), 0
    if first < new and most is not None:
        gathered = (new - first) * (min(past + new, window) + most)
    blocks = Window(window).blocks(held, first) if first else ()
    return gathered + sum((end - start) * (held + end - low + (past + end) // every) for start, end, low in blocks)


def dense_index_pairs(past: int, new: int, every: int, most: int) -> int:
    """Counts the (query, entry) pairs that an index scores to choose up to `most` entries for `new` tokens after
    `past`."""
    first = _first_that_see_all(past, new, every, most)
    return sum((end - start) * ((past + end) // every) for start, end in query_blocks(first, new))


def _first_that_see_all(past: int, new: int, every: int, most: int | None) -> int:
    """Returns how many of the first of `new` tokens after `past` see at most `most` entries."""
    return new if most is None else sees_all(most, past, new, every)


def _entry_attention(
    q: Tensor,
    keys: Tensor,
    entries: Tensor,
    key_positions: Tensor,
    positions: Tensor,
    so_far: int,
    kind: str,
    numbers: Sequence[int],
    every: int,
    scale: float,
    sinks: Tensor | None,
    queries: Tensor | None,
    weights: Tensor | None,
    index_keys: Tensor | None,
    k: int,
) -> Tensor:
    index = None
    if queries is not None and so_far // every > k:
        assert weights is not None
        assert index_keys is not None
        index = Index(queries, weights, index_keys, k)
    new, past, reach = q.shape[2], so_far - q.shape[2], reach_of(kind, numbers)
    if new == 1:
        if index:
            entries = _taken(entries, choose_keys(index, past, every))
        both = torch.cat([keys, entries], dim=2)
        return attention(q, both, both, None, scale, sinks)
    first = _first_that_see_all(past, new, every, k if index else None)
    chosen = choose_keys(index, past, every) if index else None
    held, seen = keys.shape[2] - new, None
    if chosen is not None and torch.is_grad_enabled():
        seen, first = sees(chosen, so_far // every), new
    out = []
    for start, end, low in reach.blocks(held, first) if first else ():
        stored, high = (past + end) // every, held + end
        in_window = visible(positions[start:end], key_positions[low:high], reach)
        if seen is None:
            block_mask = torch.cat([in_window, complete(positions[start:end], stored, every)], dim=1)
        else:
            in_window = in_window.expand(q.shape[0], 1, -1, -1)
            block_mask = torch.cat([in_window, seen[:, :, start:end, :stored]], dim=3)
        both = torch.cat([keys[:, :, low:high], entries[:, :, :stored]], dim=2)
        out.append(attention(q[:, :, start:end], both, both, block_mask, scale, sinks))
    if first < new:
        assert chosen is not None
        near = _places(positions[first:], past, held, reach.tokens(so_far), reach).expand(len(q), -1, -1)
        far = torch.where(chosen == NOT_CHOSEN, NOT_CHOSEN, chosen + keys.shape[2])[:, first:]
        both = torch.cat([keys, entries], dim=2)
        out.append(gathered_attention(q[:, :, first:], both, torch.cat([near, far], dim=2), scale, sinks))
    return token_by_token(torch.cat(out, dim=2))


_operator = custom_op("zoo::entry_attention", _entry_attention, mutates_args=())
_operator.register_fake(lambda q, *_: token_by_token(torch.empty_like(q)))


def _places(positions: Tensor, past: int, held: int, tokens: int, reach: Reach) -> Tensor:
    """Positions (t,) -> the index of each key in reach (t, tokens), int32, or NOT_CHOSEN. The first `held` indices
    belong to the cache's ring buffer of `tokens`. The keys of this pass, from position `past` on, follow."""
    keys = positions[:, None] - torch.arange(tokens, device=positions.device)
    places = torch.where(keys < past, keys % tokens, keys - past + held)
    is_seen = reach.sees(positions[:, None], keys) & (keys >= 0)
    return places.masked_fill(~is_seen, NOT_CHOSEN).to(torch.int32)


def _taken(entries: Tensor, chosen: Tensor) -> Tensor:
    """Gathers the `chosen` (b, 1, k) entries from (b, 1, n, d) to (b, 1, k, d). NOT_CHOSEN takes the first entry."""
    places = chosen.clamp_min(0).long().unsqueeze(-1).expand(-1, -1, -1, entries.shape[3])
    return entries.gather(2, places)


def _under_a_mask(
    q: Tensor,
    keys: Tensor,
    entries: Tensor,
    mask: Mask,
    positions: Tensor,
    so_far: Tensor | None,
    every: int,
    scale: float,
    sinks: Tensor | None,
    index: Index | None,
) -> Tensor:
    """Computes `entry_attention` as one attention with a mask. No shape in it depends on positions, only on the shapes
    of the arguments, so it can be compiled."""
    new, stored = q.shape[2], entries.shape[2]
    in_window = whole_mask(mask, new, keys.shape[2], q.device)
    seen = complete(positions, stored, every)
    if index is not None:
        with torch.no_grad():
            scores = index_scores(index.queries, index.weights, index.keys[:, 0], at_once=True)
            chosen = top_keys(scores, index.k, seen)
        if new == 1:
            places = entries if so_far is None else F.pad(entries, (0, 0, 0, 1))  # so that there is at least one
            entries, seen = _taken(places, chosen), (chosen != NOT_CHOSEN).unsqueeze(1)
        else:
            seen = sees(chosen, stored)
        in_window = in_window.expand(q.shape[0], 1, -1, -1)
    both = torch.cat([keys, entries], dim=2)
    return attention(q, both, both, torch.cat([in_window, seen], dim=-1), scale, sinks)
