"""Linear maps of many experts at once, their matrices stacked: for sorted tokens, and for a few that are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.products import dot, product, written


def gathered(x: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., k or 1, in), expert ids (..., k), weight (experts, out, in), bias (experts, out) -> (..., k, out).

    For compiled functions: the matrices are read where they lie. Uncompiled, they would be copied first.
    """
    y = dot(weight[ids], written(x)).to(x.dtype)
    return y if bias is None else y + bias[ids]


def grouped(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in), sorted by expert, counts (experts,) of its rows, weight and bias as above -> (n, out)."""
    if x.device.type == "cuda" and x.dtype == torch.bfloat16:
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
    return product(x, weight[e], None if bias is None else bias[e])


def _grouped(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    blocks = enumerate(x.split(counts.tolist()))
    return torch.cat([expert(e, block, weight, bias) for e, block in blocks if len(block)])


_operator = custom_op("zoo::grouped_linear", _grouped, mutates_args=())


@_operator.register_fake
def _shape(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])
