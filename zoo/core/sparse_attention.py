"""Attention over chosen keys: each query attends to at most k stored tokens (DeepSeek-V3.2, section 2.1).

`top_keys` chooses by scores such as `index_scores`, `sparse_attention` attends to what was chosen, with work in
proportion to k and not to the tokens stored. Sizes: b sequences, t queries, s stored tokens; h heads, which share one
key per token; k chosen tokens; d the width of queries and keys, w that of values.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.attention import attention
from zoo.core.flash import token_by_token
from zoo.core.forward_context import Mask
from zoo.core.linear import PLAIN_TYPES

NOT_CHOSEN = -1
SCORE_ELEMENTS = 2**19  # scores of all heads that are in memory together
CONVERTED_ELEMENTS = 2**18  # of keys that are converted to float32 together
GATHERED_ELEMENTS = 2**21  # of keys that are gathered together, for as many queries as that holds, one at least


def index_scores(q: Tensor, weights: Tensor, keys: Tensor, at_once: bool = False) -> Tensor:
    """q (b, t, h, d), weights (b, t, h), keys (b, s, d) -> scores (b, t, s), in float32 at least.

    score(t, s) = sum over heads of weights(t, head) * relu(q(t, head) . keys(s)) (DeepSeek-V3.2, equation 1). A block
    of keys at a time, unless `at_once`: the scores of all heads would take h times the memory of the result.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    rows, weights = q.to(exact).flatten(1, 2), weights.to(exact).unsqueeze(2)
    parts = [
        (weights @ (rows @ part.to(exact).transpose(1, 2)).relu_().unflatten(1, q.shape[1:3])).squeeze(2)
        for part in ([keys] if at_once else _key_blocks(keys, rows.shape[0] * rows.shape[1], exact))
    ]
    return torch.cat(parts, dim=-1)


def _key_blocks(keys: Tensor, rows: int, exact: torch.dtype) -> Sequence[Tensor]:
    """Keys (b, s, d) in blocks for `rows` queries of single heads, each converted to `exact`."""
    if torch.compiler.is_exporting():  # no loop over an unknown number of keys
        return [keys]
    block = SCORE_ELEMENTS // rows
    if keys.dtype != exact:
        block = min(block, CONVERTED_ELEMENTS // keys.shape[2])
    return keys.split(max(block, 1), dim=1)


def top_keys(scores: Tensor, k: int, visible: Tensor | None = None) -> Tensor:
    """scores (b, t, s) -> the k stored tokens of the highest score for each query, (b, t, k) int32, in no order.

    `visible` (t, s) is True where a query sees a token, None for all. A query that sees fewer than k gets all of them,
    and NOT_CHOSEN in the other places. Among equal scores torch.topk decides. The result is k wide for every s, so that
    compiled code has one shape for all lengths.
    """
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    scores = F.pad(scores, (0, torch.sym_max(k - scores.shape[-1], 0)), value=float("-inf"))
    top = scores.topk(k, sorted=False)
    return top.indices.to(torch.int32).masked_fill(top.values == float("-inf"), NOT_CHOSEN)


def sees(chosen: Tensor, keys: int) -> Tensor:
    """Chosen tokens (b, t, k) -> the mask (b, 1, t, s) that is True where a query attends to one of s = `keys`."""
    seen = chosen.new_zeros(*chosen.shape[:2], keys + 1, dtype=torch.bool)
    places = torch.where(chosen == NOT_CHOSEN, keys, chosen).long()
    return seen.scatter(2, places, torch.ones_like(places, dtype=torch.bool))[:, None, :, :keys]


def sees_all(k: int, past: int, new: int) -> int:
    """How many of `new` tokens after `past`, the first of them, see at most k tokens, so that every one is chosen."""
    return min(max(k - past, 0), new)


def sparse_attention(q: Tensor, latent: Tensor, chosen: Tensor, mask: Mask, scale: float, width: int) -> Tensor:
    """q (b, h, t, d), latent (b, 1, s, d), chosen (b, t, k) as of `top_keys` -> (b, h, t, width).

    All heads share one key per token, and its first `width` elements are the value: the absorbed form of latent
    attention. `mask` is what `attention` takes. It is read where no more than k tokens are stored: then every visible
    one is attended to. Each query has at least one chosen token.

    With gradients the gathered keys, (b, t, k, d), are kept for the backward pass. For more than a few queries,
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
    """Whether compiled code may call an operator that has no gradient, on ordinary tensors in the dtype they have."""
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
    """q (b, h, t, d), keys (b, 1, s, d), which are the values too, chosen (b, t, k) as of `top_keys`, sinks (h,) as of
    `attention` -> (b, h, t, d), each query's keys gathered. Not for compiled code: it loops over the queries."""
    block = max(GATHERED_ELEMENTS // (chosen.shape[2] * q.shape[3]), 1)
    # One buffer for all blocks: of fresh memory the system maps each page anew, which takes as long as the attention.
    buffer = None if torch.is_grad_enabled() else keys.new_empty(block * chosen.shape[2], q.shape[3])
    out = []
    for queries, stored, indices in zip(q.transpose(1, 2), keys[:, 0], chosen, strict=True):
        for part, index in zip(queries.split(block), indices.split(block), strict=True):
            absent = index == NOT_CHOSEN
            gathered = _gather(stored, index.masked_fill(absent, 0).flatten(), buffer).unflatten(0, index.shape)
            out.append(_over_gathered(part, gathered, absent, scale, sinks))
    return torch.cat(out).unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def _gather(keys: Tensor, index: Tensor, buffer: Tensor | None) -> Tensor:
    """keys (s, d), index (n,) -> the keys at `index`, (n, d), whole rows copied into the buffer if there is one."""
    return torch.index_select(keys, 0, index, out=None if buffer is None else buffer[: len(index)])


def _over_gathered(q: Tensor, keys: Tensor, absent: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
    """q (n, h, d), keys (n, k, d), absent (n, k) -> (n, h, d). The heads are queries of the one key they share."""
    seen = ~absent[:, None, None]
    if sinks is not None:
        return attention(q.unsqueeze(2), keys[:, None], keys[:, None], seen, scale, sinks).squeeze(2)
    # As wide as the keys: torch's kernels want that, and none copies values that are the keys.
    return F.scaled_dot_product_attention(q[:, None], keys[:, None], keys[:, None], seen, scale=scale)[:, 0]


@custom_op("zoo::sparse_attention", mutates_args=())
def _operator(q: Tensor, latent: Tensor, chosen: Tensor, mask: Tensor | None, scale: float, width: int) -> Tensor:
    return token_by_token(_sparse_attention(q, latent, chosen, mask, scale, width))


@_operator.register_fake
def _like_output(q: Tensor, latent: Tensor, chosen: Tensor, mask: Tensor | None, scale: float, width: int) -> Tensor:
    return token_by_token(q.new_empty(*q.shape[:3], width))
