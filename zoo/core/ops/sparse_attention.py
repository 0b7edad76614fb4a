"""Attention over chosen keys: each query attends to at most k stored tokens (DeepSeek-V3.2, section 2.1).

The work is in proportion to k and not to the tokens stored. Sizes: b sequences, t queries, s stored tokens; h heads,
which share one key per token; k chosen tokens (zoo.core.ops.indexing); d the width of queries and keys, w that of
values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.forward_context import Mask
from zoo.core.ops import attention as scores
from zoo.core.ops.attention import attention
from zoo.core.ops.flash import token_by_token
from zoo.core.ops.indexing import NOT_CHOSEN, sees
from zoo.core.ops.linear import PLAIN_TYPES

GATHERED_ELEMENTS = 2**21  # maximum elements of keys gathered at once, for at least one query


def plain(q: Tensor, latent: Tensor, chosen: Tensor, scale: float, width: int) -> Tensor:
    """`sparse_attention`, with the scores of all tokens in memory and those that are not chosen masked."""
    return scores.plain(q, latent, latent[..., :width], sees(chosen, latent.shape[2]), scale)


def sparse_attention(q: Tensor, latent: Tensor, chosen: Tensor, mask: Mask, scale: float, width: int) -> Tensor:
    """Returns (b, h, t, width) for q (b, h, t, d), latent (b, 1, s, d) and chosen (b, t, k) from `top_keys`.

    All heads share one key per token, whose first `width` elements are the value: the absorbed form of latent
    attention. `mask` is that of `attention`. It is read only if at most k tokens are stored: queries then attend to
    every visible one. Each query has at least one chosen token.

    With gradients, the gathered keys (b, t, k, d) are kept for the backward pass. For more than a few queries,
    attention under the mask `sees(chosen, s)` takes less memory.
    """
    if not torch.compiler.is_compiling():
        return _sparse_attention(q, latent, chosen, mask, scale, width)
    if allows_operators(q, latent):
        return _operator(q, latent, chosen, mask, scale, width)  # one operator for every number of queries and keys
    absent, sequence = chosen == NOT_CHOSEN, torch.arange(q.shape[0], device=q.device)[:, None, None]
    gathered = latent[:, 0][sequence, chosen.masked_fill(absent, 0)].flatten(0, 1)
    out = _over_gathered(q.transpose(1, 2).flatten(0, 1), gathered, absent.flatten(0, 1), scale)
    return out.unflatten(0, chosen.shape[:2]).transpose(1, 2)[..., :width]


def allows_operators(*tensors: Tensor) -> bool:
    """Whether compiled code may call an operator without gradient: ordinary tensors, no autocast, no export."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_exporting()
        or any(type(x) not in PLAIN_TYPES or torch.is_autocast_enabled(x.device.type) for x in tensors)
    )


def _sparse_attention(q: Tensor, latent: Tensor, chosen: Tensor, mask: Mask, scale: float, width: int) -> Tensor:
    if latent.shape[2] <= chosen.shape[2]:
        return attention(q, latent, latent, mask, scale)[..., :width]
    return gathered_attention(q, latent, chosen, scale)[..., :width]


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
            absent = index == NOT_CHOSEN
            gathered = _gather(stored, index.masked_fill(absent, 0).flatten(), buffer).unflatten(0, index.shape)
            out.append(_over_gathered(part, gathered, absent, scale, sinks))
    return torch.cat(out).unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def _gather(keys: Tensor, index: Tensor, buffer: Tensor | None) -> Tensor:
    """Returns the rows of keys (s, d) at `index` (n,) as (n, d), in the buffer if there is one."""
    return torch.index_select(keys, 0, index, out=None if buffer is None else buffer[: len(index)])


def _over_gathered(q: Tensor, keys: Tensor, absent: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
    """Returns (n, h, d) for q (n, h, d), keys (n, k, d) and absent (n, k). Heads are queries over the shared keys."""
    seen = ~absent[:, None, None]
    if sinks is not None:
        return attention(q.unsqueeze(2), keys[:, None], keys[:, None], seen, scale, sinks).squeeze(2)
    # Values stay as wide as the keys, as torch's kernels need; no kernel copies values that are the keys.
    return F.scaled_dot_product_attention(q[:, None], keys[:, None], keys[:, None], seen, scale=scale)[:, 0]


@custom_op("zoo::sparse_attention", mutates_args=())
def _operator(q: Tensor, latent: Tensor, chosen: Tensor, mask: Tensor | None, scale: float, width: int) -> Tensor:
    return token_by_token(_sparse_attention(q, latent, chosen, mask, scale, width))


@_operator.register_fake
def _like_output(q: Tensor, latent: Tensor, chosen: Tensor, mask: Tensor | None, scale: float, width: int) -> Tensor:
    return token_by_token(q.new_empty(*q.shape[:3], width))
