"""Linear maps with the arguments and results of F.linear, computed by the fastest kernel.

`linear` calls torch's F.linear, except in two cases that dominate a model's time on a CPU. In each of them, zoo.kernels
decides whether this machine uses another kernel:

- float32 without gradients: oneDNN in place of the BLAS library that torch calls;
- compiled single-token decode of few sequences: matrix-vector products run as reductions ("GEMV"). Inductor turns them
  into one loop that reads each weight once, at the memory's speed, and sums narrow dtypes in float32.

Autocast, gradients, tensor subclasses (quantised, sharded), other layouts and wrong shapes always use F.linear.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.library import Library, register_fake
from torch.utils.flop_counter import flop_registry, register_flop_formula

from zoo.core import kernels
from zoo.core.float32 import upcast_dtype
from zoo.core.kernels import is_replaced

GEMV_PARTS = 4  # parts of a matrix that are multiplied in one loop, for a single row
MAX_GEMV_BATCH = 4  # maximum sequences for single-token decode by reductions
MAX_DECODE_ROWS = 16  # maximum rows of a product that is limited by memory, not by arithmetic
PLAIN_TYPES = (Tensor, nn.Parameter)  # a subclass has its own F.linear

# oneDNN's linear map, on builds where F.linear calls MKL in float32; None on others.
_USES_MKL = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _USES_MKL else None
if ONEDNN is not None and ONEDNN not in flop_registry:  # FLOPs for torch's FLOP counter

    @register_flop_formula(ONEDNN)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x.numel() * weight[0]


class Linear(nn.Linear):
    """An nn.Linear whose weight is not initialised: `zoo.build` initialises the whole model once.

    Importing nn.Linear's own initialisation would take a second.
    """

    def reset_parameters(self) -> None:
        """Does nothing: weights come from `zoo.build` or from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> y = weight x + bias (..., out)."""
    y = x @ weight.mT
    return y if bias is None else y + bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns (..., out) for x (..., in), weight (out, in) and bias (out,). Raises the errors of F.linear."""
    if torch.compiler.is_compiling():
        return _traced_linear(x, weight, bias)
    choices = kernels.current or kernels.active()
    if (_operation(x), x.dtype) in choices.replaced and _allows_onednn(x, weight, bias):
        return ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _operation(x: Tensor) -> str:
    few = x.ndim > 0 and x.numel() <= MAX_DECODE_ROWS * x.shape[-1]
    return "linear decode" if few else "linear prefill"


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    """Returns (b, h, t, out) for x (b, h, t, in) and weight (h, out, in): one matrix per head."""
    if not use_gemv(x.transpose(1, 2), weight):
        return x @ weight.transpose(1, 2)
    return gemv_reduce(x.squeeze(2), weight).unsqueeze(2)


def _traced_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if use_gemv(x, weight):
        y = gemv_reduce(x.squeeze(1), weight).unsqueeze(1)
        return y if bias is None else y + bias
    may_be_onednn = is_replaced("linear prefill", x.dtype) or is_replaced("linear decode", x.dtype)
    if torch.compiler.is_exporting() or not may_be_onednn or not _allows_operator(x, weight, bias):
        return F.linear(x, weight, bias)
    return _operator(x, weight, bias)  # the kernel depends on the number of rows, which is known when it runs


# oneDNN, for float32.


def _allows_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's kernel may replace F.linear here: it takes only plain, contiguous float32 memory."""
    return (
        _allows_operator(x, weight, bias)
        and weight.is_contiguous()  # oneDNN is 300 times slower on other layouts
        and x.numel() > 0
        and torch._C._get_mkldnn_enabled()
        and not is_transformed()
    )


def _allows_operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's conditions hold that do not depend on the number of rows: dtypes, types, devices and shapes."""
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


def autocast(x: Tensor) -> Tensor:
    """Casts x for a custom operator as autocast, if enabled, casts the operands of torch's own products."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))


def is_transformed() -> bool:
    """Whether eager code runs under a torch.func transform such as vmap, or under forward-mode differentiation.

    Custom operators here have no rules for either.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def allows_operators(*tensors: Tensor) -> bool:
    """Whether compiled code may call an operator without gradients: on ordinary tensors, without autocast or export."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_exporting()
        or any(type(x) not in PLAIN_TYPES or torch.is_autocast_enabled(x.device.type) for x in tensors)
    )


def is_plain_memory(x: Tensor, other: Tensor) -> bool:
    """Whether both arguments are ordinary strided CPU tensors of one dtype."""
    return (
        type(x) in PLAIN_TYPES
        and type(other) in PLAIN_TYPES
        and x.dtype is other.dtype
        and x.is_cpu
        and other.is_cpu
        and x.layout is other.layout is torch.strided
        and x.ndim > 0
    )


# One operator serves every number of rows. A call of it takes 6 us; with torch.library.custom_op it would take 20 us.
_LIBRARY = Library("zoo", "FRAGMENT")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("linear", linear, "CPU")
_operator = torch.ops.zoo.linear.default
register_fake("zoo::linear", lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]), lib=_LIBRARY)


# Reductions, for compiled functions.


def use_gemv(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of x (b, t, ..., in) with a matrix, or with one matrix per head, runs as a reduction.

    It does in compiled single-token decode of few sequences, on plain CPU memory, if that kernel is chosen.
    """
    return (
        x.device.type == "cpu"
        and is_single_token(x)
        and is_plain_memory(x, weight)
        and not torch.is_autocast_enabled("cpu")
        and is_replaced("compiled decode linear", x.dtype)
    )


def is_single_token(x: Tensor) -> bool:
    """Whether this is compiled code for one new token, x (b, t, ...), of few sequences (on a GPU, any number)."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or x.ndim < 3 or x.shape[1] != 1:
        return False
    return x.device.type == "cuda" or x.shape[0] <= MAX_GEMV_BATCH


def gemv_reduce(x: Tensor, weight: Tensor) -> Tensor:
    """Returns (n, ..., out) for x (n, ..., in) and weight (..., out, in). One loop computes all n rows.

    The loop covers several parts of the matrix at once, so that each load of x serves all of them. For a single row
    this is 1.1 times as fast in float32, and 1.5 times in bfloat16 for rows of 4,096 elements or more (AMD EPYC, two
    cores).
    """
    parts = weight.chunk(max(2, GEMV_PARTS // len(x)), dim=-2)
    rows = materialize(x).unbind()
    return torch.stack([torch.cat([dot(part, row) for part in parts], dim=-1) for row in rows]).to(x.dtype)


def dot(weight: Tensor, x: Tensor) -> Tensor:
    """Returns the products (..., out) of weight (..., out, in) and x (..., in), in at least float32."""
    exact = upcast_dtype(x.dtype)
    return (weight.to(exact) * x.to(exact).unsqueeze(-2)).sum(-1)


def materialize(x: Tensor) -> Tensor:
    """Makes Inductor compute x once and write it to memory. Otherwise it would move the operations that produce x, such
    as a norm, into the loop over the rows of the matrix, and repeat them for every row.

    Inductor may lay out the memory behind a view differently than its strides say, so that `as_strided` would read
    wrong elements. x is therefore made contiguous first.
    """
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())
