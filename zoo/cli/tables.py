"""Formats rows as tables, CSV and JSON documents."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from textwrap import fill
from typing import Any

from tabulate import tabulate

from zoo.core.devices import machine

SCHEMA_VERSION = 2
Row = dict[str, Any]


class Format(StrEnum):
    """The output format of rows."""

    table = "table"
    md = "md"
    latex = "latex"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


@dataclass(frozen=True)
class Column:
    """A column of a table: the key of its values in the rows, its header, and the function that formats a value. Plain
    tables wrap the column at `width` characters, unless that is None."""

    key: str
    header: str
    show: Callable[[Any], str] = str
    width: int | None = None


def render(
    rows: Sequence[Row], columns: Sequence[Column], format: Format = Format.table, about: Row | None = None
) -> str:
    """Formats rows as text. Tables show the `columns`; csv has the raw values of the columns. json and jsonl have the
    complete rows, with `schema_version`, the machine and facts `about` the rows."""
    if format is Format.json:
        return document({**(about or {}), "rows": rows})
    if format is Format.jsonl:
        return "\n".join([document(about or {}, indent=None), *map(_dumps, rows)])
    if format is Format.csv:
        text = io.StringIO()
        keys = [column.key for column in columns]
        csv.writer(text, lineterminator="\n").writerows([keys, *([row.get(key) for key in keys] for row in rows)])
        return text.getvalue().rstrip("\n")
    if format is Format.latex:
        cells = [["" if (cell := row.get(c.key)) is None else c.show(cell) for c in columns] for row in rows]
        headers = [column.header.replace("\n", " ") for column in columns]
        align = _alignment(rows, columns)
        return tabulate(cells, headers, tablefmt="latex_booktabs", colalign=align, disable_numparse=True)
    return _table(rows, columns, plain=format is Format.table)


def _alignment(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Returns the alignment of each column. Numbers are aligned to the right."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float | None) and not isinstance(value, bool)

    return ["right" if all(is_number(row.get(c.key)) for row in rows) else "left" for c in columns]


def _table(rows: Sequence[Row], columns: Sequence[Column], plain: bool) -> str:
    """Formats a plain or a Markdown table. The headers are passed as the first row, since tabulate would pad its own
    headers by two. In a plain table they may have several lines."""

    def cell(value: Any, column: Column) -> str:
        shown = "" if value is None else column.show(value)
        # tabulate's maxcolwidths would break deepseek-v3-671b anywhere; this breaks it at a hyphen.
        return fill(shown, column.width) if column.width and plain else shown

    headers = [column.header for column in columns]
    height = 1 + max((header.count("\n") for header in headers), default=0)
    rule, *lines = tabulate(
        [headers, *([cell(row.get(column.key), column) for column in columns] for row in rows)],
        tablefmt="simple" if plain else "github",
        colalign=_alignment(rows, columns),
        disable_numparse=True,
    ).split("\n")
    body = lines[height:-1] if plain else lines[height:]  # tabulate ends a plain table without a header by a rule
    return "\n".join([*lines[:height], rule, *body])


def document(facts: Row, indent: int | None = 2) -> str:
    """Formats facts as one JSON object, with `schema_version` and the machine."""
    return _dumps({"schema_version": SCHEMA_VERSION, "machine": machine(), **facts}, indent)


def _dumps(value: Row, indent: int | None = None) -> str:
    """Formats a value as JSON. NaN and infinity, which JSON lacks, become null."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=indent)
