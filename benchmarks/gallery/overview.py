"""All architectures at a glance: a row each, from its layers to its cache. The picture at the top of the README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks.analytic.models import Model
from zoo.blocks import GQA, MLA, MoE, NoPE
from zoo.blocks.gqa import aliases
from zoo.blocks.layer import Layer
from zoo.diagram.canvas import Canvas
from zoo.diagram.style import css
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.swaps.rebuild import features
from zoo.units import format_bytes, format_count

WIDTH, TOP, ROW, PAD = 920.0, 58.0, 46.0, 16.0
STRIP, TALL = 224.0, 14.0
COLUMNS = {"model": PAD, "layers": 178.0, "attention": 420.0, "feed-forward, norms": 608.0, "KV cache at 32k": 812.0}
BAR, CONTEXT = 92.0, 32 * 1024
BIG, SMALL = 12.5, 9.5
LOOKS = {"sees everything": "kind-full-0", "no position": "kind-full-1", "a window": "kind-window-0"}


def overview(models: Sequence[Model], prefix: str = "") -> str:
    """An SVG with a row for each model."""
    says = "; ".join(_told(model) for model in models)
    canvas = Canvas(WIDTH, f"{len(models)} architectures at a glance", says, css())
    canvas.height = TOP + ROW * len(models) + 6
    canvas.rect(0.5, 0.5, WIDTH - 1, canvas.height - 1, "card", 10)
    for words, x in COLUMNS.items():
        canvas.text(x, 24, words, SMALL, 150, "faint")
    _key(canvas)
    most = max(model.spec.kv_bytes(CONTEXT) for model in models)
    for i, model in enumerate(models):
        _row(canvas, TOP + i * ROW, model, most)
    return canvas.finish(prefix)


def _key(canvas: Canvas) -> None:
    """What the colours of layers stand for."""
    x = COLUMNS["layers"]
    for words, look in LOOKS.items():
        canvas.rect(x, 34, 9, 9, look, 2)
        x += 22 + canvas.text(x + 13, 42, words, SMALL, 100, "faint")


def _row(canvas: Canvas, y: float, model: Model, most: int) -> None:
    spec, columns = model.spec, iter(COLUMNS.values())
    canvas.path(f"M{PAD} {y}H{WIDTH - PAD}", "rule")
    active = spec.active_params()
    shown = format_count(spec.params()) + (f", {format_count(active)} active" if active < spec.params() else "")
    for x, (strong, faint) in zip(
        columns, ((model.name, shown), ("", _plan(spec)), _attention(spec), _rest(spec)), strict=False
    ):
        canvas.text(x, y + 20, strong, BIG, 160, "strong")
        canvas.text(x, y + 36, faint, SMALL, 232 if not strong else 198, "faint")
    _strip(canvas, COLUMNS["layers"], y + 9, spec)
    kept, x = spec.kv_bytes(CONTEXT), COLUMNS["KV cache at 32k"]
    canvas.rect(x, y + 26, BAR, 8, "track", 2)
    canvas.rect(x, y + 26, max(BAR * kept / most, 1), 8, "kept", 2)
    canvas.text(x, y + 20, format_bytes(kept), BIG, 120, "strong")


def _strip(canvas: Canvas, x: float, y: float, spec: Decoder) -> None:
    """Every layer from the first to the last."""
    pitch = STRIP / len(spec.layers)
    for look, run in groupby(map(_look, spec.layers)):
        for _ in run:
            canvas.rect(x, y, pitch - 0.8, TALL, look, 1)
            x += pitch


def _look(layer: Layer) -> str:
    if layer.cache_spec().window:
        return LOOKS["a window"]
    return LOOKS["no position" if any(isinstance(node, NoPE) for node in layer.walk()) else "sees everything"]


def _plan(spec: Decoder) -> str:
    kinds = dict(zip(dict.fromkeys(spec.layers), labels(spec), strict=True))
    return fold([kinds[layer] for layer in spec.layers]).replace(" x ", " × ")


def _attention(spec: Decoder) -> tuple[str, str]:
    """The kind of the first layer's attention, and what is special about it."""
    attn = spec.layers[0].mixer
    kind = next(word for word in aliases(attn) if word != "SWA")
    kept = attn.cache_spec().elements()
    what = "latent of" if isinstance(attn, MLA) else "keeps"
    heads = f"{attn.heads} : {attn.kv_heads}" if isinstance(attn, GQA) else f"{what} {kept}" if kept else ""
    bases: dict[str, dict[str, None]] = {}  # kind of position encoding -> what else is said of each, in brackets not
    for node in spec.walk():
        if node.role == "rope" and not isinstance(node, NoPE):
            word, _, base = node.describe().split(" (")[0].partition(" ")
            bases.setdefault(word, {})[base] = None
    special = [term for name, term in features(attn).items() if name in ("qk_norm", "sinks")]
    told = [*special, *(f"{word} {' and '.join(each)}".strip() for word, each in bases.items())]
    return f"{kind} {heads}".strip(), ", ".join(told)


def _rest(spec: Decoder) -> tuple[str, str]:
    """The last layer's feed-forward, by its activation if it says one, and where its norms stand."""
    layer = spec.layers[-1]
    block = layer.ffn.block
    chosen = f"{block.router.k} of {block.experts} experts" if isinstance(block, MoE) else ""
    act = next((node.describe() for node in block.walk() if node.role == "act"), type(block).__name__)
    return chosen or act, ", ".join([*([act] if chosen else []), layer.ffn.formula])


def _told(model: Model) -> str:
    """A row in words."""
    return ", ".join(_words(model))


def _words(model: Model) -> Iterator[str]:
    spec = model.spec
    yield f"{model.name}: {format_count(spec.params())} parameters"
    yield f"{len(spec.layers)} layers, {_plan(spec)}"
    yield " ".join(_attention(spec)[0:1] + _rest(spec))
    yield f"{format_bytes(spec.kv_bytes(CONTEXT))} of KV cache at 32k tokens"
