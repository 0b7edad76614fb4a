"""The places of the names in a chart: beside their points, so that few names overlap."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Literal, NamedTuple

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
WIDTH, HEIGHT = 560, 340  # the narrowest plot that shows names; places are chosen for it
LETTER, LINE, POINT = 6.6, 13, 7  # the width of a letter, the height of a line, half a point, in pixels


class Place(NamedTuple):
    """The place of a name beside its point: to the right (align "left") or left, with an offset in pixels."""

    align: Literal["left", "right"]
    dx: int
    dy: int


PLACES = [place for dy in (0, -13, 13, -26, 26) for place in (Place("left", 10, dy), Place("right", -10, dy))]


def label_places(names: Sequence[str], x: Sequence[float], y: Sequence[float], domain: Sequence[float]) -> list[Place]:
    """Returns a place for the name of each point: the first of PLACES with the least overlap.

    Overlap counts with other points, with names placed before, and with the edges. `x` is on a logarithmic scale that
    shows `domain`, `y` on a linear one.
    """
    left, right = map(log, domain)
    low, high = min(y), max(y)
    across = [(log(value) - left) / (right - left) * WIDTH for value in x]
    down = [(high - value) / ((high - low) or 1) * HEIGHT for value in y]
    points = [(i - POINT, j - POINT, i + POINT, j + POINT) for i, j in zip(across, down, strict=True)]
    taken, chosen = list[Box](), list[Place]()
    for k, name in enumerate(names):
        others = [*points[:k], *points[k + 1 :], *taken]
        boxes = {place: _box(name, across[k], down[k], place) for place in PLACES}
        best = min(PLACES, key=lambda place: _cost(boxes[place], others))
        taken.append(boxes[best])
        chosen.append(best)
    return chosen


def _box(name: str, x: float, y: float, place: Place) -> Box:
    start = x + place.dx - (len(name) * LETTER if place.align == "right" else 0)
    return start, y + place.dy - LINE / 2, start + len(name) * LETTER, y + place.dy + LINE / 2


def _cost(box: Box, others: Sequence[Box]) -> float:
    """Returns the square pixels of a box that overlap others, or exceed the left and right edges."""
    left, top, right, bottom = box
    shared = sum(
        max(min(right, other[2]) - max(left, other[0]), 0) * max(min(bottom, other[3]) - max(top, other[1]), 0)
        for other in others
    )
    return shared + (max(-left, 0) + max(right - WIDTH, 0)) * LINE
