"""Draws a token's path through a model in rows, from top to bottom: tables and norms on the residual stream, and a
frame with branches for each kind of layer. A branch leaves the stream, passes its norms and its block, and is added
back. The blow-up of the block is beside it, or inside its box in a narrow layout."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from zoo.blocks import MoE
from zoo.blocks.hyper_connections import HyperBranch
from zoo.blocks.layer import Placement, PostNorm
from zoo.blocks.norms import LayerScale, Norm
from zoo.diagram.blow_ups import BAR, GAP, PANEL_TOP, PLUS, TABLE, TAP, BlowUps, Spot
from zoo.diagram.canvas import LINE, SMALL, Canvas, stretch, typeset, wrap_text
from zoo.diagram.looks import Look, draw_looks, draw_pattern
from zoo.diagram.parts import Cost, tooltip
from zoo.diagram.region import BIG, kind
from zoo.registry import Block, Mixer

BRANCH_NAMES = {"attn": "attention", "ffn": "feed-forward", "inputs": "per-layer input"}


class Piece(NamedTuple):
    """A box on a branch: its height (0 if only drawing reveals it), and a function that draws the box from a given y
    and returns the y below it."""

    height: float
    draw: Callable[[float], float]
    is_block: bool = False


class Rows:
    """Draws the rows of one diagram."""

    def __init__(self, blow_ups: BlowUps) -> None:
        self.blow_ups, self.canvas, self.layout = blow_ups, blow_ups.canvas, blow_ups.layout
        self.costs, self.spec, self.badges = blow_ups.costs, blow_ups.spec, blow_ups.badges

    # Rows on the residual stream.

    def ends(self, text: str, down: bool) -> None:
        """Draws the start of the path (token ids, `down`) or its end (logits)."""
        canvas, x = self.canvas, self.layout.stream
        canvas.path(f"M{x} 22V34" if down else f"M{x} 0V11", "residual")
        if not down:
            canvas.path(f"M{x} 17l-5 -7h10z", "tip")
        canvas.text(self.layout.left + 4, 16 if down else 32, text, SMALL, 220, "faint")
        canvas.end_fragment(34 if down else 40)

    def table(self, name: str, text: str, cost: Cost, anchor: str) -> None:
        """Draws the embedding or the head as a box on the stream."""
        canvas, left, right, baseline = self.canvas, self.layout.left + 10, self.layout.frame_end - 6, GAP + 18.3
        with canvas.group(tooltip(name, cost)):
            self._on_stream(TABLE, canvas.with_fact("table", name, text))
            left += 10 + canvas.text(left, baseline, name, BIG - 1, 120, "strong")
            canvas.text(left, baseline, text, SMALL, right - left, place=name)
            self.badges.draw(canvas, (anchor,), right, GAP)
            bottom = self._beside(cost, GAP, GAP + TABLE)
        canvas.end_fragment(bottom)

    def norm(self, norm: Norm, place: str) -> None:
        """Draws a norm as a bar on the stream."""
        with self.canvas.group(tooltip(norm.describe(), self.costs.of(norm, 1))):
            self._on_stream(BAR, self.canvas.with_fact("norm", place, type(norm).__name__))
            norm_name(self.canvas, self.layout.left, GAP, norm, place)
        self.canvas.end_fragment(GAP + BAR)

    def _on_stream(self, height: float, css_class: str) -> None:
        layout = self.layout
        self.canvas.path(f"M{layout.stream} 0V{GAP}", "residual")
        self.canvas.rect(layout.left, GAP, layout.frame_end - layout.left, height, css_class, 5)

    def _beside(self, cost: Cost, top: float, bottom: float) -> float:
        """Draws the costs of a part on the stream: beside it, or below it in a narrow layout. Returns the y below."""
        if not self.blow_ups.with_costs:
            return bottom
        layout = self.layout
        width = layout.panel_end - layout.panel
        if not layout.narrow:
            return max(bottom, self.costs.cells(self.canvas, layout.panel, top, width, cost, detailed=False))
        left, stream = layout.block, self.canvas.path("", "residual")
        end = self.costs.cells(self.canvas, left, bottom + 6, layout.panel_end - left, cost, detailed=False)
        stream.set("d", f"M{layout.stream} {bottom}V{end + 1}")
        return end

    # Layers.

    def pattern(self, looks: Iterable[Look], pattern: str) -> None:
        """Draws the legend of the strip of layers, and the layer pattern as text if there is one."""
        left, right = self.layout.left, self.layout.panel_end
        self.canvas.end_fragment(draw_pattern(self.canvas, looks, pattern, left, 0, right - left))

    def layer(self, position: int) -> None:
        """Draws the frame of a kind of layer and the rows of its branches."""
        each = self.blow_ups.kinds[position]
        self.top(each.layers, each.label, each.look)
        for role, branch in each.layer.branches():
            self.branch(position, role, branch, each.layers)
        self.bottom(each.layer.output_scale, each.layers)

    def top(self, layers: int, name: str, look: Look) -> None:
        """Draws the top of a frame: the number of its layers, their label, and their colours."""
        canvas, layout = self.canvas, self.layout
        left, right, top = layout.left, layout.frame_end, GAP
        x = layout.stream + 18
        label = wrap_text(typeset(name), right - x - 40)
        bottom = top + 30 + LINE * len(label)
        frame = f"M{left} {bottom + 1}V{top + 8}q0 -8 8 -8H{right - 8}q8 0 8 8V{bottom + 1}"
        canvas.path(frame, "card")
        canvas.path(f"M{layout.stream} 0V{bottom + 1}", "residual")
        canvas.text(x, top + 22, f"{layers:,} × layer", 15, right - x - 40, "strong")
        draw_looks(canvas, top + 10, 15, [(right - 34, 22, look)])
        canvas.lines(x, top + 38, label, right - x - 12, "faint")
        canvas.end_fragment(bottom)

    def bottom(self, scale: LayerScale | None, layers: int) -> None:
        """Draws the bottom of a frame, with the scale of the layers' output if they have one."""
        canvas, layout = self.canvas, self.layout
        left, right, y = layout.left, layout.frame_end, 24.0 if scale else 6.0
        canvas.path(f"M{left} -1V{y}q0 8 8 8H{right - 8}q8 0 8 -8V-1", "card")
        canvas.path(f"M{layout.stream} -1V{y + 8}", "residual")
        if scale:
            with canvas.group(tooltip("output scale", self.costs.of(scale, layers), layers)):
                canvas.text(layout.block, 14, scale.describe(), SMALL, right - layout.block - 8, "faint")
        canvas.end_fragment(y + 8)

    def branch(self, position: int, role: str, branch: Placement, layers: int) -> None:
        """Draws a branch in a frame, and the blow-up of its block."""
        spot = Spot(position, role, branch, layers)
        canvas, layout, cost = self.canvas, self.layout, self.costs.of(branch.block, layers)
        back = canvas.rect(layout.left, 0, layout.frame_end - layout.left, 0, "frame")
        edges, stream = canvas.path("", "rule"), canvas.path("", "residual")
        with canvas.group(tooltip(branch_name(role, branch.block), cost, layers)):
            panel = 0.0 if layout.narrow else self._panel(spot, cost)
            bottom, box = self._flow(spot, panel + 4)
            if panel and self.blow_ups.is_blown_up(spot):
                for y, end in zip(box, (PANEL_TOP, panel), strict=True):
                    canvas.path(f"M{layout.block_end} {y}L{layout.panel} {end}", "guide")
        row = max(bottom, panel + 6)
        stretch(back, row + 1)
        edges.set("d", f"M{layout.left} -1V{row + 1:g}M{layout.frame_end:g} -1V{row + 1:g}")
        stream.set("d", f"M{layout.stream} -1V{row + 1:g}")
        canvas.end_fragment(row)

    def _panel(self, spot: Spot, cost: Cost) -> float:
        """Draws the blow-up beside a branch. If it is in another frame, draws only costs. Returns the y below."""
        canvas, layout, left = self.canvas, self.layout, self.layout.panel
        if not self.blow_ups.is_blown_up(spot):
            if not self.blow_ups.with_costs:
                return 0.0
            return self.costs.cells(canvas, left, PANEL_TOP + 30, layout.panel_end - left, cost) + 4
        frame = canvas.rect(left, PANEL_TOP, layout.panel_end - left, 0, spot.role, 8)
        bottom = self.blow_ups.contents(left + 12, PANEL_TOP + 10, spot)
        stretch(frame, bottom + 10)
        return bottom + 10

    def _flow(self, spot: Spot, least: float) -> tuple[float, tuple[float, float]]:
        """Draws a branch from the stream through its boxes and back, at least `least` units high. Returns the y below
        it, and the top and bottom of its block."""
        canvas, stream, rail = self.canvas, self.layout.stream, self.layout.rail
        pieces = list(self._pieces(spot))
        post = spot.branch.norm if isinstance(spot.branch, PostNorm) else None
        height = TAP + sum(piece.height + GAP for piece in pieces) + 2 * PLUS + GAP / 2
        height += BAR + GAP / 2 if post else 0
        gap = GAP + max(least - height, 0.0) / (len(pieces) + 1)
        canvas.circle(stream, TAP - 6, 2.8, "tip")
        y, box = TAP, (0.0, 0.0)
        for i, piece in enumerate(pieces):
            top = y + gap - GAP / 2 if i == 0 else y + gap
            shaft = f"M{rail} {y}" if i else f"M{stream} {TAP - 6}H{rail - 6}q6 0 6 6"
            canvas.path(f"{shaft}V{top - 4}", "branch")
            canvas.path(f"M{rail} {top}l-3 -5h6z", "tip")
            y = piece.draw(top)
            box = (top, y) if piece.is_block else box
        join = y + gap - GAP / 2 + PLUS
        canvas.path(f"M{rail} {y}V{join - 6}q0 6 -6 6H{stream + PLUS}", "branch")
        canvas.circle(stream, join, PLUS, "plus")
        canvas.path(f"M{stream - 3.5} {join}h7M{stream} {join - 3.5}v7", "branch")
        y = join + PLUS
        if post:
            y = self._norm_bar(y + GAP / 2, self.layout.left + 8, post, spot, "norm on the stream")
        return y + GAP / 2, box

    def _pieces(self, spot: Spot) -> Iterator[Piece]:
        before, after = getattr(spot.branch, "pre", None), getattr(spot.branch, "post", None)
        left = self.layout.block
        if isinstance(spot.branch, HyperBranch):
            yield self._mixing(spot, spot.branch)
        if before:
            yield Piece(BAR, lambda y: self._norm_bar(y, left, before, spot, "norm before"))
        yield self._block(spot)
        if after:
            yield Piece(BAR, lambda y: self._norm_bar(y, left, after, spot, "norm after"))

    def _norm_bar(self, y: float, left: float, norm: Norm, spot: Spot, fact: str) -> float:
        place = f"{spot.role}.{fact}"
        with self.canvas.group(tooltip(norm.describe(), self.costs.of(norm, spot.layers), spot.layers)):
            self._bar(y, left, place, type(norm).__name__)
            norm_name(self.canvas, left, y, norm, place)
            self._anchor("norm", y, spot)
        return y + BAR

    def _mixing(self, spot: Spot, branch: HyperBranch) -> Piece:
        """Returns the box of hyper-connections, which names the streams that a branch reads and mixes."""
        dim, layers, left = self.spec.dim, spot.layers, self.layout.block
        params = layers * sum(branch.mixing_params(dim).values())
        cost = Cost(layers, params, params, flops=layers * branch.mixing_flops(dim, 1))
        text = f"{branch.streams.describe()}, {branch.formula}"
        lines = wrap_text(text, self.layout.block_end - left - 16)
        height = BAR + LINE * (len(lines) - 1)

        def draw(y: float) -> float:
            with self.canvas.group(tooltip("hyper-connections", cost, layers)):
                stated = f"{text}, {branch.iterations}, {branch.streams}"
                self._bar(y, left, f"{spot.role}.streams", stated, height)
                self.canvas.lines(left + 10, y + 14.5, lines, self.layout.block_end - left - 16)
                self._anchor("streams", y, spot)
            return y + height

        return Piece(height, draw)

    def _bar(self, y: float, left: float, place: str, stated: str, tall: float = BAR) -> None:
        css_class = self.canvas.with_fact("norm", place, stated)
        self.canvas.rect(left, y, self.layout.block_end - left, tall, css_class, 4)

    def _block(self, spot: Spot) -> Piece:
        """Returns the box of the block. It contains a summary, or in a narrow layout the inside of the block."""
        canvas, layout, block = self.canvas, self.layout, spot.branch.block
        name, here = branch_name(spot.role, block).capitalize(), self.blow_ups.is_blown_up(spot)
        width, is_inside = layout.block_end - layout.block - 20, layout.narrow and here
        lines = wrap_text(summary(block), width)
        height = 0.0 if is_inside else 30 + LINE * len(lines) + (0 if here else LINE)

        def draw(y: float) -> float:
            box = canvas.rect(layout.block, y, layout.block_end - layout.block, height, spot.role, 7)
            x, bottom = layout.block + 10, y + height
            if is_inside:
                x += 2  # the inside has the same margin as in a blow-up
                canvas.text(x, y + 17, name, SMALL, width - 2, "faint")
                bottom = self.blow_ups.contents(x, y + 24, spot) + 10
                stretch(box, bottom)
            else:
                canvas.text(x, y + 19, name, BIG, width, "strong")
                end = canvas.lines(x, y + 36, lines, width)
                if not here:
                    is_below = self.blow_ups.where[spot.role, block].position > spot.position
                    canvas.text(x, end, "drawn below" if is_below else "drawn above", SMALL, width, "faint")
            if here:  # two blocks can differ in a field that is not drawn
                canvas.add_statement(box, f"{spot.role}.block", repr(block), self.blow_ups.inner)
            self._anchor(spot.role, y, spot)
            return bottom

        return Piece(height, draw, is_block=True)

    def _anchor(self, name: str, y: float, spot: Spot) -> None:
        self.blow_ups.badges_at(spot).draw(self.canvas, (name,), self.layout.block_end - 4, y)


