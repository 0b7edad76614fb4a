"""Everything that the page looks up or adds up, as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch

from benchmarks.analytic import compare, kv
from benchmarks.analytic.compare import KV_CONTEXTS, PAIRS
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import Model
from benchmarks.analytic.roofline import device, devices
from benchmarks.gallery import palette, series, swaps, terms
from benchmarks.gallery.groups import Group, groups
from benchmarks.gallery.swaps import Grid
from benchmarks.gallery.terms import BATCHES, Counted
from benchmarks.output.show import smaller_by_context

CONTEXT, DEVICE = 4096, "h100"  # of the costs that two models are compared in
DTYPES = {"float32": 4, "bfloat16": 2, "float8": 1}
Json = dict[str, Any]


class Once:
    """Values that come again and again, each kept once: `at` says where."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self._places: dict[str, int] = {}

    @property
    def values(self) -> list[Any]:
        """Every value, in its place."""
        return list(self._held.values())

    def at(self, value: Any) -> int:
        """The place of a value, which is known by what it shows."""
        key = repr(value)
        self._held.setdefault(key, value)
        return self._places.setdefault(key, len(self._places))


def data(
    models: Sequence[Model], marks: Mapping[str, Sequence[Sequence[int]]], measured: Mapping[str, Any] | None
) -> Json:
    """What the page is given. `marks`: of each model the elements of its diagram that differ from each other's."""
    runs = Once()
    described = [_model(model, runs) | {"marks": marks.get(model.name, [])} for model in models]
    tables = series.tables(models, measured["rows"] if measured else ())
    return {
        "models": described,
        "runs": [asdict(run) for run in runs.values],
        "families": [_group(group) for group in groups(models)],
        "batches": BATCHES,
        "dtypes": DTYPES,
        "devices": {name: asdict(each) for name, each in devices().items()},
        "pairs": [pair for pair in PAIRS if {*pair} <= {model.name for model in models}],
        "comparisons": _comparisons(models),
        "tables": {name: {"columns": table.columns, "rows": table.rows} for name, table in tables.items()},
    }


def _group(group: Group) -> Json:
    told = {name: getattr(group, name) for name in ("name", "title", "source", "new")}
    return told | {"sizes": [model.name for model in group.models], "typical": group.typical.name}


def _model(model: Model, runs: Once) -> Json:
    spec = model.spec

    def placed(counted: Counted) -> list[list[int]]:
        return [[n, runs.at(run)] for n, run in counted]

    def grid(made: Grid) -> Json:
        cells = [[None if cell is None else placed(cell) for cell in row] for row in made.cells]
        axes = [
            [[choice.label, choice.code, ", ".join(choice.drops(spec))] for choice in axis]
            for axis in (made.rows, made.columns)
        ]
        return {"axes": axes, "cells": cells}

    return {
        "name": model.name,
        "context": spec.context,
        "layers": len(spec.layers),
        "code": _code(model),
        "colour": palette.models().get(model.name, palette.OTHER),
        "outside": placed(((1, terms.outside(spec)),)),
        "attention": grid(swaps.attention_grid(spec)),
        "experts": grid(swaps.expert_grid(spec)),
        "positions": swaps.positions(spec),
        "costs": [value for _, _, value in compare.costs(spec, CONTEXT, InferenceConfig(), device(DEVICE))],
    }


def _code(model: Model) -> str:
    """The Python that makes its spec."""
    if model.size:
        return f'spec = zoo.spec("{model.name}")'
    return 'spec = zoo.from_hf(json.load(open("config.json")))'


def _comparisons(models: Sequence[Model]) -> Json:
    """Every two models: what differs in their specs, as places in `strings`, and whose cache is the smaller."""
    strings = Once()
    differences, caches = {}, {}
    for first, second in combinations(models, 2):
        rows = compare.difference_rows(first, second)
        told = [[strings.at(row[key]) for key in ("field", "value", "other")] for row in rows]
        differences[f"{first.name} {second.name}"] = told
        crossing = kv.crossing_row(first, second, torch.bfloat16)
        caches[f"{first.name} {second.name}"] = smaller_by_context(crossing)
    spec = models[0].spec
    names = [[figure, unit] for figure, unit, _ in compare.costs(spec, CONTEXT, InferenceConfig(), device(DEVICE))]
    return {
        "strings": strings.values,
        "differences": differences,
        "caches": caches,
        "costs": names,
        "contexts": KV_CONTEXTS,
        "context": CONTEXT,
        "device": device(DEVICE).name,
    }
