"""The KV cache: bytes, what calculators elsewhere make of them, what fits on a card, and where two models cross."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Annotated, Any

import torch
import typer

from benchmarks.analytic import kv
from benchmarks.analytic.kv import Setting, span, spans
from benchmarks.analytic.models import Model, chosen, one
from benchmarks.options import (
    AsFormat,
    Batch,
    CacheType,
    Contexts,
    IgnoreField,
    Memory,
    Names,
    Swap,
    WeightType,
)
from benchmarks.output.report import Report, Table, named
from benchmarks.output.show import positions, unit
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Column, Format
from zoo.units import format_bytes

Row = dict[str, Any]
Rows = Sequence[Row]
Against = Annotated[str, typer.Option("--against", metavar="NAME", help="The model whose cache all are held against.")]
DEFAULT_CONTEXT, AGAINST = 32 * 1024, "llama3.1-8b"


def command(
    names: Names = None,
    context: Contexts = None,
    batch: Batch = 1,
    cache_dtype: CacheType = torch.bfloat16,
    dtype: WeightType = torch.bfloat16,
    memory: Memory = 80 * 2**30,
    against: Against = AGAINST,
    swap: Swap = None,
    ignore_field: IgnoreField = None,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Cache bytes, what fits on a card, and where models cross.

    Beside the exact bytes stands what the usual rule of thumb makes of them.
    """
    models, setting = chosen(names or [], swap or [], ignore_field or []), Setting(batch, cache_dtype, dtype)
    report = Report.asked(format, json, out)
    report.add(*tables(models, context or [DEFAULT_CONTEXT], one(against, ignore_field or []), memory, setting))
    report.finish()


def tables(
    models: Sequence[Model], contexts: Sequence[int], against: Model, memory: int, setting: Setting
) -> Iterator[Table]:
    """Bytes, what fits, and where the caches cross that of `against`."""
    yield cache(kv.cache_rows(models, contexts, setting))
    yield fit(kv.fit_rows(models, memory, setting))
    yield crossing(kv.crossing_rows(models, against, setting.cache))


def cache(rows: Rows) -> Table:
    """Bytes at a context, exact and naive."""
    columns = [
        Column("model", "model"),
        Column("kv_fixed_bytes", "fixed MiB", unit(2**20, 1)),
        Column("kv_bytes_per_token", "KiB/token", unit(2**10, 1)),
        Column("context", "context", positions),
        Column("kv_bytes", "GiB", unit(2**30, 2)),
        Column("naive_kv_bytes", "naive GiB", unit(2**30, 2)),
        Column("naive_error", "error", lambda error: f"{error:+.0%}"),
    ]
    rules = dict.fromkeys(rule for row in rows for rule in (row["naive_rule"] or "").split("; ") if rule)
    legend = [
        "fixed MiB: layers with a window, once it is full. KiB/token: what the others add for each token. Both are of "
        "one sequence.",
        f"GiB: the cache of {_sequences(rows[0])} at this context.",
        *(f"naive GiB: {rule}." for rule in rules),
        "error: of the naive figure. k, KiB, MiB and GiB are powers of 1024.",
    ]
    return Table(f"KV cache in {rows[0]['cache_dtype']}", columns, legend, rows)


def fit(rows: Rows) -> Table:
    """What a card has room for."""
    first = rows[0]
    columns = [
        Column("model", "model"),
        Column("weight_bytes", "weights GiB", unit(2**30, 1)),
        Column("left_bytes", "left GiB", unit(2**30, 1)),
        Column("fits", "context that fits", lambda tokens: "any" if tokens == inf else f"{tokens:,}"),
        Column("own_context", "own", positions),
        Column("limit", "limit"),
    ]
    legend = [
        f"weights in {first['weights_dtype']}, the cache of {_sequences(first)} in {first['cache_dtype']}; activations "
        "and workspace are not counted.",
        "own: the context that the model was trained or extended to.",
        "limit: weights, which alone do not fit; cache, which fills the card before the own context is reached; "
        "context, the model's own, which fits.",
    ]
    return Table(f"On a card of {format_bytes(first['memory_bytes'])}", columns, legend, rows, derive=_room)


def _room(row: Row) -> Row:
    left, longest = row["memory_bytes"] - row["weight_bytes"], row["context_that_fits"]
    if left < 0:
        return {}
    return {"left_bytes": left, "fits": inf if longest is None else longest}


def crossing(rows: Rows) -> Table:
    """Which cache is the smaller, by context."""
    columns = [Column("model", "model"), Column("when", "has the smaller cache")]
    legend = [f"The contexts, in tokens, at which its cache is smaller than that of {rows[0]['against']}."]
    return Table(f"Against {rows[0]['against']}", columns, legend, rows, derive=lambda row: {"when": when(row)})


def when(row: Row) -> str:
    """The contexts at which the row's model needs less, in words."""
    if row["changes"] == [{"from_context": 1, "less": None}]:
        return "never: both are the same"
    return ", ".join(span(start, end) for start, end, less in spans(row) if less == named(row)) or "never"


def _sequences(row: Row) -> str:
    return "one sequence" if row["batch"] == 1 else f"{row['batch']} sequences"
