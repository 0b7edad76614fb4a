"""Rows as tables, CSV and JSON documents."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from textwrap import fill
from typing import Any

from tabulate import tabulate

from zoo.core.devices import machine

SCHEMA_VERSION = 2
Row = dict[str, Any]


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


@dataclass(frozen=True)
class Column:
    """A column of a table: the key of its value in a row, its header, and how a value is shown.

    A plain table wraps the column at `width` characters; None: not at all.
    """

    key: str
    header: str
    show: Callable[[Any], str] = str
    width: int | None = None


def render(
    rows: Sequence[Row], columns: Sequence[Column], format: Format = Format.table, about: Row | None = None
) -> str:
    """Rows as text.

    Tables show the `columns`; csv holds their raw values; json and jsonl hold the rows as they are, with
    `schema_version`, the machine and the facts `about` the rows.
    """
    if format is Format.json:
        return document({**(about or {}), "rows": rows})
    if format is Format.jsonl:
        return "\n".join(json.dumps(_json_value(line)) for line in [_with_origin(about or {}), *rows])
    if format is Format.csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in columns])
        writer.writerows([[row.get(column.key) for column in columns] for row in rows])
        return text.getvalue().rstrip("\n")
    return _table(rows, columns, plain=format is Format.table)


def _table(rows: Sequence[Row], columns: Sequence[Column], plain: bool) -> str:
    """A plain or a Markdown table. Headers, which may have several lines in a plain table, are its first row, since
    tabulate pads what it knows as a header by two."""

    def cell(value: Any, column: Column) -> str:
        shown = "" if value is None else column.show(value)
        # Not tabulate's maxcolwidths, which breaks deepseek-v3-671b anywhere instead of at a hyphen.
        return fill(shown, column.width) if column.width and plain else shown

    headers = [column.header for column in columns]
    height = 1 + max((header.count("\n") for header in headers), default=0)
    rule, *lines = tabulate(
        [headers, *([cell(row.get(column.key), column) for column in columns] for row in rows)],
        tablefmt="simple" if plain else "github",
        colalign=["right" if all(_is_number(row.get(c.key)) for row in rows) else "left" for c in columns],
        disable_numparse=True,
    ).split("\n")
    body = lines[height:-1] if plain else lines[height:]  # a plain table without a header ends in a rule
    return "\n".join([*lines[:height], rule, *body])


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def document(facts: Mapping[str, Any]) -> str:
    """Facts as one JSON object, with `schema_version` and the machine."""
    return json.dumps(_json_value(_with_origin(facts)), indent=2)


def _with_origin(facts: Mapping[str, Any]) -> Row:
    return {"schema_version": SCHEMA_VERSION, "machine": machine(), **facts}


def _json_value(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
