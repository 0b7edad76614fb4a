"""How values are shown in tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def unit(of: float, digits: int) -> Callable[[Any], str]:
    """Shows a number in units of `of`."""
    return lambda value: f"{value / of:,.{digits}f}"


def positions(value: int) -> str:
    """A number of tokens, in k where that is exact."""
    return f"{value // 1024}k" if value % 1024 == 0 else f"{value:,}"
