"""Arithmetic in at least float32, and the bound within which two float64 results count as equal.

Such arithmetic is in float64 for float64 models and in float32 for all others. Correct implementations are compared in
float64. In float32 they differ by rounding, by an amount that depends on the processor, the library and the order of
sums. In float64, rounding is about 1e-14 of the largest element, while a mistake makes as large a difference as in
float32. Rounding can therefore neither hide a mistake nor look like one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

BOUND = 1e-10  # largest difference of equal computations in float64, relative to the largest element
# Maps float64 to itself and narrower dtypes to float32.
upcast_dtype: Callable[[torch.dtype], torch.dtype] = partial(torch.promote_types, torch.float32)


def upcast(x: Tensor) -> Tensor:
    """Returns x in float32; a float64 x stays as it is."""
    return x.to(upcast_dtype(x.dtype))


def empty(*shape: int) -> Tensor:
    """Returns an uninitialised tensor of the default dtype, widened to at least float32."""
    return torch.empty(shape, dtype=upcast_dtype(torch.get_default_dtype()))


class Float32Parameters(nn.Module):
    """A module with parameters that stay in at least float32: its own parameters that `in_float32` names.

    `model.bfloat16()` and `model.to(...)` cast only the other parameters. The named parameters still move to other
    devices and can be widened to float64.
    """

    in_float32: Sequence[str] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_parameter(name).detach() for name in self.in_float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            parameter = self.get_parameter(name)
            if parameter.dtype != upcast_dtype(parameter.dtype):
                parameter.data = value.to(parameter.device, torch.float32)
        return self


def largest_difference(value: Tensor, expected: Tensor) -> float:
    """Returns the largest absolute difference of two tensors, divided by the largest absolute element of `expected`.

    If `expected` is zero everywhere, the difference is not divided. The result is NaN if any element is NaN, and
    infinite if an element is infinite in only one tensor. Raises ValueError for different shapes.
    """
    if value.shape != expected.shape:
        raise ValueError(f"shapes {tuple(value.shape)} and {tuple(expected.shape)} differ")
    if not expected.numel():
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    difference = (value - expected).masked_fill(value == expected, 0.0)  # equal infinities
    largest = expected.masked_fill(expected.isinf(), 0.0).abs().amax()
    return float(difference.abs().amax() / (largest if largest > 0 else 1.0))
