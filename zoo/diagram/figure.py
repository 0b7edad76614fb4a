"""Draws the whole diagram: title, key figures, a strip of all layers, a token's path through the model, call-outs."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from zoo.blocks import Layer
from zoo.blocks.layer import Placement
from zoo.diagram.blow_ups import LAYOUTS, BlowUps, Callout, Drawn, Kind, Layout, Places
from zoo.diagram.canvas import LINE, SMALL, Canvas, Facts, Fragment, text_width, typeset, wrap_text
from zoo.diagram.looks import draw_pattern, draw_strip, look
from zoo.diagram.palette import Theme
from zoo.diagram.parts import Cost, Costs
from zoo.diagram.region import BADGE, Badges, draw_badge
from zoo.diagram.rows import Rows, branch_name
from zoo.errors import UsageError
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.swaps.differences import Difference
from zoo.units import dtype_name, format_bytes, format_count

Shown = Literal["here", "above", "below"]
SHOWN: dict[Shown, int] = {"here": 0, "above": -1, "below": 1}  # frame with the blow-up, relative to the branch
STRIP, STRIP_ABOVE, STRIP_BELOW = 22.0, 10.0, 8.0  # height of the strip of layers, space above and below it


class Options(NamedTuple):
    """Options of a diagram: contents, layout and costs."""

    context: int = 4096
    dtype: torch.dtype = torch.bfloat16
    layout: Literal["wide", "narrow"] = "wide"
    costs: bool = False
    subtitle: str = ""
    heading: str = ""
    callouts: tuple[Callout, ...] = ()


def svg(
    spec: Decoder,
    title: str,
    *,
    context: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
    against: Decoder | None = None,
    prefix: str = "",
    theme: Theme = "auto",
    layout: Literal["wide", "narrow"] = "wide",
    costs: bool = False,
    subtitle: str = "",
    callouts: Sequence[tuple[str | None, str] | Callout] = (),
    heading: str = "",
) -> str:
    """Returns a diagram of a model as an SVG document, drawn from its spec.

    `theme`: "light" and "dark" write literal colours, for files. "auto" writes a style sheet that follows the colour
    scheme of the reader's system and has variables that a page can set. `layout`: "wide" is 760 units wide, with
    blow-ups beside the path; "narrow" is 360 units wide, with everything in one column. `costs` adds the costs of each
    part. FLOPs are those of one token that sees `context` tokens, including itself; the cache is that of one sequence
    of this length in `dtype`.

    `callouts` are numbered sentences listed below the diagram, under the `heading` (which is also drawn without
    call-outs). Each call-out is a part, which may be None, a sentence about it, and the layers that it is about (if
    not all). Parts are layers, embedding, positions, head, norm, attn, ffn, inputs, streams. A part can also be inside
    a block: attn.rope, attn.qk_norm, attn.reach, attn.indexer, attn.state, ffn.act, ffn.router, ... The number is drawn
    at the inner part, or at the block if the inner part is not drawn, in one of the call-out's layers. A call-out about
    a part that the model lacks is still listed.

    Elements that the diagram of the model `against` does not have get the class "differs", or "resized" if only a
    number differs. Every id begins with `prefix`, so that one page can hold several diagrams. Raises UsageError for a
    context below 1.
    """
    options = Options(context, dtype, layout, costs, subtitle, heading, tuple(Callout(*each) for each in callouts))
    canvas = _draw(spec, title, options, compared=against is not None)
    if against is not None:
        canvas.mark(_facts(against, context, dtype, layout))
    return canvas.finish(prefix, theme)


def marked_elements(
    spec: Decoder,
    title: str,
    others: Iterable[Decoder],
    *,
    layout: Literal["wide", "narrow"] = "wide",
    subtitle: str = "",
) -> list[tuple[list[int], list[int]]]:
    """Returns which elements `svg(spec, title, against=other)` would mark, for each of the `others`. Each pair lists
    the elements that differ and those that are resized, as indices into the elements of `svg(spec, title)` in document
    order. The root and the style sheet are not counted. A page can thus compare many models with one drawing."""
    options = Options(layout=layout, subtitle=subtitle)
    canvas = _draw(spec, title, options)
    canvas.finish()
    elements = (element for element in canvas.root.iter() if element is not canvas.root and element.tag != "style")
    index = {id(element): i for i, element in enumerate(elements)}

    def indices(other: Decoder) -> tuple[list[int], list[int]]:
        found = canvas.marks(_facts(other, options.context, options.dtype, layout))
        differs, resized = (
            sorted(index[id(element)] for element, each in found if each == mark) for mark in ("differs", "resized")
        )
        return differs, resized

    return [indices(other) for other in others]


def callouts(differences: Iterable[Difference], spec: Decoder) -> list[Callout]:
    """Returns the differences in structure of the model `spec` as call-outs."""
    return [
        Callout(
            ".".join(filter(None, (found.part, found.detail))),
            found.sentence[:1].upper() + found.sentence[1:],
            frozenset(spec.layers[i] for i in found.layers),
        )
        for found in differences
    ]


@lru_cache(maxsize=256)  # a page compares every model with every other
def _facts(spec: Decoder, context: int, dtype: torch.dtype, layout: Literal["wide", "narrow"]) -> Facts:
    """Returns the facts that the diagram of a model states."""
    return Facts(_draw(spec, "", Options(context, dtype, layout)).facts)


def fragments(
    spec: Decoder,
    draw: Callable[[Rows], None],
    layout: Literal["wide", "narrow"] = "wide",
    where: Places | None = None,
) -> list[Fragment]:
    """Returns the parts that `draw` draws, for a page that assembles many diagrams from shared parts. A swap of
    attention, for example, does not change the drawing of the feed-forward.

    The parts are those of `svg`, with two differences. Tooltips describe a single layer. Every block is drawn in full
    in its own branch, unless `where` says otherwise. The page draws the strip of layers itself, from the look of each
    layer (zoo.diagram.looks).
    """
    options = Options(layout=layout)
    canvas, costs = Canvas(LAYOUTS[layout].width, "", ""), Costs(spec, options.context, options.dtype)
    draw(Rows(BlowUps(canvas, LAYOUTS[layout], costs, [], Badges({}), False, where=where or {})))
    return canvas.fragments()


def branch_fragment(
    spec: Decoder, role: str, branch: Placement, shown: Shown = "here", layout: Literal["wide", "narrow"] = "wide"
) -> Fragment:
    """Returns a branch as a fragment. It contains the blow-up of its block ("here"), or a note that refers to it."""
    where = {(role, branch.block): Drawn(SHOWN[shown])}
    return fragments(spec, lambda rows: rows.branch(0, role, branch, 1), layout, where)[0]


def _draw(spec: Decoder, title: str, options: Options, compared: bool = False) -> Canvas:
    """Returns the drawing. The number of a call-out is drawn at the inner part of a block, or at the block if the inner
    part is not drawn. With `compared`, a note explains the marks."""
    if options.context < 1:
        raise UsageError(f"context={options.context} is below 1")
    paths = {number: (callout.part or "").split(".") for number, callout in enumerate(options.callouts, 1)}
    inner = {number: path[-1] for number, path in paths.items()}
    canvas, left = _draw_with(spec, title, options, compared, inner)
    if left:  # these inner parts are not drawn: draw the numbers at the blocks
        canvas, _ = _draw_with(spec, title, options, compared, inner | {number: paths[number][0] for number in left})
    return canvas


def _draw_with(
    spec: Decoder, title: str, options: Options, compared: bool, parts: dict[int, str]
) -> tuple[Canvas, set[int]]:
    """Returns the drawing with the number of each call-out at the part in `parts`, and the numbers whose parts are not
    drawn."""
    title = _printable(title)
    counts = Counter(spec.layers)
    names = dict(zip(counts, labels(spec.layers), strict=True))
    several = len(counts) > 1
    kinds = [Kind(layer, names[layer] if several else "", n, look(layer, spec)) for layer, n in counts.items()]
    pattern = folded([names[layer] for layer in spec.layers])
    layout = LAYOUTS[options.layout]
    canvas = Canvas(layout.width, title, _description(spec, names, pattern, options))
    badges = Badges(dict(parts))
    costs = Costs(spec, options.context, options.dtype)
    y = _draw_title(canvas, layout, title, options.subtitle)
    canvas.end_fragment(_draw_figures(canvas, layout, spec, options, y + 8))
    canvas.end_fragment(_draw_layers(canvas, layout, spec, pattern, badges))
    rows = Rows(BlowUps(canvas, layout, costs, kinds, badges, options.costs, options.callouts))
    before_layers(rows)
    for position in range(len(kinds)):
        rows.layer(position)
    after_layers(rows)
    if options.callouts or options.heading:
        canvas.end_fragment(_draw_callouts(canvas, layout, options))
    canvas.end_fragment(_draw_notes(canvas, layout, options, compared))
    return canvas, {*badges.left}


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _draw_title(canvas: Canvas, layout: Layout, title: str, subtitle: str) -> float:
    """Draws the title, in a large font if it fits in one line, and the subtitle below it. Returns the last baseline."""
    width = layout.panel_end - layout.left
    size = next((size for size in (21.0, 17.0) if text_width(title, size, bold=True) <= width), 13.0)
    y = 16.0 + size
    for i, line in enumerate(wrap_text(title, width, size, bold=True)):
        y += 1.3 * size if i else 0
        canvas.text(layout.left, y, line, size, width, "strong")
    for line in wrap_text(_printable(subtitle), width):
        y += LINE + 2
        canvas.text(layout.left, y, line, SMALL, width, "faint")
    return y


def _draw_figures(canvas: Canvas, layout: Layout, spec: Decoder, options: Options, y: float) -> float:
    """Draws the model's key figures in as many rows as they need. Returns the y below them."""
    active, total = spec.active_params(), spec.params()
    fixed, growth = spec.kv_growth(options.dtype)
    kept = [f"{format_bytes(fixed)} fixed"] if fixed else []
    kept += [f"{format_bytes(growth)} per token"] if growth or not fixed else []
    figures = [  # figure, its label, the name of its fact
        (format_count(total), "parameters", ""),
        *([(format_count(active), "active per token", "")] * (active < total)),
        (f"{len(spec.layers):,}", "layers", "depth"),
        (f"{spec.dim:,}", "width", "width"),
        *([(_tokens(spec.context), "context", "context")] if spec.context else []),
        (" + ".join(kept), f"KV cache in {dtype_name(options.dtype)}", ""),
    ]
    x, end, gap = layout.left, layout.panel_end, 24.0
    for figure, what, fact in figures:
        width = max(text_width(figure, 13.5, bold=True), text_width(what, SMALL))
        if x + width > end and x > layout.left:
            x, y = layout.left, y + 40
        place = fact and f"model.{fact}"
        css_class = canvas.with_fact("strong", place, figure) if place else "strong"
        canvas.text(x, y + 18, figure, 13.5, end - x, css_class)
        canvas.text(x, y + 34, what, SMALL, end - x, "faint")
        x += width + gap
    return y + 42


