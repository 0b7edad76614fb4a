"""Rows as tables, CSV and JSON documents."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path
from textwrap import fill
from typing import Any

import tabulate

from zoo.cli.runner import emit
from zoo.core.devices import machine

SCHEMA_VERSION = 2
tabulate.MIN_PADDING = 0  # it would widen each header by two: tables are to fit 80 columns


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


@dataclass(frozen=True)
class Column:
    """One column of a table: the key of its value in a row, the header a person reads, and how a value is shown.

    A plain table breaks its lines at `width` characters; None: it does not break them.
    """

    key: str
    header: str
    show: Callable[[Any], str] = str
    width: int | None = None


def write(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[Column],
    format: Format = Format.table,
    out: Path | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """`render` the rows and `emit` them."""
    emit(render(rows, columns, format, about), out)


def render(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[Column],
    format: Format = Format.table,
    about: dict[str, Any] | None = None,
) -> str:
    """Rows as text.

    Tables show the `columns`; csv holds their raw values; json and jsonl hold the rows as they are, with
    `schema_version`, the machine and what else is told `about` them.
    """
    if format is Format.json:
        return document({**(about or {}), "rows": rows})
    if format is Format.jsonl:
        return "\n".join(json.dumps(_plain(line)) for line in [_stamped(about or {}), *rows])
    if format is Format.csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in columns])
        writer.writerows([[row.get(column.key) for column in columns] for row in rows])
        return text.getvalue().rstrip("\n")
    cells = [[_cell(row.get(column.key), column, format) for column in columns] for row in rows]
    numeric = [all(_is_number(row.get(column.key)) for row in rows) for column in columns]
    return tabulate.tabulate(
        cells,
        headers=[column.header for column in columns],
        tablefmt="github" if format is Format.md else "simple",
        colalign=["right" if right else "left" for right in numeric],
        disable_numparse=True,
    )


def _cell(value: Any, column: Column, format: Format) -> str:
    shown = "" if value is None else column.show(value)
    return fill(shown, column.width) if column.width and format is Format.table else shown


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def document(facts: Mapping[str, Any]) -> str:
    """Facts as one JSON object, under `schema_version` and the machine."""
    return json.dumps(_plain(_stamped(facts)), indent=2)


def _stamped(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "machine": machine(), **facts}


def _plain(value: Any) -> Any:
    """What JSON can say: it knows no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
