"""The whole diagram: figures, the layers across the depth, embedding, a card for each kind of layer, norm, head."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import cycle, groupby

import torch

from zoo.blocks import Layer
from zoo.diagram.canvas import Canvas, Facts, css, stretch, text_width, wrap_text
from zoo.diagram.insides import SMALL, TINY
from zoo.diagram.layers import BRANCH_NAMES, COLUMNS, END, FRONT, GAP, LEFT, STREAM, TABLE, Cards, Cost
from zoo.errors import UsageError
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.units import dtype_name, format_bytes, format_count

DIAGRAM_WIDTH, EDGE = 560.0, 8.0
STRIP_HEIGHT = 14.0  # of the layers across the depth
SHADES = 4  # colours for layers with full attention, for layers with a window and for those without streams


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

    Shares are of the FLOPs of one token that sees `context` tokens, itself included, and of the cache of one sequence
    of that length in `dtype`. What the model `against` does not have in the same place is marked. Every id begins with
    `prefix`, so that several diagrams can stand in one page. Raises UsageError for a context below 1.
    """
    if context < 1:
        raise UsageError(f"context={context} is below 1")
    title = "".join(letter if letter.isprintable() else " " for letter in title)
    facts = _facts(against, context, dtype) if against else None
    return _draw(spec, title, context, dtype, facts).finish(prefix)


@lru_cache(maxsize=64)  # a page compares every model with every other
def _facts(spec: Decoder, context: int, dtype: torch.dtype) -> Facts:
    """What a model's diagram states."""
    return frozenset(_draw(spec, "", context, dtype, None).facts)


def _draw(spec: Decoder, title: str, context: int, dtype: torch.dtype, against: Facts | None) -> Canvas:
    names = dict(zip(dict.fromkeys(spec.layers), labels(spec), strict=True))  # of the kinds of layer
    pattern = fold([names[layer] for layer in spec.layers])
    canvas = Canvas(DIAGRAM_WIDTH, title, _description(spec, names, pattern), css(), against)
    cards = Cards(canvas, spec, context, dtype)
    paper = canvas.rect(0, 0, DIAGRAM_WIDTH, 0, "paper", 10)
    y = _draw_figures(cards, _draw_title(canvas, title, 32) + 14)
    colours = _layer_colours(names)
    y = _draw_strip(canvas, spec, pattern, colours, y + 14)
    for right, width, heading in COLUMNS.values():
        canvas.text(right, y + 20, heading, TINY, width + 12, "faint", "end")
    y = _draw_model(cards, names, colours, y + 26)
    canvas.height = _draw_notes(cards, y + 18)
    stretch(paper, canvas.height)
    return canvas


def _draw_title(canvas: Canvas, title: str, y: float) -> float:
    """The title, large where it fits one line; returns its last line's y."""
    size = 19.0 if text_width(title, 19, bold=True) <= END - LEFT else 13.0
    lines = wrap_text(title, size, END - LEFT, bold=True)
    for i, line in enumerate(lines):
        canvas.text(LEFT, y + i * 1.3 * size, line, size, END - LEFT, "strong")
    return y + max(len(lines) - 1, 0) * 1.3 * size


def _draw_figures(cards: Cards, y: float) -> float:
    """The model's costs in four tiles."""
    canvas, spec, active = cards.canvas, cards.spec, cards.spec.active_params()
    fixed, growth = spec.kv_growth(cards.dtype)
    share = "all active" if active == cards.params else f"{format_count(active)} active"
    context = f"context {_tokens(spec.context)}" if spec.context else ""
    flops = format_count(cards.flops).replace("B", "G")
    tiles = (  # width, name, figure, unit, detail
        (0.92, "parameters", format_count(cards.params), "", share),
        (0.84, "layers", f"{len(spec.layers):,}", "", context),
        (1.22, "KV cache", format_bytes(growth), "a token", f"and {format_bytes(fixed)} fixed" if fixed else ""),
        (1.02, "FLOPs", flops, "a token", f"at context {_tokens(cards.context)}"),
    )
    x, step = LEFT, (END - LEFT + 8) / len(tiles)
    for relative, name, figure, unit, detail in tiles:
        width = relative * step - 8
        canvas.rect(x, y, width, 54, "card", 6)
        canvas.text(x + 8, y + 14, name, TINY, width - 16, "faint")
        end = canvas.text(x + 8, y + 31, figure, 13.5, width - 16, "strong")
        if unit:
            canvas.text(x + 12 + end, y + 31, unit, TINY, width - 20 - end, "faint")
        if detail:
            canvas.text(x + 8, y + 45, detail, TINY, width - 16, "faint", place=name if name == "layers" else "")
        x += width + 8
    return y + 54


def _draw_strip(canvas: Canvas, spec: Decoder, pattern: str, colours: dict[Layer, str], y: float) -> float:
    """A strip of all layers from the first to the last, and their pattern in text."""
    pitch = (END - LEFT) / len(spec.layers)
    gap = 1.0 if pitch > 3 else 0.0  # without gaps, equal layers are one rectangle
    runs = [[layer] for layer in spec.layers] if gap else [list(run) for _, run in groupby(spec.layers)]
    x = LEFT
    for run in runs:
        canvas.rect(x, y, len(run) * pitch - gap, STRIP_HEIGHT, f"kind-{colours[run[0]]}", 2 * gap)
        x += len(run) * pitch
    y += STRIP_HEIGHT + 15
    for line in wrap_text(pattern.replace(" x ", " × "), SMALL, END - LEFT):
        canvas.text(LEFT, y, line, SMALL, END - LEFT, place="pattern")
        y += 13
    return y - 13


