"""A branch of a layer: from where it leaves the residual stream, through its norms and its block, back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from zoo.blocks import MoE
from zoo.blocks.hyper_connections import HyperBranch
from zoo.blocks.layer import Placement, PostNorm
from zoo.blocks.norms import Norm
from zoo.diagram.blow_ups import BAR, GAP, PLUS, TAP, BlowUps
from zoo.diagram.canvas import LINE, SMALL, Canvas, typeset, wrap_text
from zoo.diagram.parts import Cost, tooltip
from zoo.diagram.region import BIG, kind
from zoo.registry import Block, Mixer

BRANCH_NAMES = {"attn": "attention", "ffn": "feed-forward", "inputs": "per-layer input"}


class Piece(NamedTuple):
    """A box of a branch: its height, and a function that draws it from a given y."""

    height: float
    draw: Callable[[float], None]


class Flow:
    """A branch, from the point where it leaves the stream to the point where it is added back."""

    def __init__(self, blow_ups: BlowUps, position: int, role: str, branch: Placement, layers: int) -> None:
        self.blow_ups, self.canvas, self.layout = blow_ups, blow_ups.canvas, blow_ups.layout
        self.position, self.role, self.branch, self.layers = position, role, branch, layers
        self.box = (0.0, 0.0)
        self.pieces = list(self._pieces())
        self.post = branch.norm if isinstance(branch, PostNorm) else None
        self.height = TAP + sum(piece.height + GAP for piece in self.pieces) + 2 * PLUS + GAP / 2
        self.height += BAR + GAP / 2 if self.post else 0

    def _pieces(self) -> Iterator[Piece]:
        before, after = getattr(self.branch, "pre", None), getattr(self.branch, "post", None)
        if isinstance(self.branch, HyperBranch):
            yield self._mixing(self.branch)
        if before:
            yield self._norm(before, f"{self.role}.norm before")
        yield self._block()
        if after:
            yield self._norm(after, f"{self.role}.norm after")

    def draw(self, room: float) -> tuple[float, tuple[float, float]]:
        """Draws the branch with `room` units of extra height. Returns the y below it, and the top and bottom of the
        block."""
        canvas, layout = self.canvas, self.layout
        gap = GAP + room / (len(self.pieces) + 1)
        stream, rail = layout.stream, layout.rail
        canvas.circle(stream, TAP - 6, 2.8, "tip")
        y = TAP
        start = TAP - 6
        for i, piece in enumerate(self.pieces):
            top = y + gap - GAP / 2 if i == 0 else y + gap
            if i == 0:
                canvas.path(f"M{stream} {start}H{rail - 6}q6 0 6 6V{top - 4}", "branch")
            else:
                canvas.path(f"M{rail} {y}V{top - 4}", "branch")
            canvas.path(f"M{rail} {top}l-3 -5h6z", "tip")
            piece.draw(top)
            y = top + piece.height
        join = y + gap - GAP / 2 + PLUS
        canvas.path(f"M{rail} {y}V{join - 6}q0 6 -6 6H{stream + PLUS}", "branch")
        canvas.circle(stream, join, PLUS, "plus")
        canvas.path(f"M{stream - 3.5} {join}h7M{stream} {join - 3.5}v7", "branch")
        y = join + PLUS
        if self.post:
            y += GAP / 2
            left = layout.left + 8
            self._norm_bar(y, left, self.post, f"{self.role}.norm on the stream")
            y += BAR
        return y + GAP / 2, self.box

    def _norm(self, norm: Norm, place: str) -> Piece:
        def draw(y: float) -> None:
            self._norm_bar(y, self.layout.block, norm, place)

        return Piece(BAR, draw)

    def _norm_bar(self, y: float, left: float, norm: Norm, place: str) -> None:
        with self.canvas.group(tooltip(norm.describe(), self.blow_ups.costs.of(norm, self.layers), self.layers)):
            self._bar(y, left, place, type(norm).__name__)
            norm_name(self.canvas, left, y, norm, place)
            self._anchor("norm", y)

    def _mixing(self, branch: HyperBranch) -> Piece:
        """Returns the box of hyper-connections: the streams that a branch reads and mixes."""
        dim, width = self.blow_ups.spec.dim, self.layout.block_end - self.layout.block - 16
        params = self.layers * sum(branch.mixing_params(dim).values())
        cost = Cost(self.layers, params, params, flops=self.layers * branch.mixing_flops(dim, 1))
        text = f"{branch.streams.describe()}, {branch.formula}"
        lines = wrap_text(text, width)

        def draw(y: float) -> None:
            stated = f"{text}, {branch.iterations}, {branch.streams}"
            with self.canvas.group(tooltip("hyper-connections", cost, self.layers)):
                self._bar(y, self.layout.block, f"{self.role}.streams", stated, BAR + LINE * (len(lines) - 1))
                self.canvas.lines(self.layout.block + 10, y + 14.5, lines, width)
                self._anchor("streams", y)

        return Piece(BAR + LINE * (len(lines) - 1), draw)

    def _bar(self, y: float, left: float, place: str, stated: str, tall: float = BAR) -> None:
        width = self.layout.block_end - left
        self.canvas.rect(left, y, width, tall, self.canvas.with_fact("norm", place, stated), 4)

    def _block(self) -> Piece:
        """Returns the block as a box, with its summary and a blow-up beside it, or with its inside."""
        layout, block = self.layout, self.branch.block
        name = branch_name(self.role, block)
        here = self.blow_ups.is_blown_up(self.position, self.role, block)
        width = layout.block_end - layout.block - 20
        lines = wrap_text(summary(block), width)
        elsewhere = "drawn below" if self.blow_ups.where[self.role, block].position > self.position else "drawn above"
        inner = layout.narrow and here
        height = 30 + LINE * len(lines) + (0 if here else LINE)
        if inner:
            measuring = self.blow_ups.measuring()
            height = measuring.contents(layout.block + 12, 24, self.position, self.role, block, self.layers) + 10

        def draw(y: float) -> None:
            canvas = self.canvas
            self.box = (y, y + height)
            box = canvas.rect(layout.block, y, layout.block_end - layout.block, height, self.role, 7)
            x = layout.block + 10
            if inner:
                x += 2  # the same distance from the edge as in a blow-up
                canvas.text(x, y + 17, name.capitalize(), SMALL, width - 2, "faint")
                self.blow_ups.contents(x, y + 24, self.position, self.role, block, self.layers)
            else:
                canvas.text(x, y + 19, name.capitalize(), BIG, width, "strong")
                end = canvas.lines(x, y + 36, lines, width)
                if not here:
                    canvas.text(x, end, elsewhere, SMALL, width, "faint")
            if here:  # the blocks may differ in a field that is not drawn
                canvas.add_statement(box, f"{self.role}.block", repr(block), self.blow_ups.inner)
            self._anchor(self.role, y)

        return Piece(height, draw)

    def _anchor(self, name: str, y: float) -> None:
        if self.blow_ups.is_main(self.position, self.role):
            self.blow_ups.badges.draw(self.canvas, (name,), self.layout.block_end - 4, y)


def summary(block: Block) -> str:
    """Returns a summary of a block in a few words."""
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
    """Returns the printed name of a branch. A mixer that only keeps a state is not attention."""
    if isinstance(block, Mixer) and not block.cache_spec().per_token and not block.takes():
        return "token mixer"
    return BRANCH_NAMES[role]


def norm_name(canvas: Canvas, left: float, top: float, norm: Norm, place: str) -> None:
    """Draws the name in a norm's bar. The tooltip describes the multiplication by the weight, and differences in it are
    marked weakly."""
    css_class = canvas.with_fact("ink", f"{place}.fields", norm.describe(), weak=True)
    canvas.text(left + 10, top + 14.5, type(norm).__name__, SMALL, 160, css_class)
