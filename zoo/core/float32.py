"""Arithmetic in at least float32: narrower models compute it in float32, and float64 models in float64."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

# A dtype -> float64 for float64, float32 for narrower ones.
upcast_dtype: Callable[[torch.dtype], torch.dtype] = partial(torch.promote_types, torch.float32)


def upcast(x: Tensor) -> Tensor:
    """Returns x in float32; a float64 x stays as it is."""
    return x.to(upcast_dtype(x.dtype))


def empty(*shape: int) -> Tensor:
    """Returns an uninitialised tensor of the default dtype, widened to at least float32."""
    return torch.empty(shape, dtype=upcast_dtype(torch.get_default_dtype()))


class Float32Parameters(nn.Module):
    """A module whose own parameters named in `in_float32` stay in at least float32.

    `model.bfloat16()` and `model.to(...)` cast only the other parameters. They move these to other devices and widen
    them to float64.
    """

    in_float32: ClassVar[Sequence[str]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_parameter(name).detach() for name in self.in_float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            parameter = self.get_parameter(name)
            if parameter.dtype != upcast_dtype(parameter.dtype):
                parameter.data = value.to(parameter.device, torch.float32)
        return self
