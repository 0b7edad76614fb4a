"""Two architectures side by side: the fields of their specs that differ, and what the difference costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from benchmarks.analytic.costs import about
from benchmarks.analytic.flops import PHASES
from benchmarks.analytic.kv import Setting
from benchmarks.analytic.models import Model
from benchmarks.analytic.roofline import Device
from zoo.blocks import Layer
from zoo.blocks.gqa import aliases
from zoo.model.decoder import Decoder
from zoo.registry import Spec

LEAVES = ("rope", "norm", "router", "act")  # slots whose specs are said in words, not field by field
KV_CONTEXTS = (4 * 1024, 32 * 1024, 128 * 1024)
Row = dict[str, Any]
Values = dict[str, Counter[Any]]  # a field -> its values, each as often as layers have it


def difference_rows(first: Model, second: Model) -> list[Row]:
    """One row for each field of the specs whose values differ, or stand in another share of the layers.

    Not for an option that is off in one of them and that the block in the other does not have.
    """
    a, b = described(first.spec), described(second.spec)
    return [
        {"table": "differences", **both(first, second), "field": field, "value": x, "other": y}
        for field in sorted({*a, *b}, key=_order(a, b))
        if _shares(a.get(field)) != _shares(b.get(field)) and not _off(a.get(field), b.get(field))
        for x, y in [_told(a.get(field), b.get(field))]
    ]


def both(first: Model, second: Model) -> Row:
    """What a row says of two models first."""
    return {**about(first), "against": second.label, "against_swap": second.swap}


def described(spec: Decoder) -> Values:
    """Every field of a spec, by its path: of the whole model once, of layers as often as there are layers."""
    values: Values = {"layers": Counter([len(spec.layers)])}
    for field in fields(spec):
        if field.name not in ("layers", "norm"):
            values[field.name] = Counter([getattr(spec, field.name)])
    for layer, number in Counter(spec.layers).items():
        for path, value in _of_layer(layer):
            values.setdefault(path, Counter())[value] += number
    values["norm"][spec.norm] += 1
    return values


def _of_layer(layer: Layer) -> Iterator[tuple[str, Any]]:
    branches = {"attn": layer.attn, "ffn": layer.ffn}
    for slot, branch in branches.items():
        yield from _of(slot, branch.block)
    for branch in branches.values():
        yield "norm placement", f"{branch.placement}: {branch.formula}"
        yield from (("norm", norm) for norm in branch.norms())


def _of(path: str, spec: Spec) -> Iterator[tuple[str, Any]]:
    """A block's kind under its path, then its fields, and those of the blocks in it."""
    yield path, " ".join(word for word in aliases(spec) if word != "SWA")
    for field in fields(spec):
        value = getattr(spec, field.name)
        inner = f"{path}.{field.name}"
        if isinstance(value, Spec) and value.role not in LEAVES:
            yield from _of(inner, value)
        else:
            yield inner, value


def _order(a: Values, b: Values) -> Callable[[str], tuple[int, int]]:
    """Fields as the specs hold them, those of one part together."""
    order = list(dict.fromkeys([*a, *b]))
    parts = list(dict.fromkeys(field.partition(".")[0] for field in order))
    return lambda field: (parts.index(field.partition(".")[0]), order.index(field))


def _off(a: Counter[Any] | None, b: Counter[Any] | None) -> bool:
    """Whether one side has no such field and the other does not use it."""
    return (a is None or b is None) and {*(a or b or ())} <= {None, False}


def _shares(values: Counter[Any] | None) -> dict[Any, float]:
    return {value: number / values.total() for value, number in values.items()} if values else {}


def _told(a: Counter[Any] | None, b: Counter[Any] | None) -> tuple[str | None, str | None]:
    """Both sides in words; specs that the same words stand for are told by all their fields."""
    x, y = _words(a, _shown), _words(b, _shown)
    return (_words(a, repr), _words(b, repr)) if x == y else (x, y)


def _words(values: Counter[Any] | None, show: Any) -> str | None:
    if values is None:
        return None
    if len(values) == 1:
        return show(next(iter(values)))
    return ", ".join(f"{show(value)} in {number}" for value, number in values.items())


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Spec):
        return value.describe()
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def figure_rows(first: Model, second: Model, context: int, setting: Setting, device: Device) -> list[Row]:
    """One row for each cost in which the two differ: both values and the second over the first."""
    mine, others = (costs(model.spec, context, setting, device) for model in (first, second))
    return [
        {
            "table": "figures",
            **both(first, second),
            "figure": figure,
            "unit": unit,
            "value": a,
            "other": b,
            "ratio": b / a if a else None,
        }
        for (figure, unit, a), (_, _, b) in zip(mine, others, strict=True)
        if a != b
    ]


def costs(spec: Decoder, context: int, setting: Setting, device: Device) -> Iterator[tuple[str, str, float]]:
    """(figure, unit, value) of one model: all that two are compared in."""
    yield "parameters", "parameters", spec.params()
    yield "active parameters", "parameters", spec.active_params()
    parts = spec.param_breakdown()
    outside = parts["embedding"] + parts["head"]
    yield "in embedding and head", "parameters", outside
    yield "in attention", "parameters", parts.get("attn", 0)
    yield "in feed-forwards", "parameters", sum(parts.get(part, 0) for part in ("ffn", "routed", "shared", "router"))
    fixed, per_token = spec.kv_growth(setting.cache)
    yield "KV cache, fixed", "bytes", fixed
    yield "KV cache, each token", "bytes", per_token
    for tokens in KV_CONTEXTS:
        yield f"KV cache at {tokens // 1024}k", "bytes", spec.kv_bytes(tokens, setting.batch, setting.cache)
    for name, phase in PHASES.items():
        work = phase(spec, context, setting.batch, setting.weights, setting.cache)
        yield f"{name}, FLOPs a token", "FLOPs", work.flops / work.tokens
        yield f"{name}, ceiling", "tokens/s", work.tokens_per_s(device)
