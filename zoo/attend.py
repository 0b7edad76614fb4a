"""Softmax attention over the keys a slot hands out: the one place where it is computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None = None) -> Tensor:
    """q (b, h, t, d), k (b, g, s, d), v (b, g, s, w) -> (b, h, t, w); heads i * h/g to (i + 1) * h/g - 1 share key i.

    `mask` (t, s) is True where a query sees a key. None means that each query sees all keys up to itself, the queries
    being the last t of the s keys: a lone query, or s == t. `sinks` (h,) are scores of one more key of value zero that
    each head may attend to instead (gpt-oss; StreamingLLM, Xiao et al. 2023, section 3.3).
    """
    heads, new = q.shape[1:3]
    if sinks is not None:
        return _attend_with_sinks(q, k, v, mask, scale, sinks)
    if new == 1:
        # Heads that share a key become queries of that key: the kernel reads each key once, without repeating it.
        q = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        if q.device.type == "cpu" and k.shape[3] != v.shape[3]:
            out = _attend_in_steps(q, k, v, mask, scale)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out.reshape(out.shape[0], heads, 1, out.shape[3])
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=heads != k.shape[1]
    )


def _attend_in_steps(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Keys wider than values, as in latent attention, find no fused kernel on a CPU, and torch's way without one copies
    all keys to scale them: 435 ms against 108 ms here for 128 heads over 8192 keys of their own."""
    scores = (q * scale) @ k.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype) @ v


def _attend_with_sinks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor) -> Tensor:
    """The sink enters the softmax's denominator only, in float32: its value is zero."""
    new, keys, groups = q.shape[2], k.shape[2], k.shape[1]
    if mask is None and new > 1:
        mask = torch.ones(new, keys, dtype=torch.bool, device=q.device).tril()
    grouped = q.unflatten(1, (groups, -1)).flatten(2, 3)  # heads of one key side by side: (b, g, h/g * t, d)
    scores = (grouped @ k.transpose(2, 3)).unflatten(2, (-1, new)).float() * scale
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    sink = sinks.float().view(groups, -1, 1, 1)
    peak = scores.amax(-1, keepdim=True).maximum(sink)
    weights = (scores - peak).exp()
    weights = weights / (weights.sum(-1, keepdim=True) + (sink - peak).exp())
    out = weights.to(v.dtype).flatten(2, 3) @ v
    return out.unflatten(2, (-1, new)).flatten(1, 2)
