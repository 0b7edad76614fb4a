"""Linear maps of many experts at once, their matrices stacked: for sorted tokens, and for a few that are not."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.linear import dot, linear, materialize


def gathered(x: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., k or 1, in), expert ids (..., k), weight (experts, out, in), bias (experts, out) -> (..., k, out).

    For compiled functions: the matrices are read where they lie. Uncompiled, they would be copied first.
    """
    y = dot(weight[ids], materialize(x)).to(x.dtype)
    return y if bias is None else y + bias[ids]


def grouped(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in), sorted by expert, counts (experts,) of its rows, weight and bias as above -> (n, out)."""
    if x.device.type == "cuda" and x.dtype == weight.dtype == torch.bfloat16:
        return grouped_at_once(x, counts, weight, bias)
    # A compiled function cannot loop over counts that it does not know: there it is one opaque operator.
    return (_operator if torch.compiler.is_compiling() else _grouped)(x, counts, weight, bias)


def grouped_at_once(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same in one kernel, which takes bfloat16 alone and does not wait for the device to say its counts."""
    ends = counts.cumsum(0)
    y = F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    return y if bias is None else y + bias[torch.bucketize(torch.arange(len(x), device=x.device), ends, right=True)]


def expert(e: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in) through expert `e` alone -> (n, out)."""
    return linear(x, weight[e], None if bias is None else bias[e])


def _grouped(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    blocks = enumerate(x.split(counts.tolist()))
    return torch.cat([expert(e, block, weight, bias) for e, block in blocks if len(block)])


_operator = custom_op("zoo::grouped_linear", _grouped, mutates_args=())


@_operator.register_fake
def _shape(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@custom_op("zoo::grouped_linear_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, counts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """grad (n, out) -> gradients of x (n, in), weight (experts, out, in) and bias (experts, out)."""
    to_x, to_weight, to_bias = torch.empty_like(x), torch.zeros_like(weight), weight.new_zeros(weight.shape[:2])
    ends = counts.cumsum(0).tolist()
    for e, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        if start < end:
            torch.mm(grad[start:end], weight[e], out=to_x[start:end])
            torch.mm(grad[start:end].T, x[start:end], out=to_weight[e])
            torch.sum(grad[start:end], dim=0, out=to_bias[e])
    return to_x, to_weight, to_bias


@_backward.register_fake
def _shapes(grad: Tensor, x: Tensor, counts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, counts, weight, bias = inputs
    ctx.save_for_backward(x, counts, weight)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, counts, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = _backward(grad.contiguous(), x, counts, weight)
    return to_x, None, to_weight, to_bias if ctx.has_bias else None


_operator.register_autograd(_differentiate, setup_context=_keep)
