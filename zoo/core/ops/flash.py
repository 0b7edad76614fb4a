"""torch's flash-attention kernel for the CPU, and its gradient with attention sinks and sliding windows.

The kernel returns the logarithm of each softmax's denominator. Its backward kernel recomputes the weights from the
scores and this denominator. A sink has the value zero and adds only to the denominator. If the denominator includes the
sink, the same backward kernel therefore gives the gradients of queries, keys and values. The sink's own gradient is
minus its weight times the product of the output and the output's gradient. FlashAttention-2 (Dao 2023, section 3.1)
calls that product D.

Sizes as in zoo.core.ops.attention.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from zoo.core.float32 import upcast_dtype
from zoo.core.forward_context import Mask, ReachMask, visible
from zoo.core.ops.linear import autocast, is_plain_memory, is_transformed
from zoo.costs import Full, reach_of

_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def has_flash_kernel(q: Tensor) -> bool:
    """Whether torch's flash kernel for the CPU may be called on q: torch.nn.attention.sdpa_kernel can disable it."""
    return q.device.type == "cpu" and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the output (b, h, t, w) and the logarithm of the softmax's denominator (b, h, t), without gradients."""
    # The kernel assumes that a head's elements are contiguous, and does not check it.
    return _KERNEL(*map(_with_contiguous_heads, (q, k, v)), 0.0, causal, attn_mask=_bias(mask, q.dtype), scale=scale)


def token_by_token(out: Tensor) -> Tensor:
    """Returns `out` (b, h, t, w) laid out in memory as (b, t, h, w), as the next projection reads it."""
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def operator(name: str, function: Callable[..., Tensor], like: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns `function` as one operator of compiled code, without gradients and with the output layout of
    `token_by_token`. `like` maps the same arguments to an empty output.

    Compiled code on disk identifies an operator by its name alone: a change of its output layout needs a new name.
    """

    @wraps(function)
    def laid_out(*given: Any) -> Tensor:
        return token_by_token(function(*given))

    made = custom_op(name, laid_out, mutates_args=())
    made.register_fake(lambda *given: token_by_token(like(*given)))
    return made


def has_flash_gradient(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `differentiable_flash_attention` may run: gradients are on, and q, k, v are plain CPU memory of one
    dtype.

    Different dtypes are allowed under autocast, which casts q, k and v to one dtype.
    """
    return (
        torch.is_grad_enabled()
        and has_flash_kernel(q)
        and q.shape[3] == v.shape[3]
        and all(is_plain_memory(x, x) for x in (q, k, v))
        and (q.dtype == k.dtype == v.dtype or torch.is_autocast_enabled("cpu"))
        and not torch.compiler.is_exporting()
        and (torch.compiler.is_compiling() or not is_transformed())
    )


def differentiable_flash_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, sinks: Tensor | None
) -> Tensor:
    """Computes `attention` for several queries, with gradients. The work over a window is proportional to its length,
    and compiled code calls one operator for all lengths."""
    queries, keys, reach = mask if isinstance(mask, ReachMask) else (None, None, Full())
    plain = None if isinstance(mask, ReachMask) else mask
    q, k, v = (autocast(x) for x in (q, k, v))
    return _operator(q, k, v, plain, queries, keys, *reach.arguments, scale, sinks)[0]


@custom_op("zoo::flash_attention", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    queries: Tensor | None,
    keys: Tensor | None,
    reach: str,
    numbers: Sequence[int],
    scale: float,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (b, h, t, w) and the logarithm of the denominator (b, h, t), which includes the sink."""
    out, denominator = _like_outputs(q, k, v)
    for new, seen, seen_mask in _blocks(mask, queries, keys, reach, numbers):
        part, log_sum = flash_attention(q[:, :, new], k[:, :, seen], v[:, :, seen], seen_mask, seen_mask is None, scale)
        if sinks is not None:
            sink = sinks.to(log_sum.dtype)[:, None]
            part = part * torch.sigmoid(log_sum - sink).unsqueeze(-1)
            log_sum = torch.logaddexp(log_sum, sink)
        out[:, :, new] = part
        denominator[:, :, new] = log_sum
    return out, denominator


@_operator.register_fake
def _like_outputs(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    exact = upcast_dtype(q.dtype)
    return token_by_token(q.new_empty(*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=exact)


@custom_op("zoo::flash_attention_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    denominator: Tensor,
    mask: Tensor | None,
    queries: Tensor | None,
    keys: Tensor | None,
    reach: str,
    numbers: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of q, k and v."""
    grad_q, grad_k, grad_v = _like_inputs(grad, q, k, v)
    grad_k.zero_(), grad_v.zero_()
    q, k, v, grad, out = map(_with_contiguous_heads, (q, k, v, grad, out))
    for new, seen, seen_mask in _blocks(mask, queries, keys, reach, numbers):
        parts = _BACKWARD_KERNEL(
            grad[:, :, new],
            q[:, :, new],
            k[:, :, seen],
            v[:, :, seen],
            out[:, :, new],
            denominator[:, :, new].contiguous(),
            0.0,
            seen_mask is None,
            attn_mask=_bias(seen_mask, q.dtype),
            scale=scale,
        )
        grad_q[:, :, new] = parts[0]
        grad_k[:, :, seen] += parts[1]
        grad_v[:, :, seen] += parts[2]
    return grad_q, grad_k, grad_v


@_backward_operator.register_fake
def _like_inputs(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return token_by_token(torch.empty_like(q)), token_by_token(torch.empty_like(k)), token_by_token(torch.empty_like(v))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, queries, keys, *ctx.reach, ctx.scale, sinks = inputs
    ctx.save_for_backward(q, k, v, *output, mask, queries, keys, sinks)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, denominator, mask, queries, keys, sinks = ctx.saved_tensors
    if grad is None:
        return (None,) * 10
    grads = _backward_operator(grad, q, k, v, out, denominator, mask, queries, keys, *ctx.reach, ctx.scale)
    grad_sinks = None
    if sinks is not None:
        weight = (sinks.to(denominator.dtype)[:, None] - denominator).exp()
        products = (grad.to(denominator.dtype) * out).sum(-1)
        grad_sinks = -(weight * products).sum((0, 2)).to(sinks.dtype)
    return (*grads, *(None,) * 6, grad_sinks)


_operator.register_autograd(_differentiate, setup_context=_save_for_backward)


def _blocks(
    mask: Tensor | None, queries: Tensor | None, keys: Tensor | None, reach: str, numbers: Sequence[int]
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Yields slices of queries, slices of their keys, and their mask; None if each query sees all keys up to itself."""
    if queries is None or keys is None:
        yield slice(None), slice(None), mask
    else:
        yield from reach_blocks(ReachMask(queries, keys, reach_of(reach, numbers)))


def reach_blocks(mask: ReachMask) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Yields a slice of queries, a slice of their keys, and their mask for each block of queries. The mask is None if
    each query sees all keys up to itself."""
    held = len(mask.keys) - len(mask.queries)
    for start, end, first in mask.reach.blocks(held, len(mask.queries)):
        new, seen = slice(start, end), slice(first, held + end)
        is_causal = first == held + start and mask.reach.stride == 1  # the keys are the queries' own
        yield new, seen, None if is_causal else visible(mask.queries[new], mask.keys[seen], mask.reach)


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if mask is None else torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _with_contiguous_heads(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
