"""How values are shown in tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def unit(of: float, digits: int) -> Callable[[Any], str]:
    """Shows a number in units of `of`."""
    return lambda value: f"{value / of:,.{digits}f}"


def three(value: float) -> str:
    """Three significant digits, without an exponent: 0.0123, 1.23, 123, 12,345."""
    rounded = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(rounded))) if rounded else 2
    return f"{value:,.{max(digits, 0)}f}"


def three_in(of: float) -> Callable[[float], str]:
    """Shows a number in units of `of`, in three significant digits."""
    return lambda value: three(value / of)


def positions(value: int) -> str:
    """A number of tokens, in k where that is exact."""
    return f"{value // 1024}k" if value % 1024 == 0 else f"{value:,}"
