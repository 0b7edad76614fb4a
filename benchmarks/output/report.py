"""Tables with titles and legends, the report that writes them in one format, and the function that reads a report."""

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self

from typer import Option

from zoo.cli.runner import Debug, Json, Out, emit
from zoo.cli.tables import SCHEMA_VERSION, Column, Format, render
from zoo.cli.tables import Row as Row
from zoo.errors import MalformedError, NotAvailable

DOCS = Path(__file__).resolve().parents[2] / "docs"  # exists in a checkout, not in an installed package
MAX_WIDTH = 80  # characters
Rows = Sequence[Row]


def columns(show: Callable[..., str] = str, /, **headers: str) -> list[Column]:
    """Returns columns with the same formatter, as key=header. A header may have two lines."""
    return [Column(key, header, show) for key, header in headers.items()]


def columns_in_use(rows: Rows, show: Callable[..., str], /, **headers: str) -> list[Column]:
    """Returns the given columns in which some row has a number other than 0."""
    return columns(show, **{key: header for key, header in headers.items() if any(row[key] for row in rows)})


@dataclass(frozen=True)
class Table:
    """Rows and their layout: a title, the columns, and a legend of one or more lines beneath the table.

    `derive` makes the cells that combine several values of a row, such as a range. It returns None for a row that is
    not shown as a line, since other rows' lines show its values. `star_notes`: whether the legend explains the star of
    a swapped model and the tilde of an estimated one.
    """

    title: str
    columns: Sequence[Column]
    legend: Sequence[str]
    rows: Rows
    derive: Callable[[Row], Row | None] = lambda row: {}
    star_notes: bool = True

    def text(self, format: Format) -> str:
        """Returns title, table and legend, as plain text at most 80 columns wide or as Markdown.

        Columns without a value in any row are left out. A table that is too wide wraps its widest column of text. A
        table without columns shows only its legend.
        """
        lines = [(row, cells) for row in self.rows if (cells := self.derive(row)) is not None]
        rows = [row | cells | ({"model": named(row)} if "model" in row else {}) for row, cells in lines]
        shown = [column for column in self.columns if any(row.get(column.key) not in (None, []) for row in rows)]
        legend = [*self.legend, *(_name_notes(self.rows) if self.star_notes else [])]
        if format is Format.md:
            shown = [replace(column, header=column.header.replace("\n", " ")) for column in shown]
            title, notes = self.title and f"### {self.title}", [f"- {line}" for line in legend]
        elif format is Format.latex:
            title, notes = self.title and f"% {self.title}", [f"% {line}" for line in legend]
        else:
            title, shown = self.title, list(_fitted(rows, shown))
            notes = [textwrap.fill(line, MAX_WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in legend]
        return "\n\n".join(filter(None, [title, render(rows, shown, format) if shown else "", "\n".join(notes)]))


def _fitted(rows: Rows, columns: Sequence[Column]) -> Sequence[Column]:
    """Returns the columns of a plain table. If it exceeds 80 characters, the widest column of text is narrowed."""
    excess = max(map(len, render(rows, columns).splitlines()), default=0) - MAX_WIDTH
    widths = {
        column: max(len(value) for row in rows if isinstance(value := row.get(column.key), str))
        for column in columns
        if column.width is None and any(isinstance(row.get(column.key), str) for row in rows)
    }
    if excess <= 0 or not widths:
        return columns
    widest = max(widths, key=widths.__getitem__)
    return [replace(each, width=max(1, widths[each] - excess)) if each is widest else each for each in columns]


def named(row: Row) -> str:
    """Returns the name of a row's model, with a star if a swap has changed the model, and a tilde if it is
    estimated."""
    return ("~" if row.get("estimated") else "") + row["model"] + ("*" if row.get("swap") else "")


def _name_notes(rows: Rows) -> list[str]:
    """Returns the legend lines on the meaning of the star and of the tilde, and on the features that the swaps
    removed."""
    swaps = dict.fromkeys(row["swap"] for row in rows if row.get("swap"))
    dropped = dict.fromkeys(f"{named(row)} has no {row['dropped']}" for row in rows if row.get("dropped"))
    guessed = ["~: estimated, since no family reads its config; see the last tables."] * any(map(_is_estimated, rows))
    return (
        guessed
        + [f"*: after --swap {swap}." for swap in swaps]
        + ([f"Dropped: {'; '.join(dropped)}."] if dropped else [])
    )


def _is_estimated(row: Row) -> bool:
    return "estimated" in row


@dataclass
class Report:
    """Tables in the order they are added. All other fields are options of a command line.

    On stdout, tables for people are printed at once. In any other format, or in a file, all rows are written as one
    document when the report is finished. csv, json and jsonl hold each row once, with the name of its `table`. As a
    context manager, the report is finished when the block ends, even by an exception or Ctrl-C. An empty report writes
    nothing.
    """

    format: Annotated[Format, Option(help="Format of the rows.")] = Format.table
    json: Json = False
    out: Out = None
    debug: Debug = False
    tables: list[Table] = field(init=False, default_factory=list)
    about: Row = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.format = Format.json if self.json else self.format
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise NotAvailable(f"cannot write {self.out}: there is no folder {self.out.parent}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tables or self.about:
            self.finish()

    @property
    def for_people(self) -> bool:
        """Whether the format is for people rather than for programs."""
        return self.format in (Format.table, Format.md, Format.latex)

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables without duplicates: tables may share rows."""
        return list({id(row): row for table in self.tables for row in table.rows}.values())

    def add(self, *tables: Table) -> None:
        """Adds tables to the report."""
        for table in tables:
            if self.for_people and self.out is None:
                print(("\n" if self.tables else "") + table.text(self.format), flush=True)
            self.tables.append(table)

    def finish(self) -> None:
        """Writes everything that has not been written yet."""
        if not self.for_people:
            rows = self.rows
            keys = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list))
            emit(render(rows, [Column(key, key) for key in keys], self.format, self.about), self.out)  # csv: no lists
        elif self.out is not None:
            emit("\n\n".join(table.text(self.format) for table in self.tables), self.out)


def kept(folder: Path) -> dict[str, Path]:
    """Returns {name without the suffix: path} of the JSON documents in a folder."""
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def read(file: Path, verb: str = "throughput") -> Row:
    """Reads a document of `python -m benchmarks VERB --json`.

    Raises NotAvailable for a file that cannot be read, and MalformedError for a file that is not such a document or has
    another schema version.
    """
    wrong = f"{file}: not a document of python -m benchmarks {verb} --json"
    try:
        document: Row = json.loads(file.read_text(encoding="utf-8"))
        version = document["schema_version"]
        if not isinstance(document["machine"], dict) or not all("table" in row for row in document["rows"]):
            raise MalformedError(wrong)
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise MalformedError(wrong) from error
    if version != SCHEMA_VERSION:
        author = f"{'an older' if version == 1 else 'another'} version (schema_version {version})"
        raise MalformedError(f"{file}: written by {author}; this version reads {SCHEMA_VERSION}")
    return document
