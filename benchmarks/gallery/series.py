"""What the charts show, as tables of plain rows: also the CSV files behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from benchmarks.analytic import growth
from benchmarks.analytic.models import Model
from benchmarks.analytic.params import PARTS
from benchmarks.analytic.roofline import PHASES
from benchmarks.output.report import named

Row = dict[str, Any]
CONTEXTS = tuple(round(2 ** (8 + i / 2)) for i in range(25))  # 256 to 1M tokens, two for each doubling
AT = 4096  # tokens of context of the roofline
BATCHES = (1, 8, 64)
COUNT = torch.uint8  # a byte a number: bytes are then numbers


@dataclass(frozen=True)
class Table:
    """Rows of one chart: every row has all columns."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def records(self) -> list[Row]:
        """Each row by its columns' names."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def tables(models: Sequence[Model], measured: Sequence[Mapping[str, Any]] = ()) -> dict[str, Table]:
    """Every table, by name."""
    made = {
        "kv": _kv(models),
        "crossings": _crossings(models),
        "params": _params(models),
        "active": _active(models),
        "flops": _flops(models),
        "passes": _passes(models),
        "measured": _measured(measured),
    }
    return {name: _table(name, rows) for name, rows in made.items()}


def _kv(models: Sequence[Model]) -> Iterator[Row]:
    """Numbers in the cache of one sequence; beyond: at a context that the model was not made for."""
    for model in models:
        for context in _contexts(model):
            own = model.spec.context
            beyond = own is not None and context > own
            yield {"model": model.name, "context": context, "numbers": _numbers(model, context), "beyond": beyond}


def _contexts(model: Model) -> list[int]:
    """Those of all, and the model's own."""
    return sorted({*CONTEXTS, *([model.spec.context] if model.spec.context else [])})


def _numbers(model: Model, context: int) -> int:
    return model.spec.kv_bytes(context, dtype=COUNT)


def _crossings(models: Sequence[Model]) -> Iterator[Row]:
    """Where the cache of one model becomes the larger of two: the first context at which it is."""
    pieces = {model.name: growth.pieces(model.spec, COUNT) for model in models}
    for first, second in combinations(models, 2):
        changes = growth.changes(pieces[first.name], pieces[second.name])
        for change in changes[1:]:
            if change.sign and CONTEXTS[0] <= change.start <= CONTEXTS[-1]:
                less, more = (first, second) if change.sign < 0 else (second, first)
                yield {
                    "less": less.name,
                    "more": more.name,
                    "context": change.start,
                    "numbers": _numbers(less, change.start),
                }


def _params(models: Sequence[Model]) -> Iterator[Row]:
    for model in models:
        parts = model.spec.param_breakdown()
        for part in [*PARTS, *(name for name in parts if name not in PARTS)]:
            if parts.get(part):
                yield {"model": model.name, "part": part, "params": parts[part]}


def _active(models: Sequence[Model]) -> Iterator[Row]:
    for model in models:
        yield {"model": model.name, "params": model.spec.params(), "active": model.spec.active_params()}


def _flops(models: Sequence[Model]) -> Iterator[Row]:
    """FLOPs of one token that sees so many, itself included."""
    for model in models:
        for context in _contexts(model):
            own = model.spec.context
            flops = model.spec.flops(context - 1, 1)
            yield {"model": model.name, "context": context, "flops": flops, "beyond": bool(own and context > own)}


def _passes(models: Sequence[Model]) -> Iterator[Row]:
    """Passes at one context in bfloat16: what a device's roofline makes a ceiling of."""
    for model in models:
        for phase, batch in [("decode", batch) for batch in BATCHES] + [("prefill", 1)]:
            work = PHASES[phase](model.spec, AT, batch, torch.bfloat16, torch.bfloat16)
            yield {
                "model": model.name,
                "pass": f"{phase}, batch {batch}" if phase == "decode" else phase,
                "context": AT,
                "batch": batch,
                "tokens": work.tokens,
                "flops": work.flops,
                "bytes": round(work.weight_bytes) + work.kv_bytes,
            }


def _measured(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """The speeds of a document of `python -m benchmarks throughput --json`."""
    for row in rows:
        if row.get("table") == "throughput":
            yield {
                "model": named(dict(row)) + (" (tiny)" if row["tiny"] else ""),
                "how": f"{row['implementation']}, {row['mode']}",
                "case": f"{row['test']}, batch {row['batch']}, {row['dtype']} on {row['device']}",
                "tokens_per_s": row["tokens_per_s"],
                "low": row["tokens_per_s_min"],
                "high": row["tokens_per_s_max"],
                "ceiling": row["ceiling_tokens_per_s"],
            }


def _table(name: str, rows: Iterable[Row]) -> Table:
    held = list(rows)
    columns = tuple(held[0]) if held else ()
    return Table(name, columns, tuple(tuple(row[column] for column in columns) for row in held))