def summary(block: Block) -> str:
    """Returns a few words about a block."""
    if isinstance(block, Mixer):
        cache = block.cache_spec()
        limited = bool(cache.entries) or not cache.reach.is_full
        return f"{kind(block)}, {typeset(cache.describe())}" if limited else kind(block)
    mixture = next((part for part in block.walk() if isinstance(part, MoE)), None)
    if mixture:
        shared = ", 1 shared" if mixture.shared else ""
        beside = "" if mixture is block else "dense, and "
        return f"{beside}{mixture.router.k:,} of {mixture.experts:,} experts{shared}"
    return typeset(block.describe())


def branch_name(role: str, block: Block) -> str:
    """Returns the printed name of a branch. A mixer that keeps only a state is a "token mixer", not "attention"."""
    if isinstance(block, Mixer) and not block.cache_spec().per_token and not block.takes():
        return "token mixer"
    return BRANCH_NAMES[role]


def norm_name(canvas: Canvas, left: float, top: float, norm: Norm, place: str) -> None:
    """Draws the name of a norm in its bar. The fact also states how the norm multiplies by its weight; differences in
    that are marked weakly."""
    css_class = canvas.with_fact("ink", f"{place}.fields", norm.describe(), weak=True)
    canvas.text(left + 10, top + 14.5, type(norm).__name__, SMALL, 160, css_class)
