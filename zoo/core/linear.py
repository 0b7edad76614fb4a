"""Linear maps by F.linear's contract, computed by the fastest kernel that gives the same.

`linear` is torch's own F.linear, but for two cases in which a model spends its time on a CPU:

- float32 without gradients: oneDNN may be faster than the BLAS library that torch asks (zoo.core.kernels measures it);
- compiled, one new token of few sequences: matrix-vector products as reductions ("GEMV"), which Inductor turns into one
  loop that reads each weight once, at the memory's speed, and adds up narrow dtypes in float32.

Autocast, gradients, tensor subclasses (quantised, sharded), other layouts and wrong shapes all get F.linear itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.library import Library, register_fake
from torch.utils.flop_counter import flop_registry, register_flop_formula

from zoo.core import inductor
from zoo.core.kernels import COLD_BYTES, Race, active, bucket

GEMV_PARTS = 4  # of a matrix that a loop goes over at once, for a lone row
MAX_GEMV_BATCH = 4  # sequences up to which one token of each may be multiplied by reductions
MIN_WEIGHT = 2**17  # elements of a matrix from which another kernel can earn back what choosing it costs
MAX_COLD_ROWS = 16  # up to which a product waits for the memory, and not for the arithmetic
RACE_PRODUCTS = 2**28  # multiply-adds of a product that is timed
PLAIN_TYPES = (Tensor, nn.Parameter)  # a subclass has its own F.linear

# oneDNN's linear map, where torch itself would ask MKL in float32.
_ASKS_MKL = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _ASKS_MKL else None
if ONEDNN is not None and ONEDNN not in flop_registry:  # what it counts as

    @register_flop_formula(ONEDNN)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x.numel() * weight[0]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out), as F.linear, whose errors it raises."""
    if torch.compiler.is_compiling():
        return _traced_linear(x, weight, bias)
    if weight.numel() >= MIN_WEIGHT and _may_replace(x, weight, bias) and _onednn_wins(x, weight):
        y: Tensor = ONEDNN(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


def product(x: Tensor, other: Tensor) -> Tensor:
    """x (rows, in), other (out, in) -> (rows, out): `linear` with a matrix of any size, such as the keys of a pass."""
    if _may_replace(x, other, None) and _onednn_wins(x, other):
        y: Tensor = ONEDNN(x, other, None, "none", [], "")
        return y
    return F.linear(x, other)


def _traced_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if use_gemv(x, weight):
        y = gemv_reduce(x.squeeze(1), weight).unsqueeze(1)
        return y if bias is None else y + bias
    small = weight.numel() < MIN_WEIGHT
    if small or torch.compiler.is_exporting() or active().is_plain or not _is_replaceable(x, weight, bias):
        return F.linear(x, weight, bias)
    return _operator(x, weight, bias)  # which number of rows a kernel is worth is known when it runs


def _may_replace(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a kernel that knows nothing but plain float32 memory computes what F.linear would."""
    return (
        _is_replaceable(x, weight, bias)
        and weight.is_contiguous()  # oneDNN's slowest code takes other layouts, 300 times slower
        and x.numel() > 0
        and torch._C._get_mkldnn_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None  # vmap and its like
        and forward_ad._current_level < 0
    )


def _is_replaceable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """The part of it that holds for every number of rows: dtypes, types, devices and shapes."""
    return (
        ONEDNN is not None
        and x.dtype is torch.float32
        and not torch.is_grad_enabled()
        and is_plain_memory(x, weight)
        and weight.ndim == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (is_plain_memory(weight, bias) and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
    )


def is_plain_memory(x: Tensor, other: Tensor) -> bool:
    """Whether both are ordinary strided tensors on the CPU, of one dtype."""
    return (
        type(x) in PLAIN_TYPES
        and type(other) in PLAIN_TYPES
        and x.dtype is other.dtype
        and x.is_cpu
        and other.is_cpu
        and x.layout is other.layout is torch.strided
        and x.ndim > 0
    )


def _onednn_wins(x: Tensor, weight: Tensor) -> bool:
    sizes = bucket(x.numel() // x.shape[-1]), bucket(weight.numel(), 16)
    return active().pick("linear", torch.float32, sizes, partial(_race_onednn, x, weight))


def _race_onednn(x: Tensor, weight: Tensor) -> Race:
    """Both kernels on as much of the product as takes a millisecond or two. A product of few rows waits for the memory:
    it is timed on matrices that together do not fit into a cache."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= MAX_COLD_ROWS:
        count = max(COLD_BYTES // weight.nbytes, 1)
        matrices = list(torch.ones(count, min(len(weight), COLD_BYTES // weight[0].nbytes), weight.shape[1]))
    else:
        rows = rows[: max(RACE_PRODUCTS // (64 * rows.shape[1]), MAX_COLD_ROWS)]
        matrices = [weight[: max(RACE_PRODUCTS // rows.numel(), 64)]]

    def run(kernel: Callable[..., Tensor], *rest: object) -> None:
        for matrix in matrices:
            kernel(rows, matrix, *rest)

    return Race(partial(run, F.linear), partial(run, ONEDNN, None, "none", [], ""))


# One operator for every number of rows. A thin one: its call takes 6 us, and torch.library.custom_op's 20.
_LIBRARY = Library("zoo", "FRAGMENT")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("linear", linear, "CPU")
_operator = torch.ops.zoo.linear.default


def _like(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


register_fake("zoo::linear", _like, lib=_LIBRARY)


# Reductions, for compiled functions.


def use_gemv(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of x (b, t, ..., in) with a matrix, or with one matrix a head, is best written as a reduction:
    compiled, on the CPU, for one new token of few sequences, where nothing but plain memory is multiplied."""
    return (
        x.device.type == "cpu"
        and is_single_token(x)
        and is_plain_memory(x, weight)
        and not torch.is_autocast_enabled("cpu")
        and _gemv_wins(
            x.dtype, 1 if x.shape[0] == 1 else MAX_GEMV_BATCH
        )  # a guard on the batch, and a constant to the compiler
    )


def is_single_token(x: Tensor) -> bool:
    """Whether a compiled function is given one new token of few sequences, x (b, t, ...); on a GPU, of any number."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or x.ndim < 3 or x.shape[1] != 1:
        return False
    return x.device.type == "cuda" or x.shape[0] <= MAX_GEMV_BATCH


@inductor.constant
def _gemv_wins(dtype: torch.dtype, rows: int) -> bool:
    """Called by the compiler while it traces: the choice is part of the code that it makes."""
    return active().pick_traced("decode linear", dtype, (rows,), partial(_race_gemv, dtype, rows))


def _race_gemv(dtype: torch.dtype, rows: int) -> Race:
    """Matrices that do not fit into a cache, by reductions and by the library, both compiled."""
    width = 1024
    x = torch.ones(rows, width, dtype=dtype)
    matrices = list(torch.ones(8, COLD_BYTES // 8 // dtype.itemsize // width, width, dtype=dtype))
    compiled = [
        torch.compile(form, dynamic=True, fullgraph=True, options=inductor.options())
        for form in (_library_product, gemv_reduce)
    ]

    def run(form: Callable[[Tensor, Tensor], Tensor]) -> None:
        for matrix in matrices:
            form(x, matrix)

    return Race(*(partial(run, form) for form in compiled))


def _library_product(x: Tensor, weight: Tensor) -> Tensor:
    """As a compiled pass multiplies where reductions are not chosen."""
    return _operator(x, weight, None) if _is_replaceable(x, weight, None) else F.linear(x, weight)


def gemv_reduce(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, ..., in), weight (..., out, in) -> (n, ..., out): all rows in one loop over the weights.

    The loop goes over several parts of the matrix at once, so that what it loads of x serves each of them: 1.1 times as
    fast for a single row in float32, 1.5 times in bfloat16 from 4,096 elements on (AMD EPYC, two cores).
    """
    parts = weight.chunk(max(2, GEMV_PARTS // len(x)), dim=-2)
    rows = materialize(x).unbind()
    return torch.stack([torch.cat([dot(part, row) for part in parts], dim=-1) for row in rows]).to(x.dtype)


def dot(weight: Tensor, x: Tensor) -> Tensor:
    """weight (..., out, in), x (..., in) -> (..., out), in float32 at least."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return (weight.to(exact) * x.to(exact).unsqueeze(-2)).sum(-1)


def materialize(x: Tensor) -> Tensor:
    """x in memory, so that Inductor does not recompute it, from the norm before it, inside the loop over each row."""
    return x.as_strided(x.shape, x.stride())
