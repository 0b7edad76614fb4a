"""Parameters by part: rows of exact integers that add up, and how they relate to what others print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.analytic import hub
from benchmarks.analytic.costs import about
from benchmarks.analytic.models import Model
from zoo.model.layer_pattern import labels

PARTS = ("embedding", "head", "attn", "ffn", "routed", "shared", "router", "norm")


def rows(models: Iterable[Model]) -> list[dict[str, Any]]:
    """One row for each model: `params`, and the same by part, which add up to it.

    `hub_params` is what the Hub shows of a published size, by `hub_beside` more than `params`; `name_params` and
    `name_active_params` are what its name claims.
    """
    return [row(model) for model in models]


def row(model: Model) -> dict[str, Any]:
    """The row of one model."""
    spec = model.spec
    total, parts = spec.params(), spec.param_breakdown()
    shown = hub.shown(model.name, total) if model.size else None
    claimed, claimed_active = hub.named(model.name) if model.size else (None, None)
    return {
        "table": "params",
        **about(model),
        "params": total,
        "active_params": spec.active_params(),
        **{f"{part}_params": parts.get(part, 0) for part in PARTS},
        "other_params": sum(number for part, number in parts.items() if part not in PARTS),
        "hub_params": shown.total if shown else None,
        "hub_beside": [{"what": what, "params": number} for what, number in shown.beside.items()] if shown else [],
        "hub_note": shown.note if shown else None,
        "name_params": claimed,
        "name_active_params": claimed_active,
    }


def layer_rows(models: Iterable[Model]) -> list[dict[str, Any]]:
    """One row for each distinct kind of layer of each model: how many there are, and what one of them holds."""
    return [row for model in models for row in _layers(model)]


def _layers(model: Model) -> Iterator[dict[str, Any]]:
    spec = model.spec
    for (layer, number), label in zip(Counter(spec.layers).items(), labels(spec), strict=True):
        parts = layer.param_breakdown(spec.dim)
        yield {
            "table": "layers",
            **about(model),
            "kind": label,
            "layers": number,
            "params": layer.params(spec.dim),
            "active_params": layer.active_params(spec.dim),
            **{f"{part}_params": parts.get(part, 0) for part in PARTS if part not in ("embedding", "head")},
            "other_params": sum(number for part, number in parts.items() if part not in PARTS),
        }
