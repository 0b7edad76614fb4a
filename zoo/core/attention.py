"""Softmax attention over the keys a slot hands out: the one place where it is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core import inductor
from zoo.core.forward_context import Mask, SlidingWindowMask, visible
from zoo.core.kernels import COLD_BYTES, Race, active, bucket
from zoo.core.linear import dot, is_plain_memory, materialize, product
from zoo.costs import window_blocks

MAX_REDUCTION_HEADS = 8  # heads on one key whose scores are sums in one loop over the keys
MIN_WHOLE_WIDTH = 128  # numbers of a value that is worth reading whole
LOAD_BYTES = 64  # bytes that one instruction loads
MAX_BLOCK_QUERIES = 128  # queries whose scores are written out together: at most, and in float32 at least
MIN_BLOCK_ROWS = 512  # rows, queries times heads on one key, that make a product large
MIN_PRODUCTS = 2**22  # multiply-adds of a pass from which blocks can earn back what choosing them costs
RACE_PRODUCTS = 2**29  # multiply-adds of what is timed
RACE_QUERIES, RACE_KEYS = 512, 1024  # at most, of what is timed


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, sinks: Tensor | None = None) -> Tensor:
    """q (b, h, t, d), k (b, g, s, d), v (b, g, s, w) -> (b, h, t, w); heads i * h/g to (i + 1) * h/g - 1 share key i.

    `mask` (t, s) is True where a query sees a key; a SlidingWindowMask is never built in full. None: each query sees
    all keys up to itself, the queries being the last t of the s keys (a single query, or s == t). `sinks` (h,) are
    scores of one more key of value zero that each head may attend to instead (gpt-oss; StreamingLLM, Xiao et al. 2023,
    section 3.3).
    """
    if isinstance(mask, SlidingWindowMask):
        if not torch.compiler.is_compiling():
            return _sliding_window_attention(q, k, v, mask.queries, mask.keys, mask.window, scale, sinks)
        # A compiled function cannot loop over a number of blocks that it does not know: there it is one operator. An
        # operator has no gradient and no autocast; with these the window is a mask.
        if _takes_operators(q, k, v):
            return _sliding_window_operator(q, k, v, mask.queries, mask.keys, mask.window, scale, sinks)
        return _prefill(q, k, v, visible(mask.queries, mask.keys, mask.window), scale, sinks)
    if q.shape[2] > 1:
        return _prefill(q, k, v, mask, scale, sinks)
    # Heads that share a key become queries of that key: the kernel reads each key once, without repeating it.
    folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    out = _decode(folded, k, v, mask, scale, None if sinks is None else sinks.view(k.shape[1], -1))
    return out.reshape(*q.shape[:3], v.shape[3])


def _takes_operators(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether kernels that know nothing but plain memory on the CPU may compute this: no gradients, no autocast, no
    tensor subclasses."""
    return (
        q.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and is_plain_memory(q, k)
        and is_plain_memory(q, v)
    )


