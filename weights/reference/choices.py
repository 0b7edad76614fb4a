"""What routers and indexers choose in float64, given to a pass in a narrower dtype.

Rounding decides between two experts, or two keys, of nearly equal scores, and all that follows differs then. In float64
that does not happen. So a pass in float32 or bfloat16 is made to choose what the same code chose in float64: its error
is that of its arithmetic, and no lottery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zoo.errors import CheckFailed

_SELECTING = frozenset({torch.topk, Tensor.topk, torch.sort, Tensor.sort})


class Selections(TorchFunctionMode):
    """Records the indices that each `topk` and each `sort` of floats gives while it is entered, in the order of the
    calls. After `replay` the calls give these again, with the values of their own scores at them.

    Entered around uncompiled code that makes the same calls on both occasions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[Tensor] = []
        self._following: Iterator[Tensor] | None = None
        self._paused = False

    def replay(self) -> None:
        """From here on, give what was recorded, from the first call on."""
        self._following = iter(self.indices)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile, calls are those of another model, and left alone."""
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
            raise CheckFailed("the model chooses experts or keys another number of times than it did in float64")
        position = kwargs.get("dim", args[2] if func.__name__ == "topk" and len(args) > 2 else -1)
        return type(result)((args[0].gather(position, indices), indices))
