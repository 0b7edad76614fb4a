"""Latent attention: keys and values of all heads are linear maps of one latent per token (DeepSeek-V2, section 2.1).

In the expanded form, attention runs over these keys and values. In the absorbed form, the maps are folded into queries
and outputs, and attention runs over the latents themselves. Both forms give equal results. Which one takes fewer FLOPs
depends on the number of cached and new tokens.

Sizes: b sequences, t queries, s stored tokens; h heads; r the rank of a latent; k chosen tokens
(zoo.core.ops.indexing).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from zoo.core.ops import attention as scores
from zoo.core.ops.attention import attention
from zoo.core.ops.flash import operator
from zoo.core.ops.indexing import sees, sees_all, sparse_attention
from zoo.core.ops.linear import allows_operators, linear, per_head
from zoo.costs import Full


def plain(q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """q_nope (b, h, t, nope_dim), q_rope (b, h, t, rope_dim), latent (b, 1, s, r + rope_dim), up (h, nope_dim + v, r)
    -> (b, h, t, v).

    For a latent [c; k_rope], the key of head i is [up_k[i] c; k_rope] and its value is up_v[i] c.
    """
    compressed, k_rope = latent.split([up.shape[2], q_rope.shape[3]], dim=3)
    nope, v = (compressed @ up.mT).split([q_nope.shape[3], up.shape[1] - q_nope.shape[3]], dim=3)
    k = torch.cat([nope, k_rope.expand(*nope.shape[:3], -1)], dim=3)
    return scores.plain(torch.cat([q_nope, q_rope], dim=3), k, v, mask, scale)


def latent_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    up: Tensor,
    mask: Tensor | None,
    scale: float,
    kv_up: Callable[[Tensor], Tensor] | None = None,
    absorb: bool | None = None,
) -> Tensor:
    """Computes the same as `plain`, in the absorbed form if `absorb` is true, in the expanded form if it is false, and
    in the one with fewer FLOPs if it is None. In the expanded form, the module `kv_up` (if given) replaces `up`."""
    (heads, new, nope_dim), kv_rank = q_nope.shape[1:], up.shape[2]
    if absorb is None:
        absorb = absorbing_is_cheaper(latent.shape[2] - new, new, kv_rank, up.shape[1])
    if absorb:
        # Values keep the rotary columns, since kernels need keys and values of one width. Neither is then copied.
        return absorbed(q_nope, q_rope, up, partial(attention, k=latent, v=latent, mask=mask, scale=scale))
    k, v = expand(latent, kv_up or partial(linear, weight=up.flatten(0, 1)), heads, kv_rank, nope_dim)
    return attention(torch.cat([q_nope, q_rope], dim=-1), k, v, mask, scale)


def sparse_latent_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    up: Tensor,
    chosen: Tensor,
    mask: Tensor | None,
    scale: float,
    under: Callable[[Tensor], Tensor],
) -> Tensor:
    """Computes `plain` over the tokens in `chosen` (b, t, k), a result of `top_keys`. `mask` is the cache's mask.

    Tokens that see more than k tokens attend to gathered latents, in the absorbed form. With gradients, attending to
    all latents under a mask takes less memory: `under` maps a mask to the attention output of these queries.
    """
    given = q_nope, q_rope, latent, up, chosen, mask, scale
    if q_nope.shape[2] == 1:
        return _over_chosen(*given)
    if not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return _prefill(*given)
    elif allows_operators(*given[:4]):
        return _prefill_operator(*given)
    return under(sees(chosen, latent.shape[2]))


def absorbing_is_cheaper(past: int, new: int, kv_rank: int, expanded_width: int) -> bool:
    """Whether the absorbed form takes fewer FLOPs than the expanded form for `new` tokens after `past`.
    `expanded_width` is nope_dim + v_dim. The result is always True for a single token."""
    expanding = past * kv_rank * expanded_width
    wider = Full().pairs(past, new) * (2 * kv_rank - expanded_width)
    return new == 1 or expanding > wider


def absorbed(q_nope: Tensor, q_rope: Tensor, up: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """q (b, h, t, d) and up (h, nope_dim + v_dim, r) -> (b, h, t, v), with `up` folded into the queries and the output.
    `attend` maps queries (b, h, t, r + rope_dim) to weighted latents; only their first r elements are used."""
    nope_dim, kv_rank = q_nope.shape[3], up.shape[2]
    k_up, v_up = up.split([nope_dim, up.shape[1] - nope_dim], dim=1)
    q = torch.cat([per_head(q_nope, k_up.transpose(1, 2)), q_rope], dim=-1)
    return per_head(attend(q)[..., :kv_rank], v_up)


def expand(
    latent: Tensor, kv_up: Callable[[Tensor], Tensor], heads: int, kv_rank: int, nope_dim: int
) -> tuple[Tensor, Tensor]:
    """Latents (b, 1, s, r + rope_dim) -> keys (b, h, s, nope_dim + rope_dim) and values (b, h, s, v) of all heads.
    `kv_up` maps (b, s, r) to (b, s, h * (nope_dim + v))."""
    compressed, k_rope = latent.split([kv_rank, latent.shape[3] - kv_rank], dim=-1)
    kv = kv_up(compressed.squeeze(1)).unflatten(-1, (heads, -1)).transpose(1, 2)
    k_nope, v = kv.split([nope_dim, kv.shape[3] - nope_dim], dim=-1)
    return torch.cat([k_nope, k_rope.expand(-1, heads, -1, -1)], dim=-1), v


def _over_chosen(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, chosen: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """q (b, h, t, d), latent (b, 1, s, r + rope_dim), up (h, nope_dim + v, r), chosen (b, t, k) -> (b, h, t, v)."""
    attend = partial(sparse_attention, latent=latent, chosen=chosen, mask=mask, scale=scale, width=up.shape[2])
    return absorbed(q_nope, q_rope, up, attend)


def _prefill(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, chosen: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Returns the output (b, h, t, v) for several tokens and the arguments of `_over_chosen`. The first tokens see at
    most k tokens and attend to all of these, in the cheaper form of MLA."""
    new, past = q_nope.shape[2], latent.shape[2] - q_nope.shape[2]
    first = sees_all(chosen.shape[2], past, new)
    out = []
    if first:
        seen, seen_mask = latent[:, :, : past + first], None if mask is None else mask[:first, : past + first]
        out.append(latent_attention(q_nope[:, :, :first], q_rope[:, :, :first], seen, up, seen_mask, scale))
    if first < new:
        later = q_nope[:, :, first:], q_rope[:, :, first:], latent, up, chosen[:, first:], mask, scale
        out.append(_over_chosen(*later))
    return torch.cat(out, dim=2)


_prefill_operator = operator(
    "zoo::sparse_mla_prefill",
    _prefill,
    lambda q_nope, q_rope, latent, up, *_: q_nope.new_empty(*q_nope.shape[:3], up.shape[1] - q_nope.shape[3]),
)
