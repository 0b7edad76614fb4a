"""Rows about the KV cache: its bytes, the naive figure beside them, what fits on a card, and where two models cross."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.analytic import growth
from benchmarks.analytic.costs import about
from benchmarks.analytic.models import Model
from benchmarks.analytic.naive import naive_bytes, rules
from zoo.units import dtype_name

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What a cache is made for: `batch` sequences, stored in `cache` numbers beside `weights` ones."""

    batch: int = 1
    cache: torch.dtype = torch.bfloat16
    weights: torch.dtype = torch.bfloat16

    def describe(self) -> Row:
        """The setting as a row says it."""
        return {"batch": self.batch, "cache_dtype": dtype_name(self.cache)}


def cache_rows(models: Iterable[Model], contexts: Sequence[int], setting: Setting) -> list[Row]:
    """One row for each model and context. Fixed bytes and bytes per token are of one sequence, `kv_bytes` of all."""
    return [_cache(model, context, setting) for model in models for context in contexts]


def _cache(model: Model, context: int, setting: Setting) -> Row:
    fixed, per_token = model.spec.kv_growth(setting.cache)
    exact = model.spec.kv_bytes(context, setting.batch, setting.cache)
    naive = naive_bytes(model.spec, context, setting.batch, setting.cache)
    return {
        "table": "kv",
        **about(model),
        **setting.describe(),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "context": context,
        "kv_bytes": exact,
        "naive_kv_bytes": naive,
        "naive_error": None if naive is None else naive / exact - 1,
        "naive_rule": rules(model.spec) or None,
    }


def fit_rows(models: Iterable[Model], memory: int, setting: Setting) -> list[Row]:
    """One row for each model: the longest context whose cache fits into `memory` bytes beside the weights.

    `limit` is what ends it: the weights, which do not fit; the cache, which fills what they leave; or the model's own
    context, which fits.
    """
    return [_fit(model, memory, setting) for model in models]


def _fit(model: Model, memory: int, setting: Setting) -> Row:
    weights, own = model.spec.params() * setting.weights.itemsize, model.spec.context
    pieces = growth.pieces(model.spec, setting.cache)
    longest = growth.longest(pieces, (memory - weights) // setting.batch) if weights <= memory else 0
    roomy = longest is None or (own is not None and longest >= own)
    return {
        "table": "fit",
        **about(model),
        **setting.describe(),
        "weights_dtype": dtype_name(setting.weights),
        "memory_bytes": memory,
        "weight_bytes": weights,
        "context_that_fits": longest,
        "own_context": own,
        "limit": "weights" if weights > memory else "context" if roomy else "cache",
    }


def crossing_rows(models: Iterable[Model], against: Model, dtype: torch.dtype) -> list[Row]:
    """One row for each model: from which context on its cache is smaller than that of `against`, in the end."""
    other = growth.pieces(against.spec, dtype)
    return [_crossing(model, against, growth.changes(growth.pieces(model.spec, dtype), other)) for model in models]


def _crossing(model: Model, against: Model, changes: Sequence[growth.Change]) -> Row:
    less = {-1: model.label, 0: None, 1: against.label}
    return {
        "table": "crossing",
        **about(model),
        "against": against.label,
        "against_swap": against.swap,
        "from_context": changes[-1].start,
        "less": less[changes[-1].sign],
        "changes": [{"from_context": change.start, "less": less[change.sign]} for change in changes],
    }


def describe_crossing(row: Row) -> str:
    """Which of the two models of a crossing row has the smaller cache, by context."""
    return "; ".join(f"{less or 'both alike'} {span(start, end)}" for start, end, less in spans(row)) + "."


def span(start: int, end: int | None) -> str:
    """Contexts from `start` to `end` (None: no end), as text."""
    if end is None:
        return "at every context" if start == 1 else f"from {start:,} on"
    return f"up to {end:,}" if start == 1 else f"at {start:,}" if start == end else f"{start:,} to {end:,}"


def spans(row: Row) -> Iterator[tuple[int, int | None, str | None]]:
    """(first context, last context, the model with the smaller cache) of a crossing row."""
    changes = row["changes"]
    for change, following in zip(changes, [*changes[1:], None], strict=True):
        yield change["from_context"], following["from_context"] - 1 if following else None, change["less"]
