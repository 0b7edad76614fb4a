"""The whole picture: figures, the plan across the depth, embedding, a card for each kind of layer, norm, head."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import torch

from zoo.blocks import Layer
from zoo.decoder import Decoder
from zoo.diagram.canvas import Canvas, Facts, stretch, wrapped
from zoo.diagram.costs import Cost, Totals, columns, headings, of_table, tip
from zoo.diagram.insides import SMALL, TINY
from zoo.diagram.layers import BAR, BLOCK_END, END, GAP, LEFT, STREAM, Cards
from zoo.diagram.style import css
from zoo.plan import fold, labels
from zoo.terminal import count, size

WIDTH = 560.0
STRIP = 14.0
SHADES = 3  # colours for kinds of layer that see everything, and as many for those with a window


def svg(
    spec: Decoder,
    title: str,
    *,
    context: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
    against: Decoder | None = None,
    prefix: str = "",
) -> str:
    """A model as an SVG document, drawn from its spec.

    Shares are of the FLOPs of one token that sees `context`, itself included, and of the cache of one sequence of that
    length in `dtype`. What the model `against` does not have in the same place is marked. Every id begins with
    `prefix`, so that several diagrams can stand in one page.
    """
    facts = _drawn(against, title, context, dtype, None).facts if against else None
    canvas = _drawn(spec, title, context, dtype, facts)
    return canvas.finish(prefix)


def _drawn(spec: Decoder, title: str, context: int, dtype: torch.dtype, against: Facts | None) -> Canvas:
    canvas, whole = Canvas(WIDTH, title, _described(spec), css(), against), Totals(spec, context, dtype)
    kinds = dict(zip(dict.fromkeys(spec.layers), labels(spec), strict=True))
    colours = _colours(list(kinds))
    paper = canvas.rect(0, 0, WIDTH, 0, "paper", 10)
    canvas.text(LEFT, 32, title, 19, END - LEFT, "strong")
    y = _figures(canvas, whole, 46)
    y = _plan(canvas, spec, kinds, colours, y + 14)
    headings(canvas, y + 20)
    y = _flow(canvas, whole, kinds, colours, y + 30)
    y = _notes(canvas, whole, y + 20)
    stretch(paper, y)
    canvas.height = y
    return canvas


def _figures(canvas: Canvas, whole: Totals, y: float) -> float:
    """What the model costs, in four figures."""
    spec = whole.spec
    fixed, growth = spec.kv_growth(whole.dtype)
    tiles = (
        (0.92, "parameters", count(spec.params()), "", _active(spec)),
        (0.84, "layers", f"{len(spec.layers):,}", "", f"context {_tokens(spec.context)}" if spec.context else ""),
        (1.22, "KV cache", size(growth), "a token", f"and {size(fixed)} in windows" if fixed else ""),
        (1.02, "FLOPs", count(whole.flops).replace("B", "G"), "a token", f"at context {_tokens(whole.context)}"),
    )
    x, step = LEFT, (END - LEFT + 8) / len(tiles)
    for share, name, figure, unit, beside in tiles:
        width = share * step - 8
        room = width - 16
        canvas.rect(x, y, width, 54, "card", 6)
        canvas.text(x + 8, y + 14, name, TINY, room, "faint")
        end = canvas.text(x + 8, y + 31, figure, 13.5, room, "strong")
        canvas.text(x + 12 + end, y + 31, unit, TINY, room - end - 4, "faint")
        canvas.text(x + 8, y + 45, beside, TINY, room, "faint")
        x += width + 8
    return y + 54


def _active(spec: Decoder) -> str:
    active = spec.active_params()
    return "all active" if active == spec.params() else f"{count(active)} active"


def _plan(canvas: Canvas, spec: Decoder, kinds: dict[Layer, str], colours: dict[Layer, str], y: float) -> float:
    """A strip of all layers from the first to the last, and what its colours stand for."""
    pitch = (END - LEFT) / len(spec.layers)
    gap = 1.0 if pitch > 3 else 0.0
    x = LEFT
    runs = [(layer, 1) for layer in spec.layers] if gap else _runs(spec)
    for layer, length in runs:
        canvas.rect(x, y, length * pitch - gap, STRIP, f"kind-{colours[layer]}", 2 * gap)
        x += length * pitch
    y += STRIP + 15
    plan = fold([kinds[layer] for layer in spec.layers])
    for line in wrapped(plan.replace(" x ", " × "), SMALL, END - LEFT):
        canvas.text(LEFT, y, line, SMALL, END - LEFT, fact="plan")
        y += 13
    return y - 13


def _runs(spec: Decoder) -> list[tuple[Layer, int]]:
    return [(layer, len(list(run))) for layer, run in groupby(spec.layers)]


def _flow(canvas: Canvas, whole: Totals, kinds: dict[Layer, str], colours: dict[Layer, str], y: float) -> float:
    """The way of a token: embedding, layers, norm, head."""
    spec, counts = whole.spec, Counter(whole.spec.layers)
    scale = f", scaled by {spec.embed_scale:.4g}" if spec.embed_scale != 1 else ""
    y = _table(canvas, y, "Embedding", f"{spec.vocab:,} × {spec.dim:,}{scale}", of_table(whole, True, True), whole)
    cards = Cards(canvas, whole)
    for layer, label in kinds.items():
        y = cards.card(y + GAP, layer, label, counts[layer], colours[layer])
    canvas.path(f"M{STREAM} {y}v{GAP}", "residual")
    y = cards.norm(y + GAP, spec.norm, 1, "final norm", STREAM - 14)
    canvas.path(f"M{STREAM} {y}v{GAP}", "residual")
    words = "the embedding's matrix" if spec.tied else f"{spec.dim:,} × {spec.vocab:,}"
    cost = of_table(whole, False, not spec.tied)
    return _table(canvas, y + GAP, "Head", words, cost, whole, "tied" if spec.tied else "")


def _table(canvas: Canvas, y: float, name: str, words: str, cost: Cost, whole: Totals, look: str = "") -> float:
    left = STREAM - 14
    with canvas.group("part", tip(name, cost)):
        box = f"table {look}".strip()
        canvas.rect(left, y, BLOCK_END - left, BAR + 7, canvas.marked(box, name, box), 5)
        end = canvas.text(left + 10, y + 17, name, 12, 100, "strong")
        at = left + 10 + end + 8
        canvas.text(at, y + 17, words, SMALL, BLOCK_END - at - 8, fact=name)
        columns(canvas, y + 17, cost, whole)
    return y + BAR + 7


def _notes(canvas: Canvas, whole: Totals, y: float) -> float:
    """What the columns count."""
    dtype = str(whole.dtype).removeprefix("torch.")
    marked = " Marked: what the other model does not have there." if canvas.against is not None else ""
    note = (
        f"Columns add up over the layers of a card. KV: bytes of cache in {dtype}. FLOPs: share of one token's that "
        f"sees {whole.context:,}, 2 per multiply-add.{marked}"
    )
    for line in wrapped(note, TINY, END - LEFT):
        canvas.text(LEFT, y, line, TINY, END - LEFT, "faint")
        y += 12
    return y + 2


def _colours(kinds: list[Layer]) -> dict[Layer, str]:
    """A colour for each kind of layer: of one family those that see everything, of another those with a window."""
    colours: dict[Layer, str] = {}
    seen: Counter[str] = Counter()
    for layer in kinds:
        family = "window" if layer.stored().window else "full"
        colours[layer] = f"{family}-{seen[family] % SHADES}"
        seen[family] += 1
    return colours


def _tokens(number: int) -> str:
    return f"{number // 1024:,}k" if number % 1024 == 0 else f"{number:,}"


def _described(spec: Decoder) -> str:
    """The picture in words."""
    kinds = dict(zip(dict.fromkeys(spec.layers), labels(spec), strict=True))
    told = [f"{len(spec.layers):,} layers: {fold([kinds[layer] for layer in spec.layers])}."]
    told.append(f"Embedding {spec.vocab:,} by {spec.dim:,}, {'tied to the head' if spec.tied else 'and a head'}.")
    for layer, label in kinds.items():
        branches = ((name, getattr(layer, slot)) for slot, name in (("attn", "attention"), ("ffn", "feed-forward")))
        blocks = "; ".join(f"{name} {b.formula} with {b.block.words()}" for name, b in branches)
        told.append(f"[{label}] {blocks}.")
    return " ".join(told)
