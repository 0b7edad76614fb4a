"""Everything that the page looks up or adds up, as one JSON object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch

from benchmarks import compare, kv
from benchmarks.compare import KV_CONTEXTS
from benchmarks.gallery import palette, series, swaps, terms
from benchmarks.gallery.swaps import Grid
from benchmarks.gallery.terms import BATCHES, Counted, Run
from benchmarks.kv import Setting
from benchmarks.models import Model
from benchmarks.roofline import device, devices
from benchmarks.verbs.compare import PAIRS
from benchmarks.verbs.kv import whose
from zoo.architectures import families
from zoo.card import facts
from zoo.catalog import sizes

CONTEXT, DEVICE = 4096, "h100"  # of the costs that two models are compared in
TYPICAL = 8e9  # parameters: the size nearest to this stands for its architecture
DTYPES = {"float32": 4, "bfloat16": 2, "float8": 1}
Json = dict[str, Any]


class Strings:
    """Values that come again and again, each written once: `at` says where."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def at(self, value: Any) -> int:
        """The place of a value."""
        if value not in self._places:
            self._places[value] = len(self.values)
            self.values.append(value)
        return self._places[value]


def data(
    models: Sequence[Model], marks: Mapping[str, Sequence[Sequence[int]]], measured: Mapping[str, Any] | None
) -> Json:
    """What the page is given. `marks`: of each model the elements of its diagram that differ from each other's."""
    runs = Strings()
    described = [_model(model, runs) | {"marks": marks.get(model.name, [])} for model in models]
    tables = series.tables(models, measured["rows"] if measured else ())
    return {
        "models": described,
        "runs": [_plain(key) for key in runs.values],
        "families": [_family(name) for name in families()],
        "batches": BATCHES,
        "dtypes": DTYPES,
        "devices": {name: asdict(each) for name, each in devices().items()},
        "pairs": PAIRS,
        "comparisons": _comparisons(models),
        "tables": {name: {"columns": table.columns, "rows": table.rows} for name, table in tables.items()},
        "machine": measured and measured["machine"],
    }


def typical(family: str) -> str:
    """The size of an architecture that stands for it: the one nearest to 8 billion parameters, of two the later."""

    def apart(name: str) -> float:
        ratio = sizes()[name].params / TYPICAL
        return max(ratio, 1 / ratio)

    return min(reversed(families()[family].SIZES), key=apart)


def _family(name: str) -> Json:
    """An architecture, and what its file says is new in it: a name, its source in brackets, and the rest."""
    module = families()[name]
    told = re.sub(r"\s+", " ", module.__doc__ or "").strip()
    match = re.match(r"(.+?) \((.+?)\)[,.:]? *(.*)", told)
    title, source, new = match.groups() if match else (name, "", told)
    new = re.sub(r"New here: (.)", lambda first: first[1].upper(), new)
    return {
        "name": name,
        "title": title,
        "source": source,
        "new": new[:1].upper() + new[1:],
        "sizes": list(module.SIZES),
        "typical": typical(name),
    }


def _model(model: Model, runs: Strings) -> Json:
    spec = model.spec
    card = facts(spec, torch.bfloat16)

    def placed(counted: Counted) -> list[list[int]]:
        return [[n, runs.at(_Key(run))] for n, run in counted]

    def grid(made: Grid) -> Json:
        cells = [[None if cell is None else placed(cell) for cell in row] for row in made.cells]
        axes = [
            {"name": axis.name, "choices": [[choice.label, choice.code] for choice in axis.choices]}
            for axis in (made.rows, made.columns)
        ]
        return {"axes": axes, "cells": cells}

    return {
        "name": model.name,
        "family": next(name for name, module in families().items() if model.name in module.SIZES),
        "hub": model.size.hub if model.size else None,
        "context": spec.context,
        "layers": len(spec.layers),
        "plan": card["plan"],
        "colour": palette.models()[model.name],
        "outside": placed(((1, terms.outside(spec)),)),
        "attention": grid(swaps.attention_grid(spec)),
        "experts": grid(swaps.expert_grid(spec)),
        "positions": swaps.positions(spec),
        "costs": [value for _, _, value in compare.costs(spec, CONTEXT, Setting(), device(DEVICE))],
    }


class _Key:
    """A run, to be found again by what it says: it holds dicts, which cannot be hashed."""

    def __init__(self, run: Run) -> None:
        self.run, self._said = run, repr(run)

    def __hash__(self) -> int:
        return hash(self._said)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._said == other._said


def _plain(key: _Key) -> Json:
    return asdict(key.run)


def _comparisons(models: Sequence[Model]) -> Json:
    """Every two models: what differs in their specs, as places in `strings`, and whose cache is the smaller."""
    strings = Strings()
    differences, caches = {}, {}
    for first, second in combinations(models, 2):
        rows = compare.difference_rows(first, second)
        told = [[strings.at(row[key]) for key in ("field", "value", "other")] for row in rows]
        differences[f"{first.name} {second.name}"] = told
        (crossing,) = kv.crossing_rows([first], second, torch.bfloat16)
        caches[f"{first.name} {second.name}"] = whose(crossing)
    spec = models[0].spec
    names = [[figure, unit] for figure, unit, _ in compare.costs(spec, CONTEXT, Setting(), device(DEVICE))]
    return {
        "strings": strings.values,
        "differences": differences,
        "caches": caches,
        "costs": names,
        "contexts": KV_CONTEXTS,
        "context": CONTEXT,
        "device": device(DEVICE).name,
    }


def defaults(models: Iterable[Model]) -> list[str]:
    """The models that charts show before anything is picked: one of each architecture."""
    stand = {typical(family) for family in families()}
    return [model.name for model in models if model.name in stand]
