"""Toy widths for any model: the same composition, small enough to run anywhere in a moment."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from zoo.blocks.layer import Layer
from zoo.model.decoder import Decoder
from zoo.registry import Spec

# By field name, since one quantity has one name: a new block's fields shrink by these without a line of its own.
TOY = {
    "heads": 4,
    "kv_heads": 2,
    "hidden": 96,
    "experts": 8,
    "k": 3,
    "groups": 4,
    "keep": 2,
    "q_rank": 40,
    "kv_rank": 32,
    "nope_dim": 32,
    "rope_dim": 16,
    "v_dim": 24,
    "window": 16,
    "original": 64,
    "limit": 1.0,  # low enough that toy activations reach it
}
VOCAB, DIM, CONTEXT = 512, 64, 1024
WIDE_HEAD = 24  # where head_dim * heads is not dim


def tiny(spec: Decoder) -> Decoder:
    """`spec` at toy widths, with as many layers as it takes to hold every distinct kind of layer of the full plan."""
    kinds, seen, depth = set(spec.layers), set[Layer](), 0
    while seen != kinds:
        seen.add(spec.layers[depth])
        depth += 1
    depth = min(max(depth, 2), len(spec.layers))
    small = replace(spec, vocab=VOCAB, layers=spec.layers[:depth], context=CONTEXT)
    return replace(small.map(lambda part: _shrink(part, spec.dim)), dim=DIM, embed_scale=_embed_scale(spec))


def _shrink(spec: Spec, dim: int) -> Spec:
    """`spec` with its sizes cut to TOY, keeping what makes it its kind: MHA, MQA, dim = heads * head_dim."""
    values: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(spec)}
    cut = {name: min(value, TOY[name]) for name, value in values.items() if name in TOY and value is not None}
    if "kv_heads" in cut and values["kv_heads"] == values["heads"]:
        cut["kv_heads"] = cut["heads"]
    if "head_dim" in values:
        square = values["heads"] * values["head_dim"] == dim and DIM % cut["heads"] == 0
        cut["head_dim"] = DIM // cut["heads"] if square else WIDE_HEAD
    if "nope_dim" in values and values["scale"] is not None:  # it carries a gain on top of width**-0.5: keep the gain
        cut["scale"] = values["scale"] * (_width(values) / _width(values | cut)) ** 0.5
    if cut.get("keep") == 1:
        cut["groups"] = min(cut["groups"], 2)  # one group is then large enough to choose k experts from
    small = replace(spec.map(lambda part: _shrink(part, dim)), **cut)
    return _proportioned(spec, small)


def _proportioned(spec: Any, small: Any) -> Spec:
    """`small` with its shared expert as many times as wide as the routed ones as in `spec`, where both say a width."""
    shared, expert = (getattr(getattr(spec, name, None), "hidden", None) for name in ("shared", "expert"))
    if shared is None or expert is None:
        return small
    return replace(small, shared=replace(small.shared, hidden=max(1, round(small.expert.hidden * shared / expert))))


def _width(values: dict[str, Any]) -> int:
    """A latent-attention head's width."""
    width: int = values["nope_dim"] + values["rope_dim"]
    return width


def _embed_scale(spec: Decoder) -> float:
    """An embedding scale of sqrt(dim) stays that."""
    return DIM**0.5 if spec.embed_scale == spec.dim**0.5 else spec.embed_scale
