"""Tables and what stands around them: titles, columns, legends, and writing them all in one format."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.cli.runner import emit
from zoo.cli.tables import Column, Format, render
from zoo.errors import NotAvailable

WIDTH = 80


@dataclass(frozen=True)
class Table:
    """Rows, and how a person reads them: the columns under a title, one legend line or more beneath.

    `derive` makes the cells that no single value of a row fills, such as a range. A row that is not one of `lines` has
    no line of its own: what it says stands in those of others.
    """

    title: str
    columns: Sequence[Column]
    legend: Sequence[str]
    rows: Sequence[dict[str, Any]]
    derive: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: {}
    lines: Callable[[dict[str, Any]], bool] = lambda row: True

    def text(self, format: Format) -> str:
        """Title, table and legend, as plain text at most 80 columns wide or as Markdown. Columns without a value in any
        row are left out, and a table without columns is its legend."""
        lines = filter(self.lines, self.rows)
        rows = [{**row, **self.derive(row), **({"model": named(row)} if "model" in row else {})} for row in lines]
        held = [column for column in self.columns if any(row.get(column.key) not in (None, []) for row in rows)]
        legend = [*self.legend, *_stars(self.rows)]
        body = [render(rows, held, format)] if held else []
        if format is Format.md:
            return "\n\n".join([f"### {self.title}", *body, "\n".join(f"- {line}" for line in legend)])
        legend = [textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in legend]
        return "\n\n".join([self.title, *body, "\n".join(legend)])


def named(row: dict[str, Any]) -> str:
    """The name of a row's model, starred where a swap has changed it."""
    return row["model"] + ("*" if row.get("swap") else "")


def _stars(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What stars mean, and what was lost on the way."""
    swaps = dict.fromkeys(row["swap"] for row in rows if row.get("swap"))
    dropped = dict.fromkeys(f"{named(row)} has no {row['dropped']}" for row in rows if row.get("dropped"))
    return [f"*: after --swap {swap}." for swap in swaps] + [f"Dropped: {'; '.join(dropped)}." for _ in dropped][:1]


class Report:
    """Tables in the order they are added.

    On stdout, tables for people appear one by one. In any other format, or in a file, all is written at the end as one
    document: csv, json and jsonl hold each row once, with the name of its `table`.
    """

    def __init__(self, format: Format, out: Path | None) -> None:
        if out is not None and not out.absolute().parent.is_dir():
            raise NotAvailable(f"cannot write {out}: there is no folder {out.parent}")
        self.format, self.out = format, out
        self.tables: list[Table] = []
        self.about: dict[str, Any] = {}

    @classmethod
    def asked(cls, format: Format, json: bool, out: Path | None) -> Report:
        """The report that the options of a verb ask for: --json is short for --format json."""
        return cls(Format.json if json else format, out)

    @property
    def for_people(self) -> bool:
        """Whether the tables are read as they are, rather than by a program."""
        return self.format in (Format.table, Format.md)

    def add(self, *tables: Table) -> None:
        """Take tables into the report."""
        for table in tables:
            if self.for_people and self.out is None:
                print(("\n" if self.tables else "") + table.text(self.format), flush=True)
            self.tables.append(table)

    def finish(self) -> None:
        """Write what has not been written yet."""
        if not self.for_people:
            rows = self._rows()
            emit(render(rows, _raw(rows), self.format, self.about), self.out)
        elif self.out is not None:
            emit("\n\n".join(table.text(self.format) for table in self.tables), self.out)

    def _rows(self) -> list[dict[str, Any]]:
        """Every row once: two tables may show different columns of the same rows."""
        return list({id(row): row for table in self.tables for row in table.rows}.values())


def _raw(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """A column for each key, but for those that hold lists: csv has no place for them."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list))
    return [Column(key, key) for key in keys]
