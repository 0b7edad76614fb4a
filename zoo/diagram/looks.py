"""The colours of a layer in a strip of all layers (its "look"): the upper one shows which tokens attention reaches, the
lower one the kind of feed-forward. A colour has the same meaning in every diagram."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from zoo.blocks import Indexer
from zoo.blocks.layer import Layer
from zoo.costs import Full, Reach
from zoo.diagram.canvas import SMALL, Canvas, text_width, wrap_text
from zoo.model.decoder import Decoder

# CSS class -> text in the legend, for layers whose visible tokens no Reach describes
OTHER_REACHES = {
    "reach-sparse": "chosen tokens",
    "reach-entries": "window and compressed entries",
    "reach-state": "state",
}
FEED_FORWARDS = {"ffn-dense": "dense", "ffn-experts": "experts"}
NONE = "none"
LEGEND_PITCH, SWATCH = 17.0, 10.0


class Look(NamedTuple):
    """The CSS classes of a layer: one for the reach of its attention, one for its feed-forward. NONE: no such block."""

    reach: str
    ffn: str


def reaches() -> dict[str, str]:
    """Maps each CSS class of a reach to its text in the legend, in the order of the legend."""
    full = {"reach-full": "full attention", "reach-nope": "full, no position encoding"}
    return full | {f"reach-{kind.name}": kind.name for kind in Reach.kinds.values() if kind is not Full} | OTHER_REACHES


def look(layer: Layer, spec: Decoder) -> Look:
    """Returns the two colours, as CSS classes, of one of a model's layers."""
    ffn = "ffn-experts" if layer.mixture else "ffn-dense" if layer.ffn else NONE
    return Look(_reach(layer, spec), ffn)


def _reach(layer: Layer, spec: Decoder) -> str:
    kept = layer.cache_spec()
    if not kept.per_token and not layer.takes():
        return "reach-state" if kept.state else NONE
    if kept.entries:
        return "reach-entries"
    if not kept.reach.is_full:
        return f"reach-{kept.reach.name}"
    if any(isinstance(part, Indexer) for part in layer.walk()):
        return "reach-sparse"
    encoding = layer.position_encoding
    has_none = encoding and not encoding.encodes and spec.positions is None  # learned ones are added to the embedding
    return "reach-nope" if has_none else "reach-full"


def draw_strip(canvas: Canvas, spec: Decoder, x: float, y: float, width: float, height: float) -> None:
    """Draws all layers in order. If there is no room for gaps, neighbours with the same look become one bar."""
    pitch = width / len(spec.layers)
    gap = 1.0 if pitch > 5 else 0.6 if pitch > 2 else 0.0
    looks, bars = [look(layer, spec) for layer in spec.layers], []
    for run in [[each] for each in looks] if gap else [list(run) for _, run in groupby(looks)]:
        bars.append((x, len(run) * pitch - gap, run[0]))
        x += len(run) * pitch
    draw_looks(canvas, y, height, bars)


def draw_looks(canvas: Canvas, y: float, height: float, bars: Sequence[tuple[float, float, Look]]) -> None:
    """Draws bars, each given by its left edge, its width and a look. The upper part of a bar has the colour of
    attention, the lower part that of the feed-forward. All boxes of one colour are one path."""
    upper = round(height * 0.6)
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    for x, width, layer in bars:
        for top, tall, css_class in ((y, upper, layer.reach), (y + upper, height - upper, layer.ffn)):
            box = (x, top, width, tall)
            if css_class == NONE:  # an outline shows that the layer exists but lacks this block
                box = (x + 0.5, top + 0.5, max(width - 1, 0.5), tall - 1)
            boxes.setdefault(css_class, []).append(box)
    for css_class, each in boxes.items():
        canvas.boxes(each, css_class)


def draw_pattern(canvas: Canvas, looks: Iterable[Look], pattern: str, x: float, y: float, width: float) -> float:
    """Draws the legend of a strip of layers with these `looks`, and below it the layer pattern as text. Returns the y
    below them."""
    y = draw_legend(canvas, looks, x, y, width, SMALL)
    css_class = canvas.with_fact("ink", "pattern", pattern) if pattern else "ink"
    return canvas.lines(x, y + 11, wrap_text(pattern, width), width, css_class) - 5


def draw_legend(canvas: Canvas, looks: Iterable[Look], x: float, y: float, width: float, size: float) -> float:
    """Draws a swatch and its text for each colour in these looks. Returns the y below them."""
    used = {css_class for layer in looks for css_class in layer}
    left = x
    for heading, words in (("attention:", reaches()), ("feed-forward:", FEED_FORWARDS)):
        items = [(css_class, text) for css_class, text in words.items() if css_class in used]
        if not items:
            continue
        steps = [text_width(text, size) + SWATCH + 5 for _, text in items]
        whole = text_width(heading, size) + 7 + sum(steps) + 14 * (len(steps) - 1)
        if left > x and left + whole > x + width:  # the heading stays on a line with its entries
            left, y = x, y + LEGEND_PITCH
        left += canvas.text(left, y + SWATCH - 1, heading, size, width, "faint") + 7
        start = left
        for (css_class, text), step in zip(items, steps, strict=True):
            if left > start and left + step > x + width:
                left, y = x, y + LEGEND_PITCH
            canvas.rect(left, y, SWATCH, SWATCH, css_class, 2)
            canvas.text(left + SWATCH + 5, y + SWATCH - 1, text, size, x + width - left, "faint")
            left += step + 14
        left += 8
    return y + LEGEND_PITCH
