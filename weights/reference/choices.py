"""Gives a pass in a narrower dtype the experts and keys that routers and indexers chose in float64.

Rounding decides between two experts, or two keys, of nearly equal scores, and everything after that differs. In float64
that does not happen. So a pass in float32 or bfloat16 chooses what the same code chose in float64, and its error is
only that of its arithmetic.
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
    """Records the indices that each `topk` and each `sort` of floats returns while it is entered, in the order of the
    calls. After `replay` the calls return these indices again, with their own scores at them.

    Enter it around uncompiled code that makes the same calls on both occasions.
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
        """Leaves calls alone within the block: they belong to another model."""
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
