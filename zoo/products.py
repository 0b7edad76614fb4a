"""Products with one token, in the form that reads a matrix at the memory's speed when compiled for a CPU: as sums.

Inductor makes one loop of such a sum, which reads each weight once, also of narrow numbers that are added up in
float32. Of the memory's speed a library's product with one token reaches 0.4 in float32 and 0.4 to 0.6 in bfloat16,
this form 0.8 to 1. Not compiled, the products would be written to memory first: nothing here is for that.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTS = 4  # of a matrix that a loop goes over at once, for a lone row
FEW = 4  # tokens whose sums are one loop
FEW_FLOAT32 = 8  # tokens up to which sums are faster than a library's product; in bfloat16 they are not


def sums(x: Tensor) -> bool:
    """Whether a product with x (b, t, ...) is best written as a sum: in a compiled function, on the CPU, for one new
    token of few sequences."""
    return x.device.type == "cpu" and few(x)


def few(x: Tensor) -> bool:
    """Whether a compiled function is given one new token of few sequences, x (b, t, ...); on a GPU, of any number."""
    if not torch.compiler.is_compiling() or x.ndim < 3 or x.shape[1] != 1:
        return False
    return x.device.type == "cuda" or x.shape[0] <= (FEW_FLOAT32 if x.dtype == torch.float32 else FEW)


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
