"""Arithmetic in float32 at least: what is computed in float32 in a narrower model, and in float64 in a float64 one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

# A dtype -> float64 for float64, float32 for narrower ones.
upcast_dtype: Callable[[torch.dtype], torch.dtype] = partial(torch.promote_types, torch.float32)


def upcast(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x.to(upcast_dtype(x.dtype))


def empty(*shape: int) -> Tensor:
    """An uninitialised tensor of the default dtype, in float32 at least."""
    return torch.empty(shape, dtype=upcast_dtype(torch.get_default_dtype()))


class Float32Parameters(nn.Module):
    """A module whose own parameters of the names in `in_float32` are in float32 at least: `model.bfloat16()` and
    `model.to(...)` cast the others, and move these to other devices. They follow to float64."""

    in_float32: ClassVar[Sequence[str]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_parameter(name).detach() for name in self.in_float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            parameter = self.get_parameter(name)
            if parameter.dtype != upcast_dtype(parameter.dtype):
                parameter.data = value.to(parameter.device, torch.float32)
        return self