def _tokens(number: int) -> str:
    return f"{number // 1024:,}k" if number % 1024 == 0 else f"{number:,}"


def _draw_layers(canvas: Canvas, layout: Layout, spec: Decoder, pattern: str, badges: Badges) -> float:
    """Draws a strip of all layers in order, its legend, and the layer pattern as text. Returns the y below them."""
    width, y = layout.panel_end - layout.left, STRIP_ABOVE
    draw_strip(canvas, spec, layout.left, y, width, STRIP)
    badges.draw(canvas, ("layers",), layout.panel_end - 4, y)
    several = len(set(spec.layers)) > 1
    looks = [look(layer, spec) for layer in set(spec.layers)]
    return draw_pattern(canvas, looks, pattern if several else "", layout.left, y + STRIP + STRIP_BELOW, width)


def folded(names: Sequence[str]) -> str:
    """Formats the names of all layers as a pattern: "5 × [window 1,024] + 1 × [full]"."""
    return typeset(fold(names).replace(" x ", " × "))


def before_layers(rows: Rows) -> None:
    """Draws a token's path before the layers: embedding, positions, per-layer inputs."""
    spec, params = rows.spec, rows.spec.param_breakdown()
    scale = f", × {spec.embed_scale:.4g}" if spec.embed_scale != 1 else ""
    inputs = spec.per_layer.param_breakdown(spec.dim, spec.vocab, len(spec.layers)) if spec.per_layer else {}
    positions = spec.positions.params(spec.dim) if spec.positions else 0
    tables = params["embedding"] - inputs.get("embedding", 0) - positions
    rows.ends("token ids", down=True)
    text = f"{spec.vocab:,} × {spec.dim:,}{scale}"
    rows.table("Embedding", text, Cost(1, tables, tables), "embedding")  # lookups take no FLOPs
    if spec.positions:
        rows.table("Positions", spec.positions.describe(), Cost(1, positions, positions), "positions")
    if spec.per_layer:
        total, flops = sum(inputs.values()), spec.per_layer.flops(spec.dim, len(spec.layers), 1)
        text = f"{spec.vocab:,} × {len(spec.layers):,} × {spec.per_layer.width:,}"
        rows.table("Layer inputs", text, Cost(1, total, total, flops=flops), "inputs")


