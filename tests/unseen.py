"""The base of blocks that tests define: kinds that no file of the project knows, without a module."""

from __future__ import annotations

from typing import Any

from zoo.registry import Block


class Unseen(Block, abstract=True):
    """A block with `dim` parameters and a FLOP for each."""

    def build(self, dim: int) -> Any:
        raise NotImplementedError

    def resized(self, to: Any) -> dict[str, Any]:
        return {}

    def params(self, dim: int) -> int:
        return dim

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return dim * new
