"""A page's models grouped by architecture, and the overview picture of all architectures at the top of the README."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.analytic.models import NamedSpec
from zoo.architectures import families
from zoo.blocks import GQA, NoPE
from zoo.catalog import best_known, title
from zoo.diagram.canvas import Canvas, stretch, text_width, typeset
from zoo.diagram.looks import draw_legend, draw_strip, look
from zoo.diagram.palette import Theme
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.registry import Mixer, stated
from zoo.units import format_bytes, format_count

WIDTH, ROW, PAD = 1000.0, 48.0, 16.0
STRIP_WIDTH, STRIP_HEIGHT = 226.0, 18.0
COLUMNS = {"model": PAD, "layers": 206.0, "attention": 446.0, "feed-forward, norms": 694.0, "KV cache at 32k": 890.0}
BAR, CONTEXT = 94.0, 32 * 1024
BIG, SMALL = 13.0, 11.5


@dataclass(frozen=True)
class Group:
    """An architecture: its title and source, the docstring of its file (`new`), and its models on the page."""

    name: str
    title: str
    source: str
    new: str
    models: tuple[NamedSpec, ...]

    @property
    def typical(self) -> NamedSpec:
        """The size that represents the architecture: its best-known one, or the first on the page."""
        known = best_known(self.name) if self.name in families() else None
        return next((model for model in self.models if model.name == known), self.models[0])


def groups(models: Sequence[NamedSpec]) -> list[Group]:
    """Returns models by architecture, in the order of their first model. A model without a preset is its own group."""
    by_family: dict[str, list[NamedSpec]] = {}
    for model in models:
        family = next((name for name, module in families().items() if model.name in module.SIZES), model.name)
        by_family.setdefault(family, []).append(model)
    return [Group(name, *_about(name), tuple(members)) for name, members in by_family.items()]


def typical(models: Sequence[NamedSpec]) -> list[NamedSpec]:
    """Returns one model of each architecture."""
    return [group.typical for group in groups(models)]


def title_of(model: NamedSpec) -> str:
    """Returns a model's name as its publisher writes it."""
    return title(model.name) if model.size else model.name


def subtitle_of(model: NamedSpec) -> str:
    """Returns the model's name on a command line; empty for a model that is not a preset."""
    return model.name if model.size else ""


def size_of(spec: Decoder) -> str:
    """Returns the number of parameters as text, and the number of active parameters if it is smaller."""
    params, active = spec.params(), spec.active_params()
    return format_count(params) + (f", {format_count(active)} active" if active < params else "")


def _about(family: str) -> tuple[str, str, str]:
    """Returns an architecture's title, its source, and the docstring of its file."""
    module = families().get(family)
    if module is None:
        return family, "", "Read from a config.json."
    return module.ABOUT.title, module.ABOUT.source, " ".join((module.__doc__ or "").split())


def overview(models: Sequence[NamedSpec], prefix: str = "", theme: Theme = "auto") -> str:
    """Returns an SVG with a row for each model. Ids begin with `prefix`. A file has the theme "light" or "dark"."""
    description = "; ".join(map(_describe, models))
    canvas = Canvas(WIDTH, f"{len(models)} architectures at a glance", description)
    paper = canvas.rect(0.5, 0.5, WIDTH - 1, 0, "paper", 10)
    looks = [look(layer, model.spec) for model in models for layer in set(model.spec.layers)]
    top = draw_legend(canvas, looks, PAD, 16, WIDTH - 2 * PAD, SMALL) + 32
    for head, x in COLUMNS.items():
        canvas.text(x, top - 10, head, SMALL, 200, "faint")
    max_bytes = max(model.spec.kv_bytes(CONTEXT) for model in models)
    for i, model in enumerate(models):
        _row(canvas, top + i * ROW, model, max_bytes)
    canvas.height = top + ROW * len(models) + 6
    stretch(paper, canvas.height - 0.5)
    return canvas.finish(prefix, theme)