def after_layers(rows: Rows) -> None:
    """Draws a token's path after the layers: the end of the residual streams, norm, head."""
    spec, params = rows.spec, rows.spec.param_breakdown()["head"]
    if spec.streams:
        total = sum(spec.streams.param_breakdown(spec.dim).values())
        cost = Cost(1, total, total, flops=spec.streams.flops(spec.dim, 1))
        rows.table("Streams", f"{spec.streams.describe()}, added up", cost, "streams")
    rows.norm(spec.norm, "final norm")
    text = "tied: the embedding's matrix" if spec.tied else f"{spec.dim:,} × {spec.vocab:,}"
    flops = spec.flop_breakdown(rows.costs.context - 1, 1)["head"]
    rows.table("Head", text, Cost(1, params, params, flops=flops), "head")
    rows.ends(f"logits of {spec.vocab:,} tokens", down=False)


def _draw_callouts(canvas: Canvas, layout: Layout, options: Options) -> float:
    """Draws the numbered sentences, in two columns if they fit. Returns the y below them."""
    columns = 1 if layout.narrow or len(options.callouts) < 4 else 2
    width = (layout.panel_end - layout.left - 24 * (columns - 1)) / columns
    canvas.path(f"M{layout.left} 6H{layout.panel_end}", "rule")
    top = 12.0
    for line in wrap_text(options.heading, layout.panel_end - layout.left, 12.5, bold=True):
        canvas.text(layout.left, top + 14, line, 12.5, layout.panel_end - layout.left, "strong")
        top += 19
    per_column = -(-len(options.callouts) // columns)
    bottoms = []
    for column in range(columns):
        x, y = layout.left + column * (width + 24), top + 6
        chosen = list(enumerate(options.callouts, 1))[column * per_column : (column + 1) * per_column]
        for number, (_, sentence, _) in chosen:
            draw_badge(canvas, number, x + BADGE, y + 8)
            lines = wrap_text(_printable(sentence), width - 26)
            y = canvas.lines(x + 24, y + 12, lines, width - 24) - 5
        bottoms.append(y)
    return max(bottoms) + 4


def _draw_notes(canvas: Canvas, layout: Layout, options: Options, compared: bool) -> float:
    """Draws notes that explain the costs and the marks. Returns the y below them."""
    notes = []
    if options.costs:
        notes.append(
            f"Costs add up over the layers of a frame; bars are shares of the whole model, that of the cache at "
            f"{options.context:,} tokens. FLOPs are of one token that sees {options.context:,}, 2 per multiply-add."
        )
    if compared:
        notes.append("Red: absent in the other model. Plum: a different size.")
    width = layout.panel_end - layout.left
    return canvas.lines(layout.left, 15, wrap_text(" ".join(notes), width), width, "faint") - 1


def _description(spec: Decoder, names: dict[Layer, str], pattern: str, options: Options) -> str:
    """Returns a description of the diagram for readers who cannot see it."""
    parts = [f"{len(spec.layers):,} layers: {pattern}."]
    parts.append(f"Embedding {spec.vocab:,} by {spec.dim:,}, {'tied to the head' if spec.tied else 'and a head'}.")
    if spec.per_layer:
        parts.append(f"{spec.per_layer.describe().capitalize()}.")
    if spec.streams:
        parts.append(f"{spec.streams.describe().capitalize()}.")
    for layer, name in names.items():
        branches = ((branch_name(role, branch.block), branch) for role, branch in layer.branches())
        parts.append(f"[{name}] {'; '.join(f'{n} {b.formula} with {b.block.describe()}' for n, b in branches)}.")
    parts += [f"{number}: {_printable(sentence)}." for number, (_, sentence, _) in enumerate(options.callouts, 1)]
    return " ".join(parts)
