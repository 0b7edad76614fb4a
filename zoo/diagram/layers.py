"""A card for each kind of layer: the residual stream at the left, and its two branches with their norms."""

from __future__ import annotations

from dataclasses import dataclass, field

from zoo.blocks import Layer
from zoo.blocks.layer import Branch, Placement, PostNorm
from zoo.blocks.norms import RMSNorm
from zoo.diagram.canvas import Canvas, stretch, trace
from zoo.diagram.costs import Totals, columns, of_block, tip
from zoo.diagram.insides import inside
from zoo.diagram.shapes import SMALL, Room
from zoo.registry import Block
from zoo.swaps.rebuild import features

LEFT, FRONT, STREAM, RAIL = 16.0, 22.0, 36.0, 82.0  # a card, what stands on the stream, the stream, a branch
BLOCK, BLOCK_END, END = 62.0, 326.0, 544.0
GAP, BAR, PLUS = 11.0, 19.0, 7.0
NAMES = {"attn": "attention", "ffn": "feed-forward"}


@dataclass
class Cards:
    """The cards as they are drawn, one below the other. A branch that an earlier card shows is not drawn again."""

    canvas: Canvas
    whole: Totals
    shown: dict[tuple[str, Placement], tuple[str, str]] = field(default_factory=dict)  # -> the card's label and look

    def card(self, y: float, layer: Layer, label: str, number: int, colour: str) -> float:
        """One kind of layer, of which there are `number`; returns the y below it."""
        frame = self.canvas.rect(LEFT, y, END - LEFT, 0, "card", 8)
        stream = self.canvas.path("", "residual")
        look = f"kind-{colour}"
        self.canvas.rect(BLOCK, y + 9, 10, 10, look, 2)
        title = f"{number:,} layer{'s' * (number > 1)}, {label}"
        self.canvas.text(BLOCK + 16, y + 18, title, 11.5, BLOCK_END - BLOCK - 16, "strong")
        columns(self.canvas, y + 18, of_block(layer, number, self.whole), self.whole)
        self.canvas.path(f"M{BLOCK} {y + 26}H{END - 10}", "rule")
        bottom = y + 26
        for slot, branch in (("attn", layer.attn), ("ffn", layer.ffn)):
            bottom = self._branch(bottom, slot, branch, (label, look), number)
        bottom += 6
        stretch(frame, bottom)
        trace(stream, f"M{STREAM} {y - GAP}V{bottom + 1}")
        return bottom

    def _branch(self, y: float, slot: str, placement: Placement, card: tuple[str, str], number: int) -> float:
        """From where a branch leaves the stream to where it has come back."""
        self.canvas.circle(STREAM, y + 8, 2.6, "tip")
        y += 22
        self.canvas.path(f"M{STREAM} {y - 14}H{RAIL - 6}q6 0 6 6v4", "branch")
        self.canvas.path(f"M{RAIL} {y}l-3 -5h6z", "tip")
        earlier = self.shown.get((slot, placement))
        if earlier is not None:
            y = self._same(y, slot, placement, earlier, number)
        else:
            self.shown[slot, placement] = card
            before, after = (placement.pre, placement.post) if isinstance(placement, Branch) else (None, None)
            if before:
                y = self._arrow(self.norm(y, before, number, f"{slot}.norm before"))
            y = self._block(y, slot, placement.block, number)
            if after:
                y = self.norm(self._arrow(y), after, number, f"{slot}.norm after")
        self.canvas.path(f"M{RAIL} {y}v5q0 6 -6 6H{STREAM + PLUS}", "branch")
        y += 11
        self._plus(y)
        y += PLUS
        if isinstance(placement, PostNorm) and earlier is None:
            y = self.norm(y + 7, placement.norm, number, f"{slot}.norm on the stream", FRONT)
        return y + 4

    def _block(self, y: float, slot: str, block: Block, number: int) -> float:
        cost = of_block(block, number, self.whole)
        with self.canvas.group("part", tip(NAMES[slot], cost)):
            before = self.canvas.marks
            box = self.canvas.rect(BLOCK, y, BLOCK_END - BLOCK, 0, slot, 6)
            room = Room(self.canvas, BLOCK + 10, y + 7, BLOCK_END - BLOCK - 20, self.whole.spec.dim, slot)
            bottom = max(inside(block, room) + 9, y + 48)
            stretch(box, bottom)
            if self.canvas.marks == before:  # it may differ in what is not drawn
                box.set("class", self.canvas.marked(slot, f"{slot}.block", repr(block)))
            columns(self.canvas, y + 18, cost, self.whole, detailed=True)
        return bottom

    def norm(self, y: float, norm: RMSNorm, number: int, place: str, left: float = BLOCK) -> float:
        """A norm, as a bar; from `left` on so that the stream runs into it."""
        cost = of_block(norm, number, self.whole)
        words = ", ".join([type(norm).__name__, *features(norm).values()])
        look = self.canvas.marked("norm", place, norm.describe())
        with self.canvas.group("part", tip(norm.describe(), cost)):
            self.canvas.rect(left, y, BLOCK_END - left, BAR, look, 4)
            self.canvas.text(left + 10, y + 13, words, SMALL, BLOCK_END - left - 20)
            columns(self.canvas, y + 13, cost, self.whole)
        return y + BAR

    def _same(self, y: float, slot: str, placement: Placement, earlier: tuple[str, str], number: int) -> float:
        cost = of_block(placement, number, self.whole)
        words, (label, look) = f"{NAMES[slot]} as in", earlier
        with self.canvas.group("part", tip(f"{words} {label}", cost)):
            self.canvas.rect(BLOCK, y, BLOCK_END - BLOCK, BAR + 3, "ghost", 4)
            x = BLOCK + 16 + self.canvas.text(BLOCK + 10, y + 14.5, words, SMALL, 120, "faint")
            self.canvas.rect(x, y + 6.5, 9, 9, look, 2)
            self.canvas.text(x + 14, y + 14.5, label, SMALL, BLOCK_END - x - 24, "faint")
            columns(self.canvas, y + 14.5, cost, self.whole)
        return y + BAR + 3

    def stream(self, y: float, end: float) -> None:
        """The residual stream from `y` to `end`."""
        self.canvas.path(f"M{STREAM} {y}V{end}", "residual")

    def _arrow(self, y: float) -> float:
        """From one block of a branch down to the next."""
        self.canvas.path(f"M{RAIL} {y}v{GAP - 4}", "branch")
        self.canvas.path(f"M{RAIL} {y + GAP}l-3 -5h6z", "tip")
        return y + GAP

    def _plus(self, y: float) -> None:
        self.canvas.circle(STREAM, y, PLUS, "plus")
        self.canvas.path(f"M{STREAM - 3.5} {y}h7M{STREAM} {y - 3.5}v7", "branch")
