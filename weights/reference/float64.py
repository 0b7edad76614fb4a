"""Makes the reference and the zoo compute in float64, so that one bound decides whether they are equal.

The zoo's blocks compute in float32 or wider, so a model in float64 computes everything in float64 (zoo.core.float32).
The reference computes norms, softmax, rotary angles and routers in float32, whatever the dtype of its weights.
Therefore `in_float64` replaces every narrower float dtype that code requests by float64.

A later pass in a narrower dtype uses the experts and keys that were chosen in float64 (`Selections`). Otherwise
rounding would decide between nearly equal scores, and all later values would differ. The error of the pass thus comes
from its arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zoo.errors import CheckFailed

LOWER = frozenset({torch.float32, torch.bfloat16, torch.float16})
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})
_active: list[_Float64Mode] = []


class _Float64Mode(TorchFunctionMode):
    """Replaces narrower float dtypes by float64, in casts and in the arguments of any call."""

    def __init__(self, default: torch.dtype) -> None:
        super().__init__()
        self.enabled, self.default = True, default  # `default`: the default dtype outside

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.enabled or func is Tensor.view:  # a view reinterprets the same bits in its dtype
            return func(*args, **kwargs)
        if func in _CASTS:
            func = Tensor.double
        return func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in LOWER else value


@contextmanager
def in_float64() -> Iterator[None]:
    """Makes torch compute in float64, in this thread, wherever code requests a narrower float dtype or names no dtype.

    A reference must be built inside: tensors made earlier, such as rotary tables, keep their dtype. Attention and
    experts must use the plain implementations ("eager"), since some kernels do not support float64.
    """
    before = torch.get_default_dtype()
    mode = _Float64Mode(before)
    torch.set_default_dtype(torch.float64)
    _active.append(mode)
    try:
        with mode:
            yield
    finally:
        _active.pop()
        torch.set_default_dtype(before)


@contextmanager
def as_stored() -> Iterator[None]:
    """Suspends `in_float64` within the block, so that weights are read and unpacked in the usual dtypes."""
    before, outermost = torch.get_default_dtype(), _active[:1]
    for mode in _active:
        mode.enabled = False
    for mode in outermost:
        torch.set_default_dtype(mode.default)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        for mode in _active:
            mode.enabled = True


_SELECTING = frozenset({torch.topk, Tensor.topk, torch.sort, Tensor.sort})


class Selections(TorchFunctionMode):
    """Records the indices that each `topk` and each `sort` of floats returns while this mode is active, in the order of
    the calls. After `replay`, the calls return the recorded indices, with the new scores at these indices.

    The code in this mode must not be compiled, and must make the same calls in both runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[Tensor] = []
        self._following: Iterator[Tensor] | None = None
        self._paused = False

    def replay(self) -> None:
        """Makes later calls return the recorded indices, from the first recorded call on."""
        self._following = iter(self.indices)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignores calls within the block, where another model runs."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._paused or func not in _SELECTING or ("sort" in func.__name__ and not args[0].is_floating_point()):
            return result
        if self._following is None:
            self.indices.append(result.indices)
            return result
        indices = next(self._following, None)
        if indices is None or indices.shape != result.indices.shape:
            raise CheckFailed("the model chooses experts or keys a different number of times than in float64")
        position = kwargs.get("dim", args[2] if func.__name__ == "topk" and len(args) > 2 else -1)
        return type(result)((args[0].gather(position, indices), indices))
