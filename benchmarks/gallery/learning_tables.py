"""The results of learning as tables of plain rows, for the charts, the CSV files and the table of the page.

All tables are made from the rows of `python -m benchmarks learn --json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from benchmarks.learning.intervals import NO_DIFFERENCE
from benchmarks.learning.rows import BITS, SHARE
from benchmarks.learning.tables import plus_minus, what
from benchmarks.learning.tasks import TASKS
from zoo.cli.tables import Row
from zoo.units import format_count

BITS_KEYS = ("bits_per_byte", "bits_per_byte_low", "bits_per_byte_high")
TEXTS = ("model", "data", "data_hash", "task", "measure")  # columns of text; all others hold numbers
OPTIONAL = (*BITS_KEYS, "low", "high")  # columns that may be None


def learning_tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns every table, by name. A table is empty if the comparison has no figures for it.

    All rows of a table have the same columns.

    Raises KeyError for a row that lacks a figure, ValueError or TypeError for a value of the wrong type.
    """
    makers = {
        "learning": _models,
        "learning_curves": _curves,
        "learning_accuracy": _accuracies,
        "learning_lengths": _lengths,
    }
    made = {name: list(make(rows)) for name, make in makers.items()}
    for row in (row for table in made.values() for row in table):
        for column, value in row.items():
            _check(column, value)
    return made


def _check(column: str, value: object) -> None:
    if value is None and column in OPTIONAL:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not (isinstance(value, str) if column in TEXTS else number):
        raise ValueError(f"{column} is {value!r}")


def _of_table(rows: Sequence[Row], table: str) -> list[Row]:
    return [row for row in rows if row["table"] == table]


def _models(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields a row for each model. kv_bytes_per_token is for one sequence as long as the training context."""
    for row in _of_table(rows, "learn"):
        yield {
            "model": what(row),
            **{key: row[key] for key in ("params", "active_params", "context")},
            "kv_bytes_per_token": row["kv_bytes"] / row["context"],
            **{key: row[key] for key in ("flops_per_token", "tokens", "batch", "seeds", "learning_rate")},
            **{key: row[key] for key in (*BITS_KEYS, "data", "data_hash")},
        }


def _curves(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields the evaluations during training: a row for each model and number of tokens.

    A row holds the means over the seeds, and the lowest and highest bits per byte of a seed.
    """
    for row in _of_table(rows, "learn"):
        points = dict[int, list[Row]]()
        for run in row["runs"]:
            for point in run["curve"]:
                points.setdefault(point["tokens"], []).append(point)
        for seeds in points.values():
            means = {key: fmean(point[key] for point in seeds) for key in ("tokens", "flops", "seconds")}
            bits = [point["bits_per_byte"] for point in seeds]
            yield {"model": what(row), **means, "bits_per_byte": fmean(bits), "low": min(bits), "high": max(bits)}


def _accuracies(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields a row for each model and each size of a synthetic task."""
    return _figures(rows, SHARE, "chance")


def _lengths(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields a row for each model and each evaluated context length: bits per byte."""
    return _figures(rows, BITS)


def _figures(rows: Sequence[Row], unit: str, *more: str) -> Iterator[Row]:
    for row in _of_table(rows, "learn_figures"):
        if row["unit"] == unit:
            keys = ("task", "size", "measure", "mean", "low", "high", *more)
            yield {"model": what(row), **{key: row[key] for key in keys}}


@dataclass(frozen=True)
class Section:
    """The text and the table of the page's section on learning.

    `facts`: models, data and budget. `notes`: explanations of the figures. `head`, `cells`: the header and the rows of
    the table, as text.
    """

    facts: tuple[str, ...]
    notes: tuple[str, ...]
    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def section(rows: Sequence[Row]) -> Section:
    """Returns the text and the table that stand beside the charts of a comparison."""
    models, figures = _of_table(rows, "learn"), _of_table(rows, "learn_figures")
    measures = dict.fromkeys(row["measure"] for row in figures)
    found = {(what(row), row["measure"]): _figure(row) for row in figures}
    words = {what(row): row["words"] for row in _of_table(rows, "learn_differences") if row["measure"] == BITS}
    first = what(models[0])
    columns: dict[str, Callable[[Row], str]] = {
        "parameters": lambda row: format_count(row["params"]),
        "active": lambda row: format_count(row["active_params"]),
        "KV bytes per token": lambda row: f"{row['kv_bytes'] / row['context']:,.0f}",
        "FLOPs per token": lambda row: format_count(row["flops_per_token"]),
        BITS: lambda row: plus_minus(row, BITS_KEYS, ".3f") or "",
        f"bits against {first}": lambda row: words.get(what(row), ""),
        **{each: lambda row, each=each: found.get((what(row), each), "") for each in measures},  # type: ignore[misc]
    }
    cells = {head: [show(row) for row in models] for head, show in columns.items()}
    shown = {head: column for head, column in cells.items() if any(column)}
    lines = zip(*shown.values(), strict=True)
    named = tuple((what(row), *line) for row, line in zip(models, lines, strict=True))
    return Section(_facts(models), _notes(rows, bool(words)), ("model", *shown), named)


def _figure(row: Row) -> str:
    keys = ("mean", "low", "high")
    if row["unit"] == BITS:
        return plus_minus(row, keys, ".3f") or ""
    share = plus_minus(row, keys, ".1f", 100)
    return f"{share} %" if share else ""


def _facts(models: Sequence[Row]) -> tuple[str, ...]:
    """Returns the facts of the training: sizes, seeds, and the text and its tokens if text was a task."""
    first, sizes = models[0], [row["params"] for row in models]
    params = dict.fromkeys(map(format_count, (min(sizes), max(sizes))))
    facts = [f"{' to '.join(params)} parameters", f"{first['seeds']} seeds"]
    if any(row["bits_per_byte"] is not None for row in models):
        steps = f"steps of {first['batch']} x {first['context']}"
        facts.insert(1, f"{format_count(first['tokens'])} tokens (bytes) in {steps}")
        facts.insert(0, f"text {first['data']} ({first['data_hash']})")
    return tuple(facts)


def _notes(rows: Sequence[Row], compared: bool) -> tuple[str, ...]:
    """Returns the explanations of the figures."""
    notes = [
        "Means over the seeds and their 95 % intervals. KV bytes per token: the cache of one sequence as long as the "
        "trained context, in bfloat16, by its tokens. FLOPs per token: of a forward pass."
    ]
    for task in dict.fromkeys(row["task"] for row in _of_table(rows, "learn_figures") if row["chance"] is not None):
        chance = next(row["chance"] for row in rows if row.get("task") == task and row.get("chance") is not None)
        title = TASKS[task].title if task in TASKS else task
        notes.append(f"{title[:1].upper()}{title[1:]}: accuracy; a guess has {chance:.1%}.")
    if compared:
        notes.append(
            "Differences are paired at equal seeds, with Holm's correction over the models compared. "
            f'"{NO_DIFFERENCE}": the interval includes zero, so other seeds could reverse it.'
        )
    return tuple(notes)
