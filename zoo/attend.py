"""Softmax attention over the keys a slot hands out: the one place where it is computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.cost import bands
from zoo.step import Band, Mask, visible


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, sinks: Tensor | None = None) -> Tensor:
    """q (b, h, t, d), k (b, g, s, d), v (b, g, s, w) -> (b, h, t, w); heads i * h/g to (i + 1) * h/g - 1 share key i.

    `mask` (t, s) is True where a query sees a key, or it is a Band, which is never drawn in full. None means that each
    query sees all keys up to itself, the queries being the last t of the s keys: a lone query, or s == t. `sinks` (h,)
    are scores of one more key of value zero that each head may attend to instead (gpt-oss; StreamingLLM, Xiao et al.
    2023, section 3.3).
    """
    if isinstance(mask, Band):
        # A compiled function cannot loop over a number of blocks that it does not know: there it is one operator.
        banded = _banded_operator if torch.compiler.is_compiling() else _banded
        return banded(q, k, v, mask.queries, mask.keys, mask.window, scale, sinks)
    if q.shape[2] > 1:
        return _softmax(q, k, v, mask, scale, sinks)
    # Heads that share a key become queries of that key: the kernel reads each key once, without repeating it.
    folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    out = _softmax(folded, k, v, mask, scale, sinks, alone=True)
    return out.reshape(*q.shape[:3], v.shape[3])


def _softmax(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None, alone: bool = False
) -> Tensor:
    """`alone`: the queries are heads of one token, and see what it sees."""
    causal = mask is None and not alone
    if sinks is None:
        if alone and _has_fused(q) and v.shape[3] < k.shape[3]:
            return _in_steps(q, k, v, mask, scale)
        return _without_sinks(q, k, v, mask, causal, scale)
    sinks = sinks.view(1, -1, 1) if not alone else sinks.view(1, k.shape[1], -1)
    can_fuse = _has_fused(q) and q.shape[3] == v.shape[3] and not torch.is_grad_enabled()
    out, total = (_fused if can_fuse else _plain)(q, k, v, mask, causal, scale)
    # The sink adds e^sink to the softmax's denominator, e^total without it, and nothing to the values: no key is copied
    # to make room for one more. In prefill of 2,048 tokens 3 x faster than scores written out.
    return (out * torch.sigmoid(total - sinks.to(total.dtype)).unsqueeze(-1)).to(v.dtype)


def _without_sinks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    grouped, width = q.shape[1] != k.shape[1], v.shape[3]
    if _has_fused(q) and width < k.shape[3]:
        # The kernel wants keys and values of one width; without it torch writes out all scores and copies all keys to
        # scale them: 3 x slower here.
        v = F.pad(v, (0, k.shape[3] - width))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return out[..., :width]


def _in_steps(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """A lone token's keys and values are too many to be copied for the kernel's sake."""
    scores = (q * scale) @ k.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype) @ v


def _has_fused(q: Tensor) -> bool:
    """Whether torch's kernel for the CPU is there. Who forbids it (torch.nn.attention.sdpa_kernel) wants to see the
    products."""
    return q.device.type == "cpu" and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """-> values (b, h, t, w) and the logarithm of the softmax's denominator (b, h, t), which has no gradient."""
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=bias, scale=scale
    )
    return out, total


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The same, with the scores written out; softmax in float32 at least."""
    new, keys, groups = q.shape[2], k.shape[2], k.shape[1]
    if causal:
        mask = torch.ones(new, keys, dtype=torch.bool, device=q.device).tril()
    grouped = q.unflatten(1, (groups, -1)).flatten(2, 3)  # heads of one key side by side: (b, g, h/g * t, d)
    scores = (grouped @ k.transpose(2, 3)).unflatten(2, (-1, new))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    out = scores.softmax(-1).to(v.dtype).flatten(2, 3) @ v
    return out.unflatten(2, (-1, new)).flatten(1, 2), scores.logsumexp(-1).flatten(1, 2)


def _banded(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, window: int, scale: float, sinks: Tensor | None
) -> Tensor:
    """A block of queries at a time, each over the keys its windows reach: what is computed grows with the window."""
    past = k.shape[2] - q.shape[2]
    blocks = [
        _softmax(
            q[:, :, start:end],
            k[:, :, first : past + end],
            v[:, :, first : past + end],
            visible(queries[start:end], keys[first : past + end], window),
            scale,
            sinks,
        )
        for start, end, first in bands(past, q.shape[2], window)
    ]
    return torch.cat(blocks, dim=2)


_banded_operator = torch.library.custom_op("zoo::banded_attention", _banded, mutates_args=())


@_banded_operator.register_fake
def _banded_shape(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, window: int, scale: float, sinks: Tensor | None
) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])
