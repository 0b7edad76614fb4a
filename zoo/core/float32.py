"""Parameters that stay in float32 when a module is cast to another dtype."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class Float32Parameters(nn.Module):
    """A module whose own parameters of the names in `in_float32` are in float32: `model.bfloat16()` and `model.to(...)`
    cast the others, and move these to other devices. They follow to float64 if it `widens`."""

    in_float32: ClassVar[Sequence[str]] = ()
    widens: ClassVar[bool] = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_parameter(name).detach() for name in self.in_float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            parameter = self.get_parameter(name)
            is_wider = parameter.dtype.itemsize > torch.float32.itemsize
            if parameter.dtype != torch.float32 and not (self.widens and is_wider):
                parameter.data = value.to(parameter.device, torch.float32)
        return self
