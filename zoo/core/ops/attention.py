"""Softmax attention over the keys that a layer cache returns. Every attention block uses this file.

`attention` calls one of four functions:

- `_decode`: a single token, by torch's kernels or, compiled for the CPU, by reductions over the keys.
- `_prefill`: several tokens, by torch's kernels or, on the CPU, one block of queries at a time.
- `_bounded_attention`: several tokens over sliding windows or chunks, by one `_prefill` per block of queries.
- `_capped_attention`: capped scores, which no kernel computes.

zoo.kernels chooses the kernels. Sizes: b sequences, t queries, s keys; h heads, g key heads; d key width, w value
width.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core import kernels
from zoo.core.float32 import upcast, upcast_dtype
from zoo.core.forward_context import Mask, ReachMask, causal, visible, whole_mask
from zoo.core.kernels import is_replaced
from zoo.core.ops.flash import (
    differentiable_flash_attention,
    flash_attention,
    has_flash_gradient,
    has_flash_kernel,
    operator,
    reach_blocks,
)
from zoo.core.ops.linear import allows_operators, dot, is_plain_memory, linear, materialize
from zoo.costs import reach_of

MAX_REDUCTION_HEADS = 8  # maximum query heads per key head for decode by reductions
MIN_WHOLE_WIDTH = 128  # minimum width of a value to read it whole
LOAD_BYTES = 64  # bytes of one vector load
BLOCK_QUERIES = 128  # maximum queries per block (minimum in float32)
MIN_BLOCK_ROWS = 512  # minimum rows of a matrix product: queries times query heads per key head
MIN_MULTIPLY_ADDS = 2**22  # from here on, a prefill's arithmetic outweighs the calls of more operators


def plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float,
    sinks: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Computes `attention` by its formula, softmax(scale * q k^T + mask) v. The shapes are described there.

    With a `cap`, scores x become cap * tanh(x / cap). A sink is a score of one more key, whose value is zero.
    """
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = scale * q @ k.mT
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~whole_mask(mask, q.shape[2], k.shape[2], q.device), float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    return scores.softmax(-1)[..., : k.shape[2]] @ v


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float,
    sinks: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Returns the attention output (b, h, t, w) for q (b, h, t, d), k (b, g, s, d) and v (b, g, s, w).

    Query heads i * h/g to (i + 1) * h/g - 1 share key head i.
    `mask` (t, s) or (b, 1, t, s) is True where a query sees a key; a ReachMask is never built in full. The mask is None
    if the queries are the last t of the s keys and each query sees all keys up to itself (a single query, or s == t).
    `sinks` (h,) are the scores of one extra key per head with the value zero (gpt-oss; StreamingLLM, Xiao et al. 2023,
    section 3.3). With a `cap`, each score x becomes cap * tanh(x / cap) before the mask (Gemma 2, section 2).
    """
    if cap is not None:
        return _capped_attention(q, k, v, mask, scale, sinks, cap)
    if isinstance(mask, ReachMask):
        return _bounded_attention(q, k, v, mask, scale, sinks)
    if q.shape[2] > 1:
        return _prefill(q, k, v, mask, scale, sinks)
    # Heads that share a key become queries of that key, so that each key is read once and never repeated.
    folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    if mask is not None and mask.ndim == 4:
        mask = mask.expand(-1, -1, folded.shape[2], -1)
    out = _decode(folded, k, v, mask, scale, None if sinks is None else sinks.view(k.shape[1], -1))
    return out.reshape(*q.shape[:3], v.shape[3])


def _allows_kernels(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether kernels for plain CPU memory may run: operators are allowed, and q, k and v have one dtype."""
    return allows_operators(q, k, v) and is_plain_memory(q, k) and is_plain_memory(q, v)


# Single-token decode.