def _row(canvas: Canvas, y: float, model: NamedSpec, max_bytes: int) -> None:
    spec = model.spec
    canvas.path(f"M{PAD} {y}H{WIDTH - PAD}", "rule")
    cells = (title_of(model), size_of(spec)), ("", _layer_pattern(spec)), _attention(spec), _feed_forward(spec)
    ends = [*COLUMNS.values()][1:]
    for x, end, (strong, faint) in zip(COLUMNS.values(), ends, cells, strict=False):
        width = end - x - 14
        size = min(BIG, BIG * width / max(text_width(strong, BIG, bold=True), 1))
        canvas.text(x, y + 20, strong, size, width, "strong")
        canvas.text(x, y + 38, typeset(faint), SMALL, width, "faint")
    draw_strip(canvas, spec, COLUMNS["layers"], y + 6, STRIP_WIDTH, STRIP_HEIGHT)
    nbytes, x = spec.kv_bytes(CONTEXT), COLUMNS["KV cache at 32k"]
    canvas.rect(x, y + 29, BAR, 8, "track", 2)
    canvas.rect(x, y + 29, max(BAR * nbytes / max_bytes, 1), 8, "kept", 2)
    canvas.text(x, y + 20, format_bytes(nbytes), BIG, 120, "strong")


def _layer_pattern(spec: Decoder) -> str:
    kinds = dict(zip(dict.fromkeys(spec.layers), labels(spec.layers), strict=True))
    return fold([kinds[layer] for layer in spec.layers]).replace(" x ", " × ")


def _attention(spec: Decoder) -> tuple[str, str]:
    """Returns two texts: mixers with heads or cache elements, and QK-norm, sinks and position encodings."""
    mixers = [mixer for mixer, _ in Counter(layer.mixer for layer in spec.layers if layer.mixer).most_common()]
    recurrent = list(dict.fromkeys(mixer.names()[0] for mixer in mixers if _is_recurrent(mixer)))
    attn = next((mixer for mixer in mixers if mixer.cache_spec().per_token), next(iter(mixers)))
    elements = attn.cache_spec().elements()
    size = f"{attn.heads} : {attn.kv_heads}" if isinstance(attn, GQA) else f"of {elements}" if elements else ""
    attention = [f"{attn.names()[0]} {size}"] if elements else []
    bases: dict[str, dict[str, None]] = {}  # kind of position encoding -> its bases, without the scaling
    for node in spec.walk():
        if node.role == "rope" and not isinstance(node, NoPE):
            kind, *others = (fact for fact in node.facts() if fact.key != "scaling")
            bases.setdefault(str(kind), {})[" ".join(map(str, others))] = None
    options = [fact.name for key, fact in stated(attn).items() if key in ("qk_norm", "sinks")]
    options += [f"{word} {' and '.join(each)}".strip() for word, each in bases.items()]
    main = " + ".join(recurrent or attention)
    beside = attention if recurrent else []
    return main, ", ".join([*(f"and {each}" for each in beside), *options])


def _is_recurrent(mixer: Mixer) -> bool:
    kept = mixer.cache_spec()
    return bool(kept.state) and not kept.per_token


def _feed_forward(spec: Decoder) -> tuple[str, str]:
    """Returns the last layer's experts or activation (the kind of block if it has neither), and its norm placement."""
    layer = next(layer for layer in reversed(spec.layers) if layer.ffn)
    assert layer.ffn
    block, formula = layer.ffn.block, layer.ffn.formula
    act = next((node.describe() for node in block.walk() if node.role == "act"), type(block).__name__)
    if mixture := layer.mixture:
        return f"{mixture.router.k} of {mixture.experts} experts", f"{act}, {formula}"
    return act, formula


def _describe(model: NamedSpec) -> str:
    """Returns a row of the overview as text, for screen readers."""
    spec = model.spec
    size = f"{model.name}: {format_count(spec.params())} parameters, {len(spec.layers)} layers, {_layer_pattern(spec)}"
    blocks = " ".join([_attention(spec)[0], *_feed_forward(spec)])
    return f"{size}, {blocks}, {format_bytes(spec.kv_bytes(CONTEXT))} of KV cache at 32k tokens"
