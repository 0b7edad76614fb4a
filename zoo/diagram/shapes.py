"""What insides are made of: lines of text, chips, head boxes, masks, latents, hourglasses, grids of experts.

Each shape is drawn into a `Room` from its top, and says where it ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from zoo.diagram.canvas import Canvas, text_width

BIG, SMALL, TINY = 12.5, 10.0, 9.0  # font sizes
GLYPH = 34.0
MOST_HEADS, MOST_EXPERTS = 64, 512  # drawn one by one; more are told in figures alone


@dataclass(frozen=True)
class Room:
    """Where a block's inside may be drawn: from (x, y) down, `width` wide, beside a residual stream of `dim`."""

    canvas: Canvas
    x: float
    y: float
    width: float
    dim: int
    place: str  # of what is said here, for Canvas.facts

    def down(self, y: float) -> Room:
        """The same from `y` on."""
        return replace(self, y=y)

    def line(
        self, words: str, fact: str, size: float = SMALL, look: str = "ink", less: float = 0, at: float = 0
    ) -> float:
        """A line of text `at` right of the left edge; returns its width. `less` of the width is kept free."""
        room, fact = self.width - less - at, f"{self.place}.{fact}"
        return self.canvas.text(self.x + at, self.y, words, size, room, look, fact=fact)


class Chip(NamedTuple):
    """A word or two in a box."""

    words: str
    look: str = "chip"


def mask(room: Room, seen: str, windowed: bool) -> None:
    """In the top right corner, which tokens (columns) a token (row) sees."""
    x, cells, across = room.x + room.width - GLYPH, 8, 3 if windowed else 8
    side = (GLYPH - 2) / cells
    room.canvas.rect(x, room.y, GLYPH, GLYPH, room.canvas.marked("unseen", f"{room.place}.window", seen), 2)
    steps = "".join(
        f"M{x + 1 + side * max(0, i - across + 1)} {room.y + 1 + side * i}"
        f"h{side * min(i + 1, across)}v{side - 0.5}h-{side * min(i + 1, across)}z"
        for i in range(cells)
    )
    room.canvas.path(steps, "seen-window" if windowed else "seen")


def heads(room: Room, queries: int, groups: int) -> float:
    """A box for each query head, and below each group's one for the key and one for the value that it shares."""
    if queries > MOST_HEADS:
        return room.y
    left, gap = 18.0, 3.0 if groups < queries else 1.0
    pitch = min(13.0, (room.width - left - gap * (groups - 1)) / queries)
    box, corner = (pitch - 1, 1) if pitch > 4 else (pitch * 0.8, 0)
    room.canvas.text(room.x, room.y + 8, "q", TINY, left, "faint")
    room.canvas.text(room.x, room.y + 21, "kv", TINY, left, "faint")
    per_group = queries // groups
    for group in range(groups):
        x = room.x + left + group * (per_group * pitch + gap)
        for i in range(per_group):
            room.canvas.rect(x + i * pitch, room.y, box, 9, "query", corner)
        for y in (room.y + 11.5, room.y + 18.5):
            room.canvas.rect(x, y, (per_group - 1) * pitch + box, 5.5, "kept", corner)
    return room.y + 24


def flow(room: Room, source: str, look: str, target: str, fact: str) -> float:
    """A latent and what is made from it."""
    height, arrow = 18.0, 14.0
    first = (room.width - arrow) * 0.48
    boxes = ((0.0, first, source, look), (first + arrow, room.width - first - arrow, target, "inner"))
    for (at, width, words, box), part in zip(boxes, ("from", "to"), strict=True):
        room.canvas.rect(room.x + at, room.y, width, height, box, 3)
        middle = room.x + at + width / 2
        place = f"{room.place}.{fact}.{part}"
        room.canvas.text(middle, room.y + 12.5, words, TINY, width - 6, anchor="middle", fact=place)
    x, y = room.x + first, room.y + height / 2
    room.canvas.path(f"M{x + 2} {y}h{arrow - 6}", "branch")
    room.canvas.path(f"M{x + arrow - 1} {y}l-5 -3v6z", "tip")
    return room.y + height


def hourglass(room: Room, hidden: int) -> float:
    """From the width of the stream to that of the hidden numbers, and back."""
    height, most = 20.0, max(hidden, room.dim)
    outer, inner = (room.width * width / most / 2 for width in (room.dim, hidden))
    middle, y = room.x + room.width / 2, room.y
    room.canvas.path(
        f"M{middle - outer} {y}H{middle + outer}L{middle + inner} {y + height / 2}"
        f"L{middle + outer} {y + height}H{middle - outer}L{middle - inner} {y + height / 2}z",
        "wide",
    )
    room.canvas.text(middle, y + height / 2 + 3.5, f"× {hidden / room.dim:.3g}", TINY, room.width, anchor="middle")
    return y + height


def grid(room: Room, experts: int, groups: int, chosen: list[int]) -> float:
    """A square for each expert, group below group, those filled that one token goes to."""
    if experts > MOST_EXPERTS:
        return room.y - 7
    size = experts // groups
    across = min(size, 32)
    pitch = min(11.0, room.width / across)
    tall, gap = -(-size // across) * pitch, 2.0 if groups > 1 else 0.0
    for expert in range(experts):
        group, place = divmod(expert, size)
        row, column = divmod(place, across)
        x, y = room.x + column * pitch, room.y + group * (tall + gap) + row * pitch
        room.canvas.rect(x, y, pitch - 1.6, pitch - 1.6, "chosen" if expert in chosen else "idle", 1.2)
    return room.y + groups * (tall + gap) - gap


def chips(room: Room, told: list[Chip], fact: str = "says", less: float = 0, at: float = 0) -> float:
    """Words in boxes, side by side as far as there is room; `less` of it is kept free, the first line begins `at`."""
    x, y, height, end = room.x + at, room.y, 15.0, room.x + room.width - less
    place = f"{room.place}.{fact}"
    for words, look in told:
        width = min(text_width(words, TINY) + 12, end - room.x)
        if x + width > end:
            x, y = room.x, y + height + 4
        room.canvas.rect(x, y, width, height, room.canvas.marked(look, place, words), 7)
        room.canvas.text(x + width / 2, y + 10.8, words, TINY, width - 12, anchor="middle", fact=place)
        x += width + 5
    return y + height
