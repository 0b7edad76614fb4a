"""The KV cache: bytes, other calculators' results, contexts that fit on a card, and which of two caches is smaller."""

from collections.abc import Iterator, Sequence
from math import inf
from typing import Annotated

import typer

from benchmarks.analytic.kv import InferenceConfig, cache_row, crossing_row, fit_row
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.options import MEMORY, Contexts, InferenceOptions, Memory, ModelOptions
from benchmarks.output.estimates import estimate_tables
from benchmarks.output.report import Report, Row, Rows, Table, columns, columns_in_use, named
from benchmarks.output.show import format_decimal_bytes, format_sequences, format_tokens, on_each, smaller_at, unit

DEFAULT_CONTEXT, AGAINST = 32 * 1024, "llama3.1-8b"


def command(
    *,
    context: Contexts = None,
    inference: InferenceOptions,
    memory: Memory = MEMORY,
    against: Annotated[
        str, typer.Option(metavar="NAME", help="Model whose cache all others are compared with.")
    ] = AGAINST,
    models: ModelOptions,
    report: Report,
) -> None:
    """KV-cache bytes, and the longest context that fits on a card.

    The first table shows the exact bytes beside those of the usual formula. The second shows the longest context whose
    cache fits on a card beside the weights. The third shows the contexts at which a model's cache is smaller than the
    cache of the --against model.
    """
    chosen = inference.divisible(models.chosen(estimated=True))
    other = one(against, models.ignore_field or [], estimated=True)
    report.add(*tables(chosen, context or [DEFAULT_CONTEXT], other, memory, inference))
    report.add(*estimate_tables(chosen, inference))


def tables(
    models: Sequence[NamedSpec], contexts: Sequence[int], against: NamedSpec, memory: int, config: InferenceConfig
) -> Iterator[Table]:
    """Yields the tables of bytes, of contexts that fit, and of contexts with a smaller cache than `against`."""
    yield cache([cache_row(model, context, config) for model in models for context in contexts])
    yield fit([fit_row(model, memory, config) for model in models])
    yield crossing([crossing_row(model, against, config) for model in models])


def cache(rows: Rows) -> Table:
    """Returns the table of bytes at a context, exact and by the usual formula."""
    gib = unit(2**30, 2)
    shown = [
        *columns(model="model"),
        *columns(unit(2**20, 1), kv_fixed_bytes="fixed MiB"),
        *columns(unit(2**10, 1), kv_bytes_per_token="KiB/token"),
        *columns(format_tokens, context="context"),
        *columns(gib, kv_bytes="GiB"),
        *columns_in_use(rows, gib, usual_formula_kv_bytes="usual GiB"),
        *columns_in_use(rows, "{:+.0%}".format, usual_formula_error="error"),
    ]
    formulas = dict.fromkeys(each for row in rows for each in (row["usual_formula"] or "").split("; ") if each)
    legend = [
        "fixed MiB: the cache of layers with a window, once it is full, and states. KiB/token: bytes that the other "
        "layers add for each token. Both are for one sequence.",
        f"GiB: the cache of {format_sequences(rows[0]['batch'])} at this context.",
        *(f"usual GiB, as other calculators count it: {formula}." for formula in formulas),
        f"{'error: usual GiB / GiB - 1. ' if formulas else ''}k, KiB, MiB and GiB are powers of 1024.",
    ]
    where = on_each(rows[0]["tp"])
    return Table(f"KV cache in {rows[0]['cache_dtype']}{where}", shown, legend, rows)


def fit(rows: Rows) -> Table:
    """Returns the table of the contexts that fit on a card beside the weights."""
    first = rows[0]
    several = len({row["weights_dtype"] for row in rows}) > 1  # each model in its released dtype
    shown = [
        *columns(model="model"),
        *(columns(weights_dtype="stored in") if several else []),
        *columns(unit(10**9, 1), weight_bytes="weights GB", left_bytes="left GB"),
        *columns(lambda tokens: "any" if tokens == inf else format_tokens(tokens), fits="context\nthat fits"),
        *columns(format_tokens, trained_context="trained"),
        *columns(limit="limit"),
    ]
    form = "as stored" if several else f"in {first['weights_dtype']}"
    legend = [
        f"weights {form}, the cache of {format_sequences(first['batch'])} in {first['cache_dtype']}; activations "
        "and workspace are not counted.",
        "trained: the context that the model was trained for or extended to; no longer context is shown as fitting.",
        "limit: weights (they alone do not fit), cache (it fills the card before the trained context is reached) or "
        "context (the whole trained context fits).",
    ]
    if first["tp"] > 1:
        legend.insert(0, f"weights GB, left GB: of one card; {first['tp']} hold a model together (tensor parallel).")
    title = "On a card" if first["tp"] == 1 else f"On each of {first['tp']} cards"
    return Table(f"{title} of {format_decimal_bytes(first['memory_bytes'])}", shown, legend, rows, derive=_left)


def _left(row: Row) -> Row:
    left, trained = row["memory_bytes"] - row["weight_bytes"], row["trained_context"] or inf
    fits = inf if row["context_that_fits"] is None else row["context_that_fits"]
    return {"left_bytes": left, "fits": min(fits, trained)} if left >= 0 else {}


def crossing(rows: Rows) -> Table:
    """Returns the table of the contexts at which a model's cache is smaller than that of another model."""
    against = rows[0]["against"]
    legend = [f"Contexts, in tokens, at which the cache of the model is smaller than that of {against}."]
    shown = columns(model="model", when="has the smaller cache")
    return Table(f"Against {against}", shown, legend, rows, lambda row: {"when": smaller_at(row, named(row))})
