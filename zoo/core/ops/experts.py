"""Linear layers of many experts at once, their weights stacked: tokens sorted by expert, or gathered weights."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.ops.linear import autocast, dot, is_transformed, linear, materialize

ROW_BYTES = 16  # of which torch's grouped product wants each row's length to be a multiple


def gathered_linear(x: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., k or 1, in), expert ids (..., k), weight (experts, out, in), bias (experts, out) -> (..., k, out).

    For compiled functions, which read the weights in place. Uncompiled, indexing would copy them first.
    """
    y = dot(weight[ids], materialize(x)).to(x.dtype)
    return y if bias is None else y + bias[ids]


def grouped_linear(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in) sorted by expert, counts (experts,) of its rows, weight (experts, out, in), bias (experts, out) -> (n,
    out)."""
    x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    if x.device.type == "cuda" and allows_grouped_mm(x, weight):
        return grouped_mm(x, counts, weight, bias)
    # The counts are unknown when a function is compiled, so the loop over experts is one opaque operator there. With
    # gradients it is one, too: autograd would make a tensor of all experts' sizes for the gradient of each expert.
    opaque = torch.compiler.is_compiling() or (torch.is_grad_enabled() and not is_transformed())
    return (_operator if opaque else _grouped)(x, counts, weight, bias)


def allows_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    """Whether `grouped_mm` takes x (n, in) and weight (experts, out, in): bfloat16 alone, and each row, of the output
    and of gradients too, a multiple of 16 bytes."""
    return x.dtype == weight.dtype == torch.bfloat16 and all(
        width * x.dtype.itemsize % ROW_BYTES == 0 for width in weight.shape[1:]
    )


def grouped_mm(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same in one kernel, which takes bfloat16 only and does not wait for the device to report the counts."""
    ends = counts.cumsum(0)
    y = F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    return y if bias is None else y + bias[torch.bucketize(torch.arange(len(x), device=x.device), ends, right=True)]


def expert_linear(e: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in) through expert `e` -> (n, out)."""
    return linear(x, weight[e], None if bias is None else bias[e])


def _grouped(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    blocks = enumerate(x.split(counts.tolist()))
    return torch.cat([expert_linear(e, block, weight, bias) for e, block in blocks if len(block)])


_operator = custom_op("zoo::grouped_linear", _grouped, mutates_args=())


_operator.register_fake(lambda x, counts, weight, bias: x.new_empty(x.shape[0], weight.shape[1]))


@custom_op("zoo::grouped_linear_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, counts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """grad (n, out) -> gradients of x (n, in), weight (experts, out, in) and bias (experts, out)."""
    grad_x, grad_weight, grad_bias = _shapes(grad, x, counts, weight)
    ends = counts.cumsum(0).tolist()
    for e, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        # An expert without tokens has products of no terms, which are zero.
        torch.mm(grad[start:end], weight[e], out=grad_x[start:end])
        torch.mm(grad[start:end].T, x[start:end], out=grad_weight[e])
        torch.sum(grad[start:end], dim=0, out=grad_bias[e])
    return grad_x, grad_weight, grad_bias


@_backward.register_fake
def _shapes(grad: Tensor, x: Tensor, counts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, counts, weight, bias = inputs
    ctx.save_for_backward(x, counts, weight)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, counts, weight = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _backward(grad.contiguous(), x, counts, weight)
    return grad_x, None, grad_weight, grad_bias if ctx.has_bias else None


_operator.register_autograd(_differentiate, setup_context=_save_for_backward)
