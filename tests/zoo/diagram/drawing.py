"""Reads a diagram back: its texts, boxes and heights, and misplaced elements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import zoo
from tests.presets import representatives
from zoo import GLU, GQA, Decoder, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, YarnScaling, names, pre, spec
from zoo.blocks import PostNorm
from zoo.diagram import svg
from zoo.diagram.canvas import SMALL, Fragment, text_width
from zoo.diagram.figure import fragments

CALLOUTS = (
    ("attn", "A sentence that is so long that it takes more than one line of the list, even where the page is wide."),
    ("rope", "Short."),
    ("rope", "Two about one part."),
    ("nowhere", "About a part that no model has."),
    (None, "About the whole."),
)
SVG = "{http://www.w3.org/2000/svg}"
SMALL_BOX = re.compile(r"M([-\d.]+) ([-\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z")
DASHED = re.compile(r"M([-\d.]+) ([-\d.]+)h([\d.]+)")

EXTREME = Decoder(
    vocab=10**9,
    dim=10**6,
    layers=tuple(
        Layer(
            pre(RMSNorm(1e-6, True, True), GQA(heads, 48, 1024, RoPE(1.25e9, YarnScaling(128, 131_072, 1.0)), 131_071)),
            PostNorm(MoE(2048, GLU(10**6, bias=True), SoftmaxTopK(1024, False, True), GLU(10**6)), RMSNorm(1e-6)),
        )
        for heads in (48, 96, 480)
        for _ in range(200)
    ),
    norm=RMSNorm(1e-6, True, True),
    tied=True,
    embed_scale=1234.5678,
    context=10**7 + 1,
)
MODELS = {name: spec(name) for name in names()} | {f"tiny {name}": spec(name, tiny=True) for name in names()}
MODELS |= {"extreme": EXTREME}
SHOWN = [*representatives(), *(f"tiny {name}" for name in representatives()), "extreme"]  # by default
BASE = Decoder(
    1000,
    64,
    (Layer(pre(RMSNorm(1e-6), GQA(8, 2, 16, RoPE(1e4))), pre(RMSNorm(1e-6), GLU(96))),) * 4,
    RMSNorm(1e-6),
    context=4096,
)
LAYOUTS = {"wide": {}, "narrow": {"layout": "narrow"}, "costs": {"costs": True}}
LAYOUTS |= {"narrow costs": {"layout": "narrow", "costs": True}}


def drawn(model: zoo.Decoder, **options: Any) -> Element:
    return ElementTree.fromstring(svg(model, "a title", **options))


def part(model: zoo.Decoder, row: str, *args: Any, layout: Any = "wide") -> Fragment:
    """Returns the part of a drawing that a method of Rows draws."""
    return fragments(model, lambda rows: getattr(rows, row)(*args), layout)[0]


def classes(element: Element) -> list[str]:
    return element.get("class", "").split()


def texts(root: Element, css_class: str = "") -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text") if not css_class or css_class in classes(text)]


def rects(root: Element, *of: str) -> list[Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if {*of} & {*classes(rect)}]


def small_boxes(root: Element, css_class: str) -> list[Area]:
    """The boxes of heads and experts, which are one path."""
    return [area for path in root.iter(f"{SVG}path") if css_class in classes(path) for area in _boxes(path)]


def _boxes(path: Element) -> Iterator[Area]:
    if path.get("stroke-width") and (found := DASHED.fullmatch(path.get("d", ""))):
        x, y, width = map(float, found.groups())
        height = float(path.get("stroke-width", 0))
        lengths = [float(length) for length in path.get("stroke-dasharray", "").split()]
        start, i = x, 0
        while start < x + width - 0.5:  # coordinates are rounded to a hundredth
            yield Area(start, y - height / 2, start + lengths[i], y + height / 2)
            start, i = start + lengths[i] + lengths[i + 1], (i + 2) % len(lengths)
    for found in SMALL_BOX.findall(path.get("d", "")):
        x, y, width, height = map(float, found)
        yield Area(x, y, x + width, y + height)


def _around(circle: Element) -> Area:
    x, y, radius = (float(circle.get(name, 0)) for name in ("cx", "cy", "r"))
    return Area(x - radius, y - radius, x + radius, y + radius)


def parts(root: Element) -> list[tuple[float, Element]]:
    """The parts that a drawing is stacked from, each with the y where it begins."""
    groups = [group for group in root if group.tag == f"{SVG}g"]
    return [(float(re.findall(r"[\d.]+", group.get("transform", ""))[1]), group) for group in groups]


class Area(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, other: Area) -> bool:
        return (
            self.left - 0.1 <= other.left
            and self.top - 0.1 <= other.top
            and other.right <= self.right + 0.1
            and other.bottom <= self.bottom + 0.1
        )

    def meets(self, other: Area) -> bool:
        return (
            self.left < other.right - 0.1
            and other.left < self.right - 0.1
            and self.top < other.bottom - 0.1
            and other.top < self.bottom - 0.1
        )

    def near(self, other: Area) -> bool:
        """Whether it is the same area, with coordinates rounded along a row."""
        return all(abs(a - b) < 0.5 for a, b in zip(self, other, strict=True))

    @property
    def size(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


def area(element: Element) -> Area:
    """The area of a rectangle, or of a line of text at most: capitals above the baseline, descenders below."""
    x, y = (float(element.get(name, 0)) for name in ("x", "y"))
    if element.tag == f"{SVG}rect":
        return Area(x, y, x + float(element.get("width", 0)), y + float(element.get("height", 0)))
    size = float(element.get("font-size", SMALL))
    wide = text_width(element.text or "", size, "strong" in classes(element))
    x -= {"end": wide, "middle": wide / 2}.get(element.get("text-anchor", ""), 0)
    return Area(x, y - 0.76 * size, x + wide, y + 0.24 * size)


def misplaced(root: Element) -> Iterator[str]:
    """Returns texts that leave the box in which they begin or that overlap another text or a head, boxes that cross
    each other, and elements that leave their part of the drawing."""
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    tops = [top for top, _ in parts(root)]
    for (top, part), end in zip(parts(root), [*tops[1:], height], strict=True):
        yield from _misplaced(part, Area(0, 0, width, end - top))


def _misplaced(part: Element, paper: Area) -> Iterator[str]:
    lines = [(text, area(text)) for text in part.iter(f"{SVG}text") if "badge-text" not in classes(text)]
    boxes = [(classes(rect), area(rect)) for rect in part.iter(f"{SVG}rect")]
    small = [box for path in part.iter(f"{SVG}path") for box in _boxes(path)]
    small += [_around(circle) for circle in part.iter(f"{SVG}circle") if "badge" in classes(circle)]
    for text, line in lines:
        at = float(text.get("x", 0)) + {"end": -0.5, "middle": 0}.get(text.get("text-anchor", ""), 0.5)
        anchor = Area(*[at, float(text.get("y", 0)) - 1] * 2)
        if not paper.holds(anchor):
            yield f"{text.text!r} is off the paper"
        around = min([paper, *(box for _, box in boxes if box.holds(anchor))], key=lambda box: box.size)
        if not around.holds(line):
            yield f"{text.text!r} leaves its box"
        if any(line.meets(box) for box in small):
            yield f"{text.text!r} is over a head, an expert or a number"
    for (text, line), (other, another) in combinations(lines, 2):
        if line.meets(another):
            yield f"{text.text!r} and {other.text!r} cover each other"
    for (css_class, box), (other_class, another_box) in combinations(boxes, 2):
        if box.meets(another_box) and not box.holds(another_box) and not another_box.holds(box):
            yield f"{css_class} and {other_class} cross"
    frame = Area(paper.left, -1, paper.right, paper.bottom + 1)  # frames overlap by one unit, so that no seam shows
    yield from (f"{css_class} leaves its part" for css_class, box in boxes if not frame.holds(box))
