"""The region in which the inside of a block is drawn, and its shapes: stages of computation in columns, masks, boxes
for heads, grids of experts, chips. Each shape starts at the top of its `Region` and returns the y below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import gcd
from typing import NamedTuple

from zoo.blocks import Router
from zoo.costs import Reach
from zoo.diagram.canvas import LINE, SMALL, Canvas, text_width, wrap_text
from zoo.registry import Spec

BIG = 13.5  # font size of names
PAD = 5.0  # sum of the space above and below the text in a box
ARROW = 9.0  # length of the arrow between two stages
MASK = 38.0  # side of a mask
MAX_HEADS, MAX_EXPERTS = 64, 512  # above these numbers, heads become one bar and experts are not drawn


@dataclass(frozen=True)
class Region:
    """The region for the inside of a block: `width` wide, from (x, y) downwards, in a model of width `dim`. `place` is
    the prefix of all places in it (see Canvas.facts). `badges` holds the call-out numbers to draw, by part."""

    canvas: Canvas
    x: float
    y: float
    width: float
    dim: int
    place: str
    badges: Badges | None = None

    def at(self, y: float) -> Region:
        """Returns this region with its top at `y`."""
        return replace(self, y=y)

    def line(self, text: str, fact: str, size: float = SMALL, css_class: str = "ink", left: float = 0) -> float:
        """Draws a line of text on the baseline y. It states `fact`, unless that is empty. Returns its width."""
        place = fact and f"{self.place}.{fact}"
        return self.canvas.text(self.x + left, self.y, text, size, self.width - left, css_class, place=place)

    def badges_width(self, names: Sequence[str]) -> float:
        """Returns the width that the call-out numbers of these parts take."""
        numbers = self.badges.about(names) if self.badges else []
        return len(numbers) * 2.2 * BADGE + 3 if numbers else 0.0

    def badge(self, names: Sequence[str], x: float, y: float) -> None:
        """Draws the call-out numbers of these parts side by side, the last one centred at (x, y)."""
        if self.badges:
            self.badges.draw(self.canvas, names, x, y)


@dataclass(frozen=True)
class Badges:
    """The call-out numbers that have not been drawn yet (`left`), each with the name of its part. With `only`, other
    numbers are not drawn here."""

    left: dict[int, str]
    only: frozenset[int] | None = None

    def among(self, numbers: Iterable[int]) -> Badges:
        """Returns these badges without the numbers that are not among `numbers`."""
        return replace(self, only=frozenset(numbers))

    def about(self, names: Sequence[str]) -> list[int]:
        """Returns the call-out numbers of these parts, the largest first."""
        found = (number for number, part in self.left.items() if part in names)
        return sorted((number for number in found if self.only is None or number in self.only), reverse=True)

    def draw(self, canvas: Canvas, names: Sequence[str], x: float, y: float) -> None:
        """Draws the call-out numbers of these parts side by side, the last at (x, y), and removes them from `left`."""
        for i, number in enumerate(self.about(names)):
            del self.left[number]
            draw_badge(canvas, number, x - i * 2.2 * BADGE, y)


BADGE = 8.5  # radius


def draw_badge(canvas: Canvas, number: int, x: float, y: float) -> None:
    """Draws a number in a circle centred at (x, y)."""
    canvas.circle(x, y, BADGE, "badge")
    canvas.text(x, y + 4.1, str(number), SMALL, 2 * BADGE, "badge-text", "middle")


class Bar(NamedTuple):
    """A box of text over the columns `first` to `last`."""

    first: int
    last: int
    text: str
    css_class: str
    fact: str


class Lanes:
    """Columns side by side, in which the stages of a computation are drawn from top to bottom. An arrow leads from each
    box to the next box that covers one of its columns."""

    def __init__(self, region: Region, shares: Sequence[float], gap: float = 10.0) -> None:
        self.region = region
        usable = region.width - gap * (len(shares) - 1)
        self.columns: list[tuple[float, float]] = []  # left edge and width
        x = region.x
        for share in shares:
            self.columns.append((x, share / sum(shares) * usable))
            x += self.columns[-1][1] + gap
        self.starts: list[float | None] = [None] * len(shares)  # y below the last box of each column
        self.spans = [(column, column) for column in range(len(shares))]  # first and last column of that box
        self.y = region.y

    def span(self, first: int, last: int) -> tuple[float, float]:
        """Returns the left edge of columns `first` to `last` and their total width."""
        x, (right, width) = self.columns[first][0], self.columns[last]
        return x, right + width - x

    def reserve(self, first: int, last: int, top: float) -> None:
        """Draws an arrow from each last box in columns `first` to `last` down to `top`."""
        arrows = []
        for column in range(first, last + 1):
            start, (left, right) = self.starts[column], self.spans[column]
            if start is not None and start < top and column == max(left, first):  # one arrow for each box
                x, width = self.span(max(left, first), min(right, last))
                arrows.append((x + width / 2, start))
        if arrows:
            shafts = "".join(f"M{x} {start}V{top - 4}" for x, start in arrows)
            self.region.canvas.path(shafts, "branch")
            self.region.canvas.path("".join(f"M{x} {top}l-3 -5h6z" for x, _ in arrows), "tip")

    def stage(self, *bars: Bar, badges: Sequence[str] = ()) -> None:
        """Draws boxes side by side, below all earlier boxes in their columns. `badges` names the parts whose call-out
        numbers are drawn in the first box."""
        following = [start for bar in bars for start in self.starts[bar.first : bar.last + 1] if start is not None]
        top = max([*following, self.y - ARROW]) + ARROW if following else self.y
        for bar in bars:
            x, width = self.span(bar.first, bar.last)
            free = 2 * self.region.badges_width(badges) if bar is bars[0] else 0  # on both sides: the text is centred
            lines = wrap_text(bar.text, width - 10 - free)
            height = LINE * len(lines) + PAD
            canvas, place = self.region.canvas, f"{self.region.place}.{bar.fact}"
            self.reserve(bar.first, bar.last, top)
            canvas.rect(x, top, width, height, canvas.with_fact(bar.css_class, place, bar.text), 5)
            draw_lines(self.region, x, top, width, lines, bar.fact, bar.text)
            self.taken(bar.first, bar.last, top + height)
            if bar is bars[0]:
                self.region.badge(badges, x + width - BADGE - 3, top + height / 2)

    def box(self, first: int, last: int, height: float) -> tuple[float, float]:
        """Draws an empty box over columns `first` to `last`, below earlier boxes. Returns its left edge and its top."""
        starts = [start for start in self.starts[first : last + 1] if start is not None]
        top = max(starts) + ARROW if starts else self.y
        self.reserve(first, last, top)
        x, width = self.span(first, last)
        self.region.canvas.rect(x, top, width, height, "inner", 5)
        self.taken(first, last, top + height)
        return x, top

    def taken(self, first: int, last: int, bottom: float) -> None:
        """Records that columns `first` to `last` are occupied down to `bottom`."""
        self.starts[first : last + 1] = [bottom] * (last + 1 - first)
        self.spans[first : last + 1] = [(first, last)] * (last + 1 - first)
        self.y = max(self.y, bottom)


def draw_lines(region: Region, x: float, top: float, width: float, lines: Sequence[str], fact: str, text: str) -> None:
    """Draws lines of text in the middle of a box. They are marked together, since they state the whole `text`."""
    place = f"{region.place}.{fact}"
    css_class = region.canvas.with_fact("ink", place, text)
    for i, line in enumerate(lines):
        baseline = top + PAD / 2 + LINE * i + 11.2
        region.canvas.text(x + width / 2, baseline, line, SMALL, width - 6, css_class, "middle")


def title(region: Region, name: str, *details: tuple[str, str], fact: str = "kind") -> float:
    """Draws a block's name, then its `details`, in as many lines as needed. Returns the y below them.

    A detail is (text, name of the property that the text states). `fact` is the property that the block's name states.
    """
    y = region.y + BIG - 2
    left = region.at(y).line(name, fact, BIG, "strong") + 10
    for text, detail in details:
        width = text_width(text, SMALL)
        if left and left + width > region.width:
            y, left = y + LINE + 1, 0.0
        if width <= region.width:
            left += region.at(y).line(text, detail, css_class="faint", left=left) + 8
        else:
            for line in wrap_text(text, region.width):
                region.at(y).line(line, detail, css_class="faint")
                y += LINE
            y, left = y - LINE, region.width
    return y + 8


def mask(region: Region, reach: Reach) -> None:
    """Draws which tokens (columns) each token (row) sees. A limited reach is drawn as if limited to three tokens."""
    canvas, cells = region.canvas, 8
    side = (MASK - 2) / cells
    css_class = canvas.with_fact("unseen", f"{region.place}.reach", reach.describe())
    canvas.rect(region.x, region.y, MASK, MASK, css_class, 2)
    small = reach.bounded(3)
    rows = []
    for i in range(cells):
        for is_seen, run in groupby(range(i + 1), partial(small.sees, i)):
            columns = list(run)
            if is_seen:
                x, y = region.x + 1 + side * columns[0], region.y + 1 + side * i
                rows.append((x, y, side * len(columns), side - 0.5))
    canvas.boxes(rows, "seen" if reach.is_full else "seen-window")


def heads(region: Region, number: int, groups: int, css_class: str) -> float:
    """Draws a box for each head. Heads that share a key and value form a group. More than MAX_HEADS heads become a
    single bar. Returns the y below them."""
    height = 11.0
    if number > MAX_HEADS:
        region.canvas.dashes(region.x, region.y, height, (region.width, 1.0), 1, css_class)
        return region.y + height
    gap = 0.0 if groups == number else 3.0 if number <= 32 else 2.0
    if gap * (groups - 1) > region.width / 2:
        gap, groups = 0.0, number
    pitch = min(13.0, (region.width - gap * (groups - 1)) / number)
    left = region.x + (region.width - pitch * number - gap * (groups - 1)) / 2
    box, several = pitch - 1 if pitch > 4 else pitch * 0.75, number // groups
    lengths = [box, pitch - box] * (several - 1) + [box, pitch - box + gap]
    region.canvas.dashes(left, region.y, height, lengths, groups, css_class)
    return region.y + height


def experts(region: Region, number: int, groups: int, chosen: Iterable[int]) -> float:
    """Draws a square for each expert, with groups one below another. Fills the `chosen` ones. Returns the y below."""
    if number > MAX_EXPERTS:
        return region.y
    size = number // groups
    columns = min(size, 32)
    pitch = min(12.0, region.width / columns)
    height, gap = -(-size // columns) * pitch, 2.0 if groups > 1 else 0.0
    left = region.x + (region.width - columns * pitch) / 2
    side = pitch - (1.6 if pitch > 5 else 0.8)

    def corner(expert: int) -> tuple[float, float]:
        group, index = divmod(expert, size)
        row, column = divmod(index, columns)
        return left + column * pitch, region.y + group * (height + gap) + row * pitch

    for first in range(0, number, size):
        for start in range(first, first + size, columns):  # a row; the last row of a group can be shorter
            width = min(columns, first + size - start)
            region.canvas.dashes(*corner(start), side, (side, pitch - side), width, "experts")
    region.canvas.boxes([(*corner(expert), side, side) for expert in sorted(chosen)], "chosen")
    return region.y + groups * (height + gap) - gap


def example_choice(router: Router, number: int) -> tuple[int, list[int]]:
    """Returns an example of a router's choice: the number of groups, and k experts that it could choose together."""
    groups, keep = getattr(router, "groups", 1), getattr(router, "keep", 1)
    size, kept = number // groups, _spread(keep, groups)
    return groups, [kept[i // size] * size + i % size for i in _spread(router.k, keep * size)]


def _spread(k: int, number: int) -> list[int]:
    """Returns k different integers below `number`. Their stride is near the golden ratio, so that they look random."""
    stride = round(number * 0.618)
    while gcd(stride, number) != 1:
        stride += 1
    return sorted((3 + i * stride) % number for i in range(k))


def chips(region: Region, texts: Sequence[tuple[str, str]]) -> float:
    """Draws short texts (text, fact) in rounded boxes side by side, in as many lines as needed. Returns the y below
    them."""
    x, y = region.x, region.y
    for text, fact in texts:
        lines = wrap_text(text, region.width - 14)
        width = max(text_width(line, SMALL) for line in lines) + 14
        height = LINE * len(lines) + 3
        if x > region.x and x + width > region.x + region.width:
            x, y = region.x, y + LINE + 7
        css_class = region.canvas.with_fact("chip", f"{region.place}.{fact}", text)
        region.canvas.rect(x, y, width, height, css_class, 8)
        draw_lines(region, x, y - 1, width, lines, fact, text)
        x, y = x + width + 6, y + height - LINE - 3
    return y + LINE + 3


def kind(block: Spec) -> str:
    """Returns the usual name of a block."""
    return block.names()[0]


def output(lanes: Lanes, last: int, inner: int) -> float:
    """Draws the output projection of a block over columns 0 to `last`. Returns the y below it."""
    lanes.stage(Bar(0, last, f"output {inner:,} → {lanes.region.dim:,}", "inner", "output"))
    return lanes.y
