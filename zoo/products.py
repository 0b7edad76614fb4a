"""Products with a matrix, in the form that is fastest: by the fastest library, or as sums.

Compiled for a CPU, products with one token are sums, which read the matrix at the memory's speed. Inductor makes one
loop of such a sum, which reads each weight once, also of narrow numbers that are added up in float32. Of the memory's
speed a library's product with one token reaches 0.4 to 0.8 in float32 and 0.4 to 0.6 in bfloat16, this form 0.8 to 1.
Not compiled, what is summed would be written to memory first: sums are not for that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import flop_registry, register_flop_formula

PARTS = 4  # of a matrix that a loop goes over at once, for a lone row
SMALL = 2**16  # multiplications below which oneDNN's call, 8 us longer than MKL's, costs more than it saves
FEW = 4  # sequences up to which sums are faster than a library's product

# oneDNN's linear map, where torch itself would ask MKL in float32, which on AMD's processors takes 1.3 to 2.9 times as
# long, for one row or for hundreds.
_ASKS_MKL = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _ASKS_MKL else None
if ONEDNN is not None and ONEDNN not in flop_registry:  # what it counts as

    @register_flop_formula(ONEDNN)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x.numel() * weight[0]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out), by the fastest library."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    # Inductor knows oneDNN's map of weights that never change alone: to it, this is one operator.
    return (_operator if torch.compiler.is_compiling() else _product)(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    small = x.shape[:-1].numel() * weight.numel() < SMALL
    if ONEDNN is None or small or not weight.is_contiguous():  # its slowest code takes the last, 300 times slower
        return F.linear(x, weight, bias)
    y: Tensor = ONEDNN(x, weight, bias, "none", [], "")
    return y


_operator = custom_op("zoo::linear", _product, mutates_args=())


@_operator.register_fake
def _like(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def sums(x: Tensor) -> bool:
    """Whether a product with x (b, t, ...) is best written as a sum: in a compiled function, on the CPU, for one new
    token of few sequences."""
    return x.device.type == "cpu" and few(x)


def few(x: Tensor) -> bool:
    """Whether a compiled function is given one new token of few sequences, x (b, t, ...); on a GPU, of any number."""
    if not torch.compiler.is_compiling() or x.ndim < 3 or x.shape[1] != 1:
        return False
    return x.device.type == "cuda" or x.shape[0] <= FEW


def side_by_side(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, ..., in), weight (..., out, in) -> (n, ..., out): sums for all rows, in one loop over the weights.

    The loop goes over several parts of the matrix at once, so that what it loads of x serves each of them. A lone row
    is multiplied 1.1 times as fast so, and in bfloat16 1.5 times from 4,096 numbers on.
    """
    parts = weight.chunk(max(2, PARTS // len(x)), dim=-2)
    rows = written(x).unbind()
    return torch.stack([torch.cat([dot(part, row) for part in parts], dim=-1) for row in rows]).to(x.dtype)


def dot(weight: Tensor, x: Tensor) -> Tensor:
    """weight (..., out, in), x (..., in) -> (..., out), in float32 at least."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return (weight.to(exact) * x.to(exact).unsqueeze(-2)).sum(-1)


def written(x: Tensor) -> Tensor:
    """x in memory: the compiler fuses nothing with what this view is of. A loop over a matrix would else compute x anew
    for each row, from the norm before it."""
    return x.as_strided(x.shape, x.stride())
