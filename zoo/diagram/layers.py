"""A card for each kind of layer: the residual stream, its two branches with their norms, and beside them the columns of
costs: parameters, KV cache per token, share of the FLOPs."""

from fractions import Fraction
from typing import NamedTuple

import torch

from zoo.blocks import Layer
from zoo.blocks.hyper_connections import HyperBranch
from zoo.blocks.layer import Placement, PostNorm
from zoo.blocks.norms import Norm
from zoo.costs import whole
from zoo.diagram.canvas import Canvas, stretch, trace
from zoo.diagram.insides import SMALL, TINY, Region, inside
from zoo.model.decoder import Decoder
from zoo.registry import Block, Mixer
from zoo.swaps.rebuild import features
from zoo.units import format_bytes, format_count

LEFT, END = 16.0, 544.0  # x of a card's edges
STREAM, RAIL = 36.0, 82.0  # x of the residual stream and of a branch
FRONT, BLOCK, BLOCK_END = 22.0, 62.0, 326.0  # x where bars on the stream and blocks begin, and where both end
GAP, BAR, TABLE, PLUS = 11.0, 19.0, 26.0, 7.0  # space between, a norm's height, a table's, the radius of a sum
COLUMNS = {  # name -> right edge, width, heading
    "params": (392.0, 60.0, "parameters"),
    "kv": (466.0, 69.0, "KV per token"),
    "flops": (534.0, 58.0, "FLOPs"),
}
BRANCH_NAMES = {"attn": "attention", "ffn": "feed-forward", "inputs": "per-layer input"}


class Cost(NamedTuple):
    """What `layers` equal blocks cost together."""

    layers: int
    params: int
    active: int  # parameters
    kv: int = 0  # bytes per token in reach
    limit: int | None = None  # tokens in reach, None: all
    entries: Fraction = Fraction()  # bytes per token of entries that stand for several, kept for all
    state: int = 0  # bytes, whatever the context
    flops: int = 0
    scores: int = 0  # FLOPs among these that grow with the context


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def tooltip(name: str, cost: Cost) -> str:
    """The exact figures of a part."""
    kept = f", {cost.kv:,} bytes of cache a token" if cost.kv else ""
    kept += f", {whole(cost.entries):,} bytes of entries a token" if cost.entries else ""
    kept += f", {cost.state:,} bytes of state" if cost.state else ""
    where = "" if cost.layers == 1 else f" in {cost.layers:,} layers"
    return f"{name}: {cost.params:,} parameters{kept}, {cost.flops:,} FLOPs{where}"