def _draw_model(cards: Cards, names: dict[Layer, str], colours: dict[Layer, str], y: float) -> float:
    """A token's path: embedding, layers, norm, head."""
    canvas, spec, counts = cards.canvas, cards.spec, Counter(cards.spec.layers)
    params, head_flops = spec.param_breakdown(), spec.flop_breakdown(cards.context - 1, 1)["head"]
    top = y + GAP
    canvas.text(FRONT, y - 6, "token id", SMALL, 80, "faint")
    canvas.path(f"M{STREAM} {y}V{top}", "residual")
    scale = f", scaled by {spec.embed_scale:.4g}" if spec.embed_scale != 1 else ""
    tables = params["embedding"]
    inputs = spec.per_layer.param_breakdown(spec.dim, spec.vocab, len(spec.layers)) if spec.per_layer else {}
    tables -= inputs.get("embedding", 0)
    cost = Cost(1, tables, tables)  # rows are looked up: no FLOPs
    y = cards.table(top, "Embedding", f"{spec.vocab:,} × {spec.dim:,}{scale}", cost)
    if spec.per_layer:
        canvas.path(f"M{STREAM} {y}V{y + GAP}", "residual")
        total, flops = sum(inputs.values()), spec.per_layer.flops(spec.dim, len(spec.layers), 1)
        text = f"{spec.vocab:,} × {len(spec.layers):,} × {spec.per_layer.width:,}"
        y = cards.table(y + GAP, "Layer inputs", text, Cost(1, total, total, flops=flops))
    for layer, name in names.items():
        y = cards.draw(y + GAP, layer, name, counts[layer], colours[layer])
    canvas.path(f"M{STREAM} {y}V{y + GAP}", "residual")
    if spec.streams:
        total = sum(spec.streams.param_breakdown(spec.dim).values())
        cost = Cost(1, total, total, flops=spec.streams.flops(spec.dim, 1))
        y = cards.table(y + GAP, "Streams", f"{spec.streams.describe()}, added up", cost)
        canvas.path(f"M{STREAM} {y}V{y + GAP}", "residual")
    y = cards.norm(y + GAP, spec.norm, 1, "final norm", FRONT)
    canvas.path(f"M{STREAM} {y}V{y + GAP}", "residual")
    text = "the embedding's matrix, tied" if spec.tied else f"{spec.dim:,} × {spec.vocab:,}"
    y = cards.table(y + GAP, "Head", text, Cost(1, params["head"], params["head"], flops=head_flops))
    if spec.tied:
        middle = TABLE / 2
        canvas.path(f"M{FRONT} {top + middle}H{EDGE + 4}q-4 0 -4 4V{y - middle - 4}q0 4 4 4H{FRONT}", "branch tied")
    canvas.path(f"M{STREAM} {y}V{y + GAP}", "residual")
    canvas.text(FRONT, y + GAP + 10, f"logits of {spec.vocab:,} tokens", SMALL, 200, "faint")
    return y + GAP + 14


def _draw_notes(cards: Cards, y: float) -> float:
    """What the columns count."""
    note = (
        f"Columns add up over the layers of a card; bars are shares of the whole model. KV: cache in "
        f"{dtype_name(cards.dtype)}, its bars at {cards.context:,} tokens. FLOPs: of one token that sees "
        f"{cards.context:,}, 2 per multiply-add."
    )
    if cards.canvas.against is not None:
        note += " Marked in red: what the model it is compared with does not have there."
    for line in wrap_text(note, TINY, END - LEFT):
        cards.canvas.text(LEFT, y, line, TINY, END - LEFT, "faint")
        y += 12
    return y + 2


def _layer_colours(kinds: Iterable[Layer]) -> dict[Layer, str]:
    """A colour for each kind of layer, from one family for full attention, from others for windows and for states."""
    shades = {family: cycle(range(SHADES)) for family in ("full", "window", "state")}
    families = {layer: _family(layer) for layer in kinds}
    return {layer: f"{family}-{next(shades[family])}" for layer, family in families.items()}


def _family(layer: Layer) -> str:
    cache = layer.cache_spec()
    if not cache.per_token and not layer.takes():
        return "state"
    return "window" if cache.reach.limit and not cache.entries else "full"


def _tokens(number: int) -> str:
    return f"{number // 1024:,}k" if number % 1024 == 0 else f"{number:,}"


def _description(spec: Decoder, names: dict[Layer, str], pattern: str) -> str:
    """The diagram as text."""
    parts = [f"{len(spec.layers):,} layers: {pattern}."]
    parts.append(f"Embedding {spec.vocab:,} by {spec.dim:,}, {'tied to the head' if spec.tied else 'and a head'}.")
    if spec.per_layer:
        parts.append(f"{spec.per_layer.describe().capitalize()}.")
    if spec.streams:
        parts.append(f"{spec.streams.describe().capitalize()}.")
    for layer, name in names.items():
        branches = ((BRANCH_NAMES[role], branch) for role, branch in layer.branches())
        parts.append(f"[{name}] {'; '.join(f'{n} {b.formula} with {b.block.describe()}' for n, b in branches)}.")
    return " ".join(parts)