def _decode(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    """Returns the output (b, g, h/g, w) for one token's q (b, g, h/g, d), grouped by key head. Sinks are (g, h/g)."""
    if not torch.compiler.is_compiling() or q.device.type != "cpu":
        return _decode_sdpa(q, k, v, mask, scale, sinks)
    # The number of keys is dynamic, so that the compiler does not recompile for each number. Reductions over the keys
    # compile to loops; library calls are hidden in one opaque operator.
    if not _allows_kernels(q, k, v):
        return _apply_sinks(*_explicit_attention(q, k, v, mask, scale), sinks).to(v.dtype)
    if q.shape[2] <= MAX_REDUCTION_HEADS and is_replaced("compiled decode attention", q.dtype):
        # On an AMD EPYC with two cores, keys and values are read 1.2 times as fast as by torch's kernel in float32, and
        # 1.2 to 4 times in bfloat16.
        return _apply_sinks(*_explicit_attention(q, k, v, mask, scale, by_reductions=True), sinks).to(v.dtype)
    return _decode_operator(q, k, v, mask, scale, sinks)


def _decode_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    if sinks is not None:
        out = _sdpa_with_sinks(q, k, v, mask, False, scale, sinks)
    elif q.shape[3] != v.shape[3]:  # no kernel takes keys and values of different widths, and padding would be slowest
        out = _explicit_attention(q, k, v, mask, scale)[0]
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return out.contiguous()  # kernels return different layouts; `_like` promises a contiguous output


def _like(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


_decode_operator = custom_op("zoo::decode_attention", _decode_sdpa, mutates_args=())
_decode_operator.register_fake(_like)


# Prefill.


def _prefill(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    if sinks is not None and has_flash_gradient(q, k, v):
        return differentiable_flash_attention(q, k, v, mask, scale, sinks)
    if torch.compiler.is_compiling():
        if _allows_kernels(q, k, v):
            return _prefill_operator(q, k, v, mask, scale, sinks)  # one operator serves every number of keys
    elif _takes_blocks(q, k, v, mask):
        return _prefill_in_blocks(q, k, v, mask, scale, sinks)
    return _prefill_sdpa(q, k, v, mask, scale, sinks)


def _prefill_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    if sinks is not None:
        return _sdpa_with_sinks(q, k, v, mask, mask is None, scale, sinks[:, None])
    width, gqa = v.shape[3], q.shape[1] != k.shape[1]
    if has_flash_kernel(q) and width < q.shape[3]:
        # The kernel needs keys and values of one width. Otherwise torch writes all scores to memory and copies all
        # keys to scale them, which makes a prefill of latent attention three times slower.
        v = F.pad(v, (0, q.shape[3] - width))
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
    return out[..., :width]


_prefill_operator = operator("zoo::prefill_attention", _prefill, _like)


def _takes_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    choices = kernels.current or kernels.active()
    if ("attention prefill", q.dtype) not in choices.replaced or (mask is not None and mask.ndim == 4):
        return False
    multiply_adds = q.numel() // max(q.shape[0], 1) * k.shape[2]
    return multiply_adds >= MIN_MULTIPLY_ADDS and has_flash_kernel(q) and _allows_kernels(q, k, v)


def _prefill_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None
) -> Tensor:
    """Computes one block of queries at a time. The block's scores are in memory in the dtype of q, as in released code.

    In float32 and float64 it takes one sequence and one key head at a time, because `linear` takes one matrix.
    """
    (batch, heads, new, _), key_heads = q.shape, k.shape[1]
    out = q.new_empty(batch, new, heads, v.shape[3]).transpose(1, 2)
    if q.dtype.itemsize < 4:
        _fill_blocks(out, q, k, v, mask, scale, sinks)
        return out
    share = heads // key_heads
    for b, g in itertools.product(range(batch), range(key_heads)):
        one, key, shared = slice(b, b + 1), slice(g, g + 1), slice(g * share, (g + 1) * share)
        sink = None if sinks is None else sinks[shared]
        _fill_blocks(out[one, shared], q[one, shared], k[one, key], v[one, key], mask, scale, sink)
    return out


def _fill_blocks(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None
) -> None:
    (batch, heads, new, _), (key_heads, keys), width = q.shape, k.shape[1:3], v.shape[3]
    grouped, k, transposed = q.unflatten(1, (key_heads, -1)), k.flatten(0, 1), v.flatten(0, 1).transpose(1, 2)
    block = (min if q.dtype.itemsize < 4 else max)(BLOCK_QUERIES, max(MIN_BLOCK_ROWS * key_heads // heads, 1))
    for start in range(0, new, block):
        end = min(start + block, new)
        reach = keys if mask is not None else keys - new + end
        rows = grouped[:, :, :, start:end].flatten(2, 3).flatten(0, 1)  # (b * g, h/g * t, d)
        scores = _multiply(rows, k[:, :reach], scale).view(batch, heads, end - start, reach)
        if mask is None:
            later = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
            scores[..., start - end :].masked_fill_(later, float("-inf"))
        else:
            scores.masked_fill_(~mask[start:end], float("-inf"))
        weights = scores.softmax(-1)
        part = _multiply(weights.view(*rows.shape[:2], reach), transposed[:, :, :reach]).view(batch, heads, -1, width)
        if sinks is not None:
            denominator = upcast(scores.amax(-1)) - upcast(weights.amax(-1)).log()
            part = _apply_sinks(part, denominator, sinks[:, None])
        out[:, :, start:end] = part


def _multiply(x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Returns the scaled products (n, r, s) of x (n, r, d) and weight (n, s, d); n is 1 in float32 and float64."""
    if x.dtype == torch.float32:
        return linear(x[0] * scale, weight[0].contiguous()).unsqueeze(0)
    return torch.baddbmm(x.new_empty(1, 1, 1), x, weight.transpose(1, 2), beta=0, alpha=scale)


# Sliding windows and chunks.


def _bounded_attention(q: Tensor, k: Tensor, v: Tensor, mask: ReachMask, scale: float, sinks: Tensor | None) -> Tensor:
    if has_flash_gradient(q, k, v):
        return differentiable_flash_attention(q, k, v, mask, scale, sinks)
    if not torch.compiler.is_compiling():
        return _in_blocks(q, k, v, mask, scale, sinks)
    # The compiler does not know the number of blocks and cannot loop over them, so the loop is one opaque operator. If
    # operators are not allowed, the whole mask is built instead.
    if _allows_kernels(q, k, v):
        return _bounded_operator(q, k, v, mask.queries, mask.keys, *mask.reach.arguments, scale, sinks)
    return _prefill(q, k, v, visible(*mask), scale, sinks)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: ReachMask, scale: float, sinks: Tensor | None) -> Tensor:
    """Computes one block of queries at a time over the keys in its reach: the work is proportional to the reach."""
    blocks = [
        _prefill(q[:, :, new], k[:, :, seen], v[:, :, seen], seen_mask, scale, sinks)
        for new, seen, seen_mask in reach_blocks(mask)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _in_reach(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor,
    reach: str,
    numbers: Sequence[int],
    scale: float,
    sinks: Tensor | None,
) -> Tensor:
    return _in_blocks(q, k, v, ReachMask(queries, keys, reach_of(reach, numbers)), scale, sinks)


_bounded_operator = operator("zoo::bounded_attention", _in_reach, _like)


# Capped scores.


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, sinks: Tensor | None, cap: float
) -> Tensor:
    """Computes attention with capped scores, one block of queries at a time, with the block's scores in memory.

    In compiled code, one block holds all queries, because the compiler does not know the number of blocks.
    """
    new = q.shape[2]
    if isinstance(mask, ReachMask) and not torch.compiler.is_compiling():
        parts = (
            _capped_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], seen, scale, sinks, cap)
            for queries, keys, seen in reach_blocks(mask)
        )
        return torch.cat(list(parts), dim=2)
    if mask is not None or new > 1:
        mask = whole_mask(mask, new, k.shape[2], q.device)
    elif torch.compiler.is_compiling() and _allows_kernels(q, k, v):
        return _capped_operator(q, k, v, scale, sinks, cap)  # the compiler cannot multiply an unknown number of keys
    size = new if torch.compiler.is_compiling() else BLOCK_QUERIES
    blocks = []
    for start in (0,) if torch.compiler.is_compiling() else range(0, new, size):  # range() would make `new` a constant
        seen = None if mask is None else mask[start : start + size]
        out, denominator = _explicit_attention(q[:, :, start : start + size], k, v, seen, scale, cap=cap)
        blocks.append(_apply_sinks(out, denominator, None if sinks is None else sinks[:, None]))
    return torch.cat(blocks, dim=2).to(v.dtype)


def _capped_decode(q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None, cap: float) -> Tensor:
    return _capped_attention(q, k, v, None, scale, sinks, cap)


_capped_operator = custom_op("zoo::capped_attention", _capped_decode, mutates_args=())
_capped_operator.register_fake(_like)


# Kernels of decode and prefill.


def _sdpa_with_sinks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float, sinks: Tensor
) -> Tensor:
    """Computes attention with sinks by rescaling a kernel's output, so that no key is copied to append a sink.

    A prefill of 2,048 tokens takes a third of the time of `_explicit_attention`, which has all scores in memory.
    """
    if has_flash_kernel(q) and q.shape[3] == v.shape[3] and _allows_kernels(q, k, v):
        out, denominator = flash_attention(q, k, v, mask, is_causal, scale)
    else:
        if is_causal:
            mask = causal(q.shape[2], k.shape[2], q.device)
        out, denominator = _explicit_attention(q, k, v, mask, scale)
    return _apply_sinks(out, denominator, sinks).to(v.dtype)


def _apply_sinks(out: Tensor, denominator: Tensor, sinks: Tensor | None) -> Tensor:
    """Rescales an output (..., w) by its sinks; `denominator` (...) is the logarithm of the softmax's denominator.

    A sink adds e^sink to the denominator and nothing to the values.
    """
    return out if sinks is None else out * torch.sigmoid(denominator - sinks.to(denominator.dtype)).unsqueeze(-1)


def _explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    by_reductions: bool = False,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (b, h, t, w) and the logarithm of the softmax's denominator (b, h, t).

    All scores are in memory, and the softmax is in at least float32. `by_reductions` replaces the matrix products.
    """
    new, key_heads, exact = q.shape[2], k.shape[1], upcast_dtype(q.dtype)
    grouped = q.unflatten(1, (key_heads, -1)).flatten(2, 3)  # the heads of one key: (b, g, h/g * t, d)
    if by_reductions:
        scores = torch.stack([dot(k, row) for row in materialize(grouped.to(exact) * scale).unbind(2)], dim=2)
    else:
        scores = (grouped @ k.transpose(2, 3)).to(exact) * scale
    if cap is not None:
        scores = cap * (scores / cap).tanh()
    scores = scores.unflatten(2, (-1, new))
    if mask is not None:  # (t, s), or (b, 1, t, s) beside (b, g, h/g, t, s)
        scores = scores.masked_fill(~(mask if mask.ndim == 2 else mask.unsqueeze(2)), float("-inf"))
    largest = scores.amax(-1, keepdim=True)
    powers = (scores - largest).exp()
    total = powers.sum(-1, keepdim=True)
    weights = (powers / total).flatten(2, 3)
    out = _weighted_values(weights, v).to(v.dtype) if by_reductions else weights.to(v.dtype) @ v
    return out.unflatten(2, (-1, new)).flatten(1, 2), (largest + total.log()).squeeze(-1).flatten(1, 2)


def _weighted_values(weights: Tensor, v: Tensor) -> Tensor:
    """Returns the sums (b, g, h, w) of the values v (b, g, s, w) over the keys, weighted by `weights` (b, g, h, s).

    Wide values are split into parts of one vector load, and all parts are summed in one pass over the keys, if the sums
    of a whole value fit in the processor's registers. This is 1.2 to 1.5 times as fast as one pass per vector load.
    """
    width = v.shape[3]
    whole = width >= MIN_WHOLE_WIDTH and weights.shape[2] * width <= 2 * MIN_WHOLE_WIDTH
    parts = v.split(LOAD_BYTES // v.dtype.itemsize if whole else width, dim=3)
    rows = materialize(weights).unsqueeze(-1).unbind(2)
    return torch.stack([torch.cat([(row * part).sum(-2) for part in parts], dim=-1) for row in rows], dim=2)