class Cards:
    """The cards, one below the other. A branch that an earlier card shows is not drawn again. KV caches are of one
    sequence of `context` tokens in `dtype`, FLOPs of one new token that sees `context` tokens, itself included."""

    def __init__(self, canvas: Canvas, spec: Decoder, context: int, dtype: torch.dtype) -> None:
        self.canvas, self.spec, self.context, self.dtype = canvas, spec, context, dtype
        self.params, self.flops = spec.params(), spec.flops(context - 1, 1)
        self.kv = spec.kv_bytes(context, dtype=dtype)
        self.shown: dict[tuple[str, Placement], tuple[str, str]] = {}  # -> the card's label and CSS class

    def cost(self, block: Block, layers: int) -> Cost:
        """The cost of a block, a branch or a whole layer, in each of `layers` layers."""
        dim, past = self.spec.dim, self.context - 1
        cache = next((part.cache_spec() for part in block.walk() if isinstance(part, Mixer)), None)
        parts = block.flop_breakdown(dim, past, 1)
        return Cost(
            layers,
            params=layers * block.params(dim),
            active=layers * block.active_params(dim),
            kv=layers * cache.elements() * self.dtype.itemsize if cache else 0,
            limit=cache.reach.limit if cache else None,
            entries=layers * cache.entry_growth(self.dtype.itemsize) if cache else Fraction(),
            state=layers * cache.state_bytes(self.dtype.itemsize) if cache else 0,
            flops=layers * block.flops(dim, past, 1),
            scores=layers * sum(parts.get(part, 0) for part in ("scores", "entries")),
        )

    def columns(self, y: float, cost: Cost, detailed: bool = False) -> None:
        """A cost in the columns on the line `y`; detailed, with bars for its shares and the cost of one layer below."""
        kept = cost.state + cost.kv * (self.context if cost.limit is None else min(cost.limit, self.context))
        kept += round(cost.entries * self.context)
        shares = {"params": cost.params / self.params, "kv": kept / (self.kv or 1), "flops": cost.flops / self.flops}
        figures = {"params": format_count(cost.params), "kv": format_bytes(cost.kv), "flops": _percent(shares["flops"])}
        several, params, kv = cost.layers > 1, cost.params / cost.layers, cost.kv / cost.layers
        below = {  # the lines below a figure
            "params": [f"{format_count(params)}/layer"] * several
            + [f"active {format_count(cost.active)}"] * (cost.active < cost.params),
            "kv": [f"{format_bytes(kv)}/layer"] * (several and bool(kv))
            + [f"of last {cost.limit or 0:,}"] * bool(cost.limit)
            + [f"entries {format_bytes(round(cost.entries))}"] * bool(cost.entries)
            + [f"state {format_bytes(cost.state)}"] * bool(cost.state),
            "flops": [f"scores {_percent(cost.scores / self.flops)}"] * bool(cost.scores),
        }
        for name, (right, width, _) in COLUMNS.items():
            if not (getattr(cost, name) or (name == "kv" and cost.state)):
                continue
            self.canvas.text(right, y, figures[name], 10.5, width, "strong" if detailed else "ink", "end")
            if detailed:
                self.canvas.rect(right - width, y + 5, width, 3, "track", 1.5)
                self.canvas.rect(right - width, y + 5, max(width * shares[name], 0.5), 3, name, 1.5)
                for i, line in enumerate(below[name]):
                    self.canvas.text(right, y + 20 + 12 * i, line, TINY, width, "faint", "end")

    def draw(self, y: float, layer: Layer, label: str, layers: int, colour: str) -> float:
        """The card of one kind of layer, of which the model has `layers`; returns the y below it."""
        canvas = self.canvas
        frame = canvas.rect(LEFT, y, END - LEFT, 0, "card", 8)
        stream = canvas.path("", "residual")
        canvas.rect(BLOCK, y + 9, 10, 10, f"kind-{colour}", 2)
        title = f"{layers:,} layer{'s' * (layers > 1)}, {label}"
        canvas.text(BLOCK + 16, y + 18, title, 11.5, BLOCK_END - BLOCK - 16, "strong")
        self.columns(y + 18, self.cost(layer, layers))
        canvas.path(f"M{BLOCK} {y + 26}H{END - 10}", "rule")
        bottom = y + 26
        for role, branch in layer.branches():
            bottom = self._branch(bottom, role, branch, (label, f"kind-{colour}"), layers)
        if layer.output_scale:
            with canvas.group(tooltip("output scale", self.cost(layer.output_scale, layers))):
                canvas.text(BLOCK, bottom + 12, layer.output_scale.describe(), TINY, BLOCK_END - BLOCK, "faint")
            bottom += 16
        bottom += 6
        stretch(frame, bottom)
        trace(stream, f"M{STREAM} {y - GAP}V{bottom + 1}")
        return bottom

    def _branch(self, y: float, role: str, branch: Placement, card: tuple[str, str], layers: int) -> float:
        """From where a branch leaves the stream to where it is added to it."""
        canvas = self.canvas
        canvas.circle(STREAM, y + 8, 2.6, "tip")
        y += 22
        canvas.path(f"M{STREAM} {y - 14}H{RAIL - 6}q6 0 6 6v4", "branch")
        canvas.path(f"M{RAIL} {y}l-3 -5h6z", "tip")
        first = self.shown.setdefault((role, branch), card)
        if first != card:
            y = self._reference(y, role, branch, first, layers)
        else:
            pre, post = getattr(branch, "pre", None), getattr(branch, "post", None)
            if isinstance(branch, HyperBranch):
                y = self._arrow(self._mixing(y, role, branch, layers))
            if pre:
                y = self._arrow(self.norm(y, pre, layers, f"{role}.norm before"))
            y = self._block(y, role, branch.block, layers)
            if post:
                y = self.norm(self._arrow(y), post, layers, f"{role}.norm after")
        canvas.path(f"M{RAIL} {y}v5q0 6 -6 6H{STREAM + PLUS}", "branch")
        y += 11
        canvas.circle(STREAM, y, PLUS, "plus")
        canvas.path(f"M{STREAM - 3.5} {y}h7M{STREAM} {y - 3.5}v7", "branch")
        y += PLUS
        if isinstance(branch, PostNorm) and first == card:
            y = self.norm(y + 7, branch.norm, layers, f"{role}.norm on the stream", FRONT)
        return y + 4

    def _block(self, y: float, role: str, block: Block, layers: int) -> float:
        canvas, cost = self.canvas, self.cost(block, layers)
        with canvas.group(tooltip(BRANCH_NAMES[role], cost)):
            marks = canvas.marks
            box = canvas.rect(BLOCK, y, BLOCK_END - BLOCK, 0, role, 6)
            region = Region(canvas, BLOCK + 10, y + 7, BLOCK_END - BLOCK - 20, self.spec.dim, role)
            bottom = max(inside(block, region) + 9, y + 48)
            stretch(box, bottom)
            if canvas.marks == marks:  # the blocks may differ in a field that is not drawn
                box.set("class", canvas.marked(role, f"{role}.block", repr(block)))
            self.columns(y + 18, cost, detailed=True)
        return bottom

    def _mixing(self, y: float, role: str, branch: HyperBranch, layers: int) -> float:
        """A bar for what a branch reads of several streams and how it mixes them; returns the y below it."""
        dim, canvas = self.spec.dim, self.canvas
        params = layers * sum(branch.mixing_params(dim).values())
        cost = Cost(layers, params, params, flops=layers * branch.mixing_flops(dim, 1))
        text = f"{branch.streams.describe()}, {branch.formula}"
        with canvas.group(tooltip("hyper-connections", cost)):
            css_class = canvas.marked("norm", f"{role}.streams", f"{text}, {branch.iterations}, {branch.streams}")
            canvas.rect(BLOCK, y, BLOCK_END - BLOCK, BAR, css_class, 4)
            canvas.text(BLOCK + 10, y + 13, text, SMALL, BLOCK_END - BLOCK - 20, place=f"{role}.streams")
            self.columns(y + 13, cost)
        return y + BAR

    def norm(self, y: float, norm: Norm, layers: int, place: str, left: float = BLOCK) -> float:
        """A norm as a bar from `left` on; from FRONT on, the stream runs into it. Returns the y below it."""
        canvas, cost = self.canvas, self.cost(norm, layers)
        text = ", ".join([type(norm).__name__, *features(norm).values()])
        with canvas.group(tooltip(norm.describe(), cost)):
            canvas.rect(left, y, BLOCK_END - left, BAR, canvas.marked("norm", place, norm.describe()), 4)
            canvas.text(left + 10, y + 13, text, SMALL, BLOCK_END - left - 20)
            self.columns(y + 13, cost)
        return y + BAR

    def table(self, y: float, name: str, text: str, cost: Cost) -> float:
        """The embedding or the head as a bar on the stream; returns the y below it."""
        canvas = self.canvas
        with canvas.group(tooltip(name, cost)):
            canvas.rect(FRONT, y, BLOCK_END - FRONT, TABLE, canvas.marked("table", name, text), 5)
            end = FRONT + 18 + canvas.text(FRONT + 10, y + 17, name, 12, 100, "strong")
            canvas.text(end, y + 17, text, SMALL, BLOCK_END - end - 8, place=name)
            self.columns(y + 17, cost)
        return y + TABLE

    def _reference(self, y: float, role: str, branch: Placement, first: tuple[str, str], layers: int) -> float:
        """A bar that names the card on which this branch is drawn."""
        canvas, cost = self.canvas, self.cost(branch, layers)
        text, (label, css_class) = f"{BRANCH_NAMES[role]} as in", first
        with canvas.group(tooltip(f"{text} {label}", cost)):
            canvas.rect(BLOCK, y, BLOCK_END - BLOCK, BAR + 3, "ghost", 4)
            x = BLOCK + 16 + canvas.text(BLOCK + 10, y + 14.5, text, SMALL, 120, "faint")
            canvas.rect(x, y + 6.5, 9, 9, css_class, 2)
            canvas.text(x + 14, y + 14.5, label, SMALL, BLOCK_END - x - 18, "faint")
            self.columns(y + 14.5, cost)
        return y + BAR + 3

    def _arrow(self, y: float) -> float:
        """An arrow from one block of a branch down to the next; returns the y of its tip."""
        self.canvas.path(f"M{RAIL} {y}v{GAP - 4}", "branch")
        self.canvas.path(f"M{RAIL} {y + GAP}l-3 -5h6z", "tip")
        return y + GAP
