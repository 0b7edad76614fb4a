"""Linear maps by F.linear's contract, computed by the fastest kernel that gives the same.

`linear` is torch's own F.linear, but for two cases in which a model spends its time on a CPU:

- float32 without gradients: oneDNN may be faster than the BLAS library that torch asks (zoo.kernels measures it);
- compiled, one new token of few sequences: matrix-vector products as reductions ("GEMV"), which Inductor turns into one
  loop that reads each weight once, at the memory's speed, and adds up narrow dtypes in float32.

Autocast, gradients, tensor subclasses (quantised, sharded), other layouts and wrong shapes all get F.linear itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.library import custom_op
from torch.utils.flop_counter import flop_registry, register_flop_formula

from zoo import inductor
from zoo.kernels import Race, active

PARTS = 4  # of a matrix that a loop goes over at once, for a lone row
FEW = 4  # sequences up to which one token of each may be multiplied by reductions
MIN_WEIGHT = 2**17  # elements of a matrix from which another kernel can earn back what choosing it costs
MAX_COLD_ROWS = 16  # up to which a product waits for the memory, and not for the arithmetic
RACE_PRODUCTS = 2**27  # multiply-adds of a product that is timed: about a millisecond
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
    if _may_replace(x, weight, bias) and _onednn_wins(x, weight):
        y: Tensor = ONEDNN(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


def _traced_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if use_gemv(x, weight):
        y = gemv_reduce(x.squeeze(1), weight).unsqueeze(1)
        return y if bias is None else y + bias
    if torch.compiler.is_exporting() or active().is_plain or not _is_replaceable(x, weight, bias):
        return F.linear(x, weight, bias)
    return _operator(x, weight, bias)  # which number of rows a kernel is worth is known when it runs


def _may_replace(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a kernel that knows nothing but plain float32 memory computes what F.linear would."""
    return (
        ONEDNN is not None
        and _is_replaceable(x, weight, bias)
        and x.numel() > 0
        and weight.is_contiguous()  # oneDNN's slowest code takes other layouts, 300 times slower
        and torch.backends.mkldnn.enabled
        and torch._C._functorch.peek_interpreter_stack() is None  # vmap and its like
        and forward_ad._current_level < 0
    )


def _is_replaceable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """The part of it that holds for every number of rows: dtypes, types, devices and shapes."""
    return (
        x.dtype == torch.float32
        and weight.numel() >= MIN_WEIGHT
        and not torch.is_grad_enabled()
        and is_plain_memory(x, weight)
        and weight.ndim == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (is_plain_memory(x, bias) and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
    )


def is_plain_memory(x: Tensor, other: Tensor) -> bool:
    """Whether both are ordinary strided tensors on the CPU, of one dtype."""
    return (
        type(x) in PLAIN_TYPES
        and type(other) in PLAIN_TYPES
        and x.dtype == other.dtype
        and x.device.type == other.device.type == "cpu"
        and x.layout == other.layout == torch.strided
        and x.ndim > 0
    )


def _onednn_wins(x: Tensor, weight: Tensor) -> bool:
    rows = x.numel() // x.shape[-1]
    size = ("linear", x.dtype, f"rows {bucket(rows)}", f"weights {bucket(weight.numel())}", threads())
    return active().pick(size, "onednn", partial(_race_onednn, x, weight))


def bucket(number: int) -> int:
    """The power of four at or below a number: sizes of one bucket are one class."""
    return int(4 ** ((number.bit_length() - 1) // 2))


def threads() -> str:
    """The part of a class that says how many threads there are."""
    return f"threads {torch.get_num_threads()}"


def _race_onednn(x: Tensor, weight: Tensor) -> Race:
    """Both kernels on the two halves of the matrix, by turns, as many rows and outputs of it as take about 1 ms."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[: max(RACE_PRODUCTS // (64 * x.shape[-1]), 1)]
    outputs = max(RACE_PRODUCTS // rows.numel(), 64)
    halves = [half[:outputs] for half in weight.chunk(2)]
    plain = [partial(F.linear, rows, half) for half in halves]
    other = [partial(ONEDNN, rows, half, None, "none", [], "") for half in reversed(halves)]
    return Race(plain, other, cold=len(rows) <= MAX_COLD_ROWS)


_operator = custom_op("zoo::linear", linear, mutates_args=())


@_operator.register_fake
def _like(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


# Reductions, for compiled functions.


def use_gemv(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of x (b, t, ..., in) with a matrix, or with one matrix a head, is best written as a reduction:
    compiled, on the CPU, for one new token of few sequences, where nothing but plain memory is multiplied."""
    return (
        x.device.type == "cpu"
        and is_single_token(x)
        and is_plain_memory(x, weight)
        and not torch.is_autocast_enabled("cpu")
        and _gemv_wins(x.dtype, x.shape[0] == 1)
    )


def is_single_token(x: Tensor) -> bool:
    """Whether a compiled function is given one new token of few sequences, x (b, t, ...); on a GPU, of any number."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or x.ndim < 3 or x.shape[1] != 1:
        return False
    return x.device.type == "cuda" or x.shape[0] <= FEW


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _gemv_wins(dtype: torch.dtype, single: bool) -> bool:
    """Called by the compiler while it traces: the choice is part of the code that it makes."""
    rows = 1 if single else FEW
    size = ("decode linear", dtype, f"rows {rows}", threads())
    return active().pick_traced(size, "gemv", partial(_race_gemv, dtype, rows))


def _race_gemv(dtype: torch.dtype, rows: int) -> Race:
    """The reduction as Inductor compiles it, and the library's product, on matrices of 16 MiB that lie in memory."""
    width = 1024
    x = torch.randn(rows, width).to(dtype)
    matrices = [torch.randn(2**24 // dtype.itemsize // width, width).to(dtype) for _ in range(2)]
    reduce = torch.compile(gemv_reduce, dynamic=True, fullgraph=True, options=inductor.options())
    plain = [partial(linear, x, matrix) for matrix in matrices]
    return Race(plain, [partial(reduce, x, matrix) for matrix in reversed(matrices)], cold=True)


def gemv_reduce(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, ..., in), weight (..., out, in) -> (n, ..., out): all rows in one loop over the weights.

    The loop goes over several parts of the matrix at once, so that what it loads of x serves each of them: 1.1 times as
    fast for a single row in float32, 1.5 times in bfloat16 from 4,096 elements on (AMD EPYC, two cores).
    """
    parts = weight.chunk(max(2, PARTS // len(x)), dim=-2)
    rows = materialize(x).unbind()
    return torch.stack([torch.cat([dot(part, row) for part in parts], dim=-1) for row in rows]).to(x.dtype)


def dot(weight: Tensor, x: Tensor) -> Tensor:
    """weight (..., out, in), x (..., in) -> (..., out), in float32 at least."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return (weight.to(exact) * x.to(exact).unsqueeze(-2)).sum(-1)


def materialize(x: Tensor) -> Tensor:
    """x in memory, so that Inductor does not recompute it, from the norm before it, inside the loop over each row."""
    return x.as_strided(x.shape, x.stride())
