"""Formats of values in tables: units, digits, ranges, and contexts."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zoo.core.devices import machine
from zoo.units import three_digits


def unit(of: float, digits: int) -> Callable[[Any], str]:
    """Returns a formatter of numbers in units of `of`."""
    return lambda value: f"{value / of:,.{digits}f}"


def three(value: float) -> str:
    """Formats three significant digits, without an exponent: 0.0123, 1.23, 123, 12,345."""
    rounded = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(rounded))) if rounded else 2
    return f"{value:,.{max(digits, 0)}f}"


def three_in(of: float) -> Callable[[float], str]:
    """Returns a formatter of numbers in units of `of`, with three significant digits."""
    return lambda value: three(value / of)


def unless_zero(show: Callable[[Any], str]) -> Callable[[Any], str]:
    """Returns a formatter that shows 0 as an empty cell."""
    return lambda value: show(value) if value else ""


def min_max(row: Mapping[str, Any], key: str, show: Callable[[Any], str]) -> str:
    """Formats the range of a measured value, from `key`_min to `key`_max."""
    return f"{show(row[f'{key}_min'])}-{show(row[f'{key}_max'])}"


def format_tokens(number: int) -> str:
    """Formats a number of tokens: multiples of 1,024 in k (32k), except for multiples of 1,000 (128,000)."""
    return f"{number // 1024}k" if number % 1024 == 0 and number % 1000 else f"{number:,}"


def format_decimal_bytes(nbytes: float) -> str:
    """Formats bytes in decimal units, as is usual for cards and weight files: 65.2 GB, 1.34 TB, 0 B."""
    for of, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(nbytes) >= of:
            return f"{three_digits(nbytes / of)} {name}"
    return f"{nbytes:.0f} B"


def format_sequences(batch: int) -> str:
    """Formats a number of sequences: one sequence, 4 sequences."""
    return "one sequence" if batch == 1 else f"{batch} sequences"


def measured_on(row: Mapping[str, Any]) -> str:
    """Returns the conditions of a measurement, for a legend: dtype, batch, threads, processor and torch."""
    here = machine()
    return (
        f"{row['dtype']}, batch {row.get('batch', 1)}, threads: {row['threads']}, {here['cpu']}, torch {here['torch']}."
    )


def smaller_at(crossing: Mapping[str, Any], label: str) -> str:
    """Returns the contexts at which the model `label` has the smaller cache in a "crossing" row."""
    if crossing["changes"] == [{"from_context": 1, "smaller": None}]:
        return "never: both are the same"
    return ", ".join(at for smaller, at in _spans(crossing) if smaller == label) or "never"


def describe_crossing(crossing: Mapping[str, Any]) -> str:
    """Returns the model with the smaller cache at each context, from a "crossing" row."""
    return "; ".join(f"{smaller or 'both equal'} {at}" for smaller, at in _spans(crossing)) + "."


def _spans(crossing: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Yields (model with the smaller cache, contexts as text)."""
    changes = crossing["changes"]
    for change, following in zip(changes, [*changes[1:], None], strict=True):
        start, end = change["from_context"], following["from_context"] - 1 if following else None
        if end is None:
            at = "at every context" if start == 1 else f"from {start:,} on"
        else:
            at = f"up to {end:,}" if start == 1 else f"at {start:,}" if start == end else f"{start:,} to {end:,}"
        yield change["smaller"], at


def on_each(cards: int) -> str:
    """Returns the end of a title, ", on each of N cards", if several cards hold a model."""
    return f", on each of {cards} cards" if cards > 1 else ""
