"""The whole picture: figures, the plan across the depth, embedding, a card for each kind of layer, norm, head."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import groupby

import torch

from zoo.blocks import Layer
from zoo.diagram.canvas import Canvas, Facts, stretch, text_width, wrapped
from zoo.diagram.costs import Cost, Totals, columns, headings, of_embedding, of_head, tip
from zoo.diagram.layers import BLOCK_END, END, FRONT, GAP, LEFT, Cards
from zoo.diagram.shapes import SMALL, TINY
from zoo.diagram.style import css
from zoo.errors import UsageError
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.units import format_bytes, format_count

WIDTH, EDGE, TABLE = 560.0, 8.0, 26.0
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
    `prefix`, so that several diagrams can stand in one page. Raises UsageError for a context below 1.
    """
    if context < 1:
        raise UsageError(f"context={context} is below 1")
    title = "".join(letter if letter.isprintable() else " " for letter in title)
    facts = _facts(against, context, dtype) if against else None
    canvas = _drawn(spec, title, context, dtype, facts)
    return canvas.finish(prefix)


@lru_cache(maxsize=64)
def _facts(spec: Decoder, context: int, dtype: torch.dtype) -> Facts:
    """What a model's diagram says. Kept: a page draws each model against every other."""
    return _drawn(spec, "", context, dtype, None).facts


def _drawn(spec: Decoder, title: str, context: int, dtype: torch.dtype, against: Facts | None) -> Canvas:
    canvas, whole = Canvas(WIDTH, title, _described(spec), css(), against), Totals(spec, context, dtype)
    kinds = dict(zip(dict.fromkeys(spec.layers), labels(spec), strict=True))
    colours = _colours(list(kinds))
    paper = canvas.rect(0, 0, WIDTH, 0, "paper", 10)
    y = _figures(canvas, whole, _title(canvas, title, 32) + 14)
    y = _plan(canvas, spec, kinds, colours, y + 14)
    headings(canvas, y + 20)
    y = _flow(canvas, whole, kinds, colours, y + 26)
    y = _notes(canvas, whole, y + 18)
    stretch(paper, y)
    canvas.height = y
    return canvas


def _title(canvas: Canvas, title: str, y: float) -> float:
    """Large where it fits one line. Returns the last line's y."""
    tall = 19.0 if text_width(title, 19, bold=True) <= END - LEFT else 13.0
    lines = wrapped(title, tall, END - LEFT, bold=True)
    for i, line in enumerate(lines):
        canvas.text(LEFT, y + i * 1.3 * tall, line, tall, END - LEFT, "strong")
    return y + max(len(lines) - 1, 0) * 1.3 * tall


def _figures(canvas: Canvas, whole: Totals, y: float) -> float:
    """What the model costs, in four figures."""
    spec = whole.spec
    fixed, growth = spec.kv_growth(whole.dtype)
    tiles = (
        (0.92, "parameters", format_count(spec.params()), "", _active(spec)),
        (0.84, "layers", f"{len(spec.layers):,}", "", f"context {_tokens(spec.context)}" if spec.context else ""),
        (1.22, "KV cache", format_bytes(growth), "a token", f"and {format_bytes(fixed)} in windows" if fixed else ""),
        (1.02, "FLOPs", format_count(whole.flops).replace("B", "G"), "a token", f"at context {_tokens(whole.context)}"),
    )
    x, step = LEFT, (END - LEFT + 8) / len(tiles)
    for share, name, figure, unit, beside in tiles:
        width = share * step - 8
        room = width - 16
        canvas.rect(x, y, width, 54, "card", 6)
        canvas.text(x + 8, y + 14, name, TINY, room, "faint")
        end = canvas.text(x + 8, y + 31, figure, 13.5, room, "strong")
        if unit:
            canvas.text(x + 12 + end, y + 31, unit, TINY, room - end - 4, "faint")
        if beside:
            canvas.text(x + 8, y + 45, beside, TINY, room, "faint", fact=name if name == "layers" else "")
        x += width + 8
    return y + 54


def _active(spec: Decoder) -> str:
    active = spec.active_params()
    return "all active" if active == spec.params() else f"{format_count(active)} active"


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
    cards, top = Cards(canvas, whole), y + GAP
    canvas.text(FRONT, y - 6, "token id", SMALL, 80, "faint")
    cards.stream(y, top)
    scale = f", scaled by {spec.embed_scale:.4g}" if spec.embed_scale != 1 else ""
    y = _table(cards, top, "Embedding", f"{spec.vocab:,} × {spec.dim:,}{scale}", of_embedding(whole))
    for layer, label in kinds.items():
        y = cards.card(y + GAP, layer, label, counts[layer], colours[layer])
    cards.stream(y, y + GAP)
    y = cards.norm(y + GAP, spec.norm, 1, "final norm", FRONT)
    cards.stream(y, y + GAP)
    words = "the embedding's matrix, tied" if spec.tied else f"{spec.dim:,} × {spec.vocab:,}"
    y = _table(cards, y + GAP, "Head", words, of_head(whole))
    if spec.tied:
        middle = TABLE / 2
        canvas.path(f"M{FRONT} {top + middle}H{EDGE + 4}q-4 0 -4 4V{y - middle - 4}q0 4 4 4H{FRONT}", "branch tied")
    cards.stream(y, y + GAP)
    canvas.text(FRONT, y + GAP + 10, f"logits of {spec.vocab:,} tokens", SMALL, 200, "faint")
    return y + GAP + 14


def _table(cards: Cards, y: float, name: str, words: str, cost: Cost) -> float:
    """The embedding or the head."""
    canvas = cards.canvas
    with canvas.group("part", tip(name, cost)):
        canvas.rect(FRONT, y, BLOCK_END - FRONT, TABLE, canvas.marked("table", name, words), 5)
        end = FRONT + 18 + canvas.text(FRONT + 10, y + 17, name, 12, 100, "strong")
        canvas.text(end, y + 17, words, SMALL, BLOCK_END - end - 8, fact=name)
        columns(canvas, y + 17, cost, cards.whole)
    return y + TABLE


def _notes(canvas: Canvas, whole: Totals, y: float) -> float:
    """What the columns count."""
    dtype = str(whole.dtype).removeprefix("torch.")
    note = (
        f"Columns add up over the layers of a card; bars are shares of the whole model. KV: cache in {dtype}, its bars "
        f"at {whole.context:,} tokens. FLOPs: of one token that sees {whole.context:,}, 2 per multiply-add."
    )
    if canvas.against is not None:
        note += " Marked in red: what the model it is compared with does not have there."
    for line in wrapped(note, TINY, END - LEFT):
        canvas.text(LEFT, y, line, TINY, END - LEFT, "faint")
        y += 12
    return y + 2


def _colours(kinds: list[Layer]) -> dict[Layer, str]:
    """A colour for each kind of layer: of one family those that see everything, of another those with a window."""
    colours: dict[Layer, str] = {}
    seen: Counter[str] = Counter()
    for layer in kinds:
        family = "window" if layer.cache_spec().window else "full"
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
        blocks = "; ".join(f"{name} {b.formula} with {b.block.describe()}" for name, b in branches)
        told.append(f"[{label}] {blocks}.")
    return " ".join(told)