def _decode(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    """One token's heads: q (b, g, h/g, d), sinks (g, h/g)."""
    if not torch.compiler.is_compiling() or q.device.type != "cpu":
        return _product(q, k, v, mask, scale, sinks)
    # A compiler is not told how many keys there are, so that it never compiles anew for another number. It makes loops
    # of sums over them; what calls a library is one operator to it.
    if not _takes_operators(q, k, v):
        return _summed(q, k, v, mask, scale, sinks, by_sums=False)
    if q.shape[2] <= MAX_REDUCTION_HEADS and _reduction_wins(
        q.dtype, int(k.shape[1]), int(q.shape[2]), int(q.shape[3])
    ):
        return _summed(q, k, v, mask, scale, sinks)
    return _decode_operator(q, k, v, mask, scale, sinks)


@inductor.constant
def _reduction_wins(dtype: torch.dtype, groups: int, share: int, width: int) -> bool:
    """Called by the compiler while it traces: the choice is part of the code that it makes."""
    race = partial(_race_reduction, dtype, groups, share, width)
    return active().pick_traced("decode attention", dtype, (share, width), race)


def _race_reduction(dtype: torch.dtype, groups: int, share: int, width: int) -> Race:
    """One token over keys and values that do not fit into a cache, by reductions and by torch, both compiled."""
    count = max(COLD_BYTES // (2 * groups * RACE_KEYS * width * dtype.itemsize), 1)
    q = torch.ones(1, groups, share, width, dtype=dtype)
    caches = list(torch.ones(count, 2, 1, groups, RACE_KEYS, width, dtype=dtype))
    compiled = [
        torch.compile(form, dynamic=True, fullgraph=True, options=inductor.options())
        for form in (_decode_operator, _summed)
    ]

    def run(form: Callable[..., Tensor]) -> None:
        for keys, values in caches:
            form(q, keys, values, None, width**-0.5, None)

    return Race(*(partial(run, form) for form in compiled))


def _summed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    sinks: Tensor | None,
    by_sums: bool = True,
) -> Tensor:
    """Scores and values as reductions over the keys (zoo.core.linear), for up to MAX_REDUCTION_HEADS heads per key.
    Measured on an AMD EPYC, two cores: keys and values are read 1.2 times as fast as by torch's kernel in float32, 1.2
    to 4 times in bfloat16."""
    out, total = _explicit_attention(q, k, v, mask, scale, by_sums)
    return (out if sinks is None else _apply_sinks(out, total, sinks)).to(v.dtype)


def _product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    if sinks is not None:
        out = _with_sinks(q, k, v, mask, False, scale, sinks)
    elif q.shape[3] != v.shape[3]:  # no kernel takes keys wider than values, and to copy either would take longest
        out = _explicit_attention(q, k, v, mask, scale)[0]
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.contiguous()  # as `_like` says: kernels return it in other orders


def _like(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    """What an operator for a lone token returns, to a compiler."""
    return q.new_empty(*q.shape[:3], v.shape[3])


_decode_operator = custom_op("zoo::decode_attention", _product, mutates_args=())
_decode_operator.register_fake(_like)


def _prefill(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        if _takes_operators(q, k, v):
            return _prefill_operator(q, k, v, mask, scale, sinks)  # one operator for every number of keys
    elif _blocks_win(q, k, v, mask, scale, sinks):
        return _blocks(q, k, v, mask, scale, sinks)
    return _sdpa(q, k, v, mask, scale, sinks)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    """By torch's own kernels."""
    if sinks is not None:
        return _with_sinks(q, k, v, mask, mask is None, scale, sinks[:, None])
    width, grouped = v.shape[3], q.shape[1] != k.shape[1]
    if _has_fused(q) and width < k.shape[3]:
        # The kernel wants keys and values of one width. Without it torch writes out all scores, and copies all keys to
        # scale them: three times slower for a pass of latent attention.
        v = F.pad(v, (0, k.shape[3] - width))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return out[..., :width]


def _blocks_win(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> bool:
    """Whether attention of several tokens is computed in blocks, with their scores in memory."""
    (heads, new, width), (groups, keys) = q.shape[1:], k.shape[1:3]
    if heads * new * keys * width < MIN_PRODUCTS or not _has_fused(q) or not _takes_operators(q, k, v):
        return False
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    sizes = heads // groups, width, bucket(new), bucket(keys), int(mask is not None)
    return active().pick("attention", q.dtype, sizes, partial(_race_blocks, q, k, v, mask, scale, sinks))


def _race_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Race:
    """Both on the same queries and keys: of one sequence, as many as take some milliseconds."""
    (heads, new, width), (groups, keys) = q.shape[1:], k.shape[1:3]
    share = heads // groups
    new = min(new, RACE_QUERIES)
    keys = new if mask is None else min(keys, RACE_KEYS)
    groups = min(groups, max(RACE_PRODUCTS // (2 * share * new * keys * width), 1))
    heads = groups * share
    queries, keys_and_values = (slice(new), slice(keys)) if mask is None else (slice(-new, None), slice(-keys, None))
    q, k, v = q[:1, :heads, queries], k[:1, :groups, keys_and_values], v[:1, :groups, keys_and_values]
    mask, sinks = None if mask is None else mask[queries, keys_and_values], None if sinks is None else sinks[:heads]
    return Race(partial(_sdpa, q, k, v, mask, scale, sinks), partial(_blocks, q, k, v, mask, scale, sinks))


def _by_token(out: Tensor) -> Tensor:
    """(b, h, t, w), in memory token by token, as the next projection reads it."""
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _like_by_token(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    """What an operator for several tokens returns, to a compiler. One that returns it otherwise needs a new name: code
    that was compiled once and kept knows it by that alone."""
    return _by_token(q.new_empty(*q.shape[:3], v.shape[3]))


@custom_op("zoo::attention", mutates_args=())
def _prefill_operator(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None
) -> Tensor:
    return _by_token(_prefill(q, k, v, mask, scale, sinks))


_prefill_operator.register_fake(_like_by_token)


def _with_sinks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, sinks: Tensor
) -> Tensor:
    """No key is copied to make room for one more, and a pass of 2,048 tokens takes a third of the time that it takes
    with its scores written out."""
    can_fuse = _has_fused(q) and q.shape[3] == v.shape[3] and _takes_operators(q, k, v)
    if can_fuse:
        out, total = _fused(q, k, v, mask, causal, scale)
    else:
        if causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        out, total = _explicit_attention(q, k, v, mask, scale)
    return _apply_sinks(out, total, sinks).to(v.dtype)


def _apply_sinks(out: Tensor, total: Tensor, sinks: Tensor) -> Tensor:
    """A sink adds e^sink to the softmax's denominator, which is e^total without it, and nothing to the values. So it
    rescales what comes out."""
    return out * torch.sigmoid(total - sinks.to(total.dtype)).unsqueeze(-1)


def _has_fused(q: Tensor) -> bool:
    """Whether torch's kernel for the CPU is there. Who forbids it (torch.nn.attention.sdpa_kernel) wants to see the
    products."""
    return q.device.type == "cpu" and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """-> values (b, h, t, w) and the logarithm of the softmax's denominator (b, h, t), which has no gradient."""
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    # The kernel takes a head's numbers to lie side by side, and does not look: those of a turned head of two do not.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=bias, scale=scale
    )
    return out, total


def _explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, by_sums: bool = False
) -> tuple[Tensor, Tensor]:
    """The same, with the scores written to memory; softmax in float32 at least."""
    new, groups, exact = q.shape[2], k.shape[1], torch.promote_types(q.dtype, torch.float32)
    grouped = q.unflatten(1, (groups, -1)).flatten(2, 3)  # heads of one key side by side: (b, g, h/g * t, d)
    if by_sums:
        scores = torch.stack([dot(k, row) for row in materialize(grouped.to(exact) * scale).unbind(2)], dim=2)
    else:
        scores = (grouped @ k.transpose(2, 3)).to(exact) * scale
    scores = scores.unflatten(2, (-1, new))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    largest = scores.amax(-1, keepdim=True)
    powers = (scores - largest).exp()
    total = powers.sum(-1, keepdim=True)
    weights = (powers / total).flatten(2, 3)
    out = _weighted(weights, v).to(v.dtype) if by_sums else weights.to(v.dtype) @ v
    return out.unflatten(2, (-1, new)).flatten(1, 2), (largest + total.log()).squeeze(-1).flatten(1, 2)


def _weighted(weights: Tensor, v: Tensor) -> Tensor:
    """weights (b, g, h, s), v (b, g, s, w) -> (b, g, h, w), as sums over the keys.

    A loop goes through all keys for as many numbers of a value as one load brings, and then for the next. Where the
    sums of a whole value fit the processor's registers, side by side, wide values are read 1.2 to 1.5 times as fast.
    """
    width = v.shape[3]
    whole = width >= MIN_WHOLE_WIDTH and weights.shape[2] * width <= 2 * MIN_WHOLE_WIDTH
    parts = v.split(LOAD_BYTES // v.dtype.itemsize if whole else width, dim=3)
    rows = materialize(weights).unsqueeze(-1).unbind(2)
    return torch.stack([torch.cat([(row * part).sum(-2) for part in parts], dim=-1) for row in rows], dim=2)


def _blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None) -> Tensor:
    """A block of queries at a time, its scores written out in the dtype of q, as released code does in eager mode."""
    (batch, heads, new, _), groups = q.shape, k.shape[1]
    out = q.new_empty(batch, new, heads, v.shape[3]).transpose(1, 2)
    if q.dtype.itemsize < 4:
        _write_blocks(out, q, k, v, mask, scale, sinks)
        return out
    for b, g in itertools.product(range(batch), range(groups)):  # one matrix at a time, which is what `product` takes
        one, key = slice(b, b + 1), slice(g, g + 1)
        shared = slice(g * heads // groups, (g + 1) * heads // groups)
        _write_blocks(
            out[one, shared],
            q[one, shared],
            k[one, key],
            v[one, key],
            mask,
            scale,
            None if sinks is None else sinks[shared],
        )
    return out


def _write_blocks(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None
) -> None:
    (batch, heads, new, _), (groups, keys), width = q.shape, k.shape[1:3], v.shape[3]
    grouped, k, turned = q.unflatten(1, (groups, -1)), k.flatten(0, 1), v.flatten(0, 1).transpose(1, 2)
    rows = (min if q.dtype.itemsize < 4 else max)(MAX_BLOCK_QUERIES, max(MIN_BLOCK_ROWS * groups // heads, 1))
    for start in range(0, new, rows):
        end = min(start + rows, new)
        reach = keys if mask is not None else keys - new + end
        block = grouped[:, :, :, start:end].flatten(2, 3).flatten(0, 1)  # (b * g, h/g * t, d)
        scores = _products(block, k[:, :reach], scale).view(batch, heads, end - start, reach)
        if mask is None:
            later = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
            scores[..., start - end :].masked_fill_(later, float("-inf"))
        else:
            scores.masked_fill_(~mask[start:end], float("-inf"))
        weights = scores.softmax(-1)
        seen = _products(weights.view(*block.shape[:2], reach), turned[:, :, :reach]).view(batch, heads, -1, width)
        if sinks is not None:
            total = scores.amax(-1).float() - weights.amax(-1).float().log()
            seen = _apply_sinks(seen, total, sinks[:, None])
        out[:, :, start:end] = seen


def _products(x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """x (n, r, d), weight (n, s, d) -> (n, r, s), scaled; in float32 n is one."""
    if x.dtype == torch.float32:
        return product(x[0] * scale, weight[0].contiguous()).unsqueeze(0)
    return torch.baddbmm(x.new_empty(1, 1, 1), x, weight.transpose(1, 2), beta=0, alpha=scale)


def _sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, window: int, scale: float, sinks: Tensor | None
) -> Tensor:
    """A block of queries at a time, each over the keys its windows reach: what is computed grows with the window."""
    past = k.shape[2] - q.shape[2]
    if past == 0 and q.shape[2] <= window:
        return _prefill(q, k, v, None, scale, sinks)
    blocks = [
        _prefill(
            q[:, :, start:end],
            k[:, :, first : past + end],
            v[:, :, first : past + end],
            visible(queries[start:end], keys[first : past + end], window),
            scale,
            sinks,
        )
        for start, end, first in window_blocks(past, q.shape[2], window)
    ]
    return torch.cat(blocks, dim=2)


@custom_op("zoo::windowed_attention", mutates_args=())
def _sliding_window_operator(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, window: int, scale: float, sinks: Tensor | None
) -> Tensor:
    return _by_token(_sliding_window_attention(q, k, v, queries, keys, window, scale, sinks))


_sliding_window_operator.register_fake(_like_by_token)
