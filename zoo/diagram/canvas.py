"""A small SVG canvas: shapes, text and its width, fragments that are stacked into a diagram, and the output file.

Text and shapes that state something about a model are drawn with a `place`. The pairs (place, text) are the `facts` of
the diagram. If another model's diagram lacks a fact, the elements that state it can be marked.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from zoo.diagram.palette import FILE_FONT, Theme, attributes, css
from zoo.errors import UsageError, require_package

SMALL, LINE = 11.5, 15.0  # default font size, and the distance between its baselines
PNG_SCALE = 2.0  # pixels per unit of a drawing
HEADER = 3  # number of elements before the shapes: title, desc and style

# Advance widths of DejaVu Sans in hundredths of the font size: the widest face among the usual system fonts.
_ADVANCES = {
    28: "'ijl",
    32: "IJ ,.·",
    35: "/:;\\|f",
    39: "-()[]t!",
    41: "r",
    52: '"*_`–sz?',
    58: "cLFk",
    60: "vxyP",
    64: "√TYaoeESbdghnpqu$0123456789{}",
    70: "KAVBRXZC",
    79: "U&HNDGOQ",
    86: "w#+<=>^~×→−M",
}
_WIDTHS = {letter: width / 100 for width, letters in _ADVANCES.items() for letter in letters}
_BOLD = 1.13  # width of bold text relative to regular
_LONG = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
# A number with its unit, as in descriptions. The 8 in top-8 and the 40 in x40 count as numbers too.
_NUMBER = re.compile(r"\d[\d,.]*(?:e[-+]?\d+)?(?:\s?(?:[kMBGT]i?B?|[KMG]iB)\b)?")


class Facts:
    """The statements of a diagram: pairs of a place and a text."""

    def __init__(self, stated: Iterable[tuple[str, str]]) -> None:
        self.stated = frozenset(stated)
        self.structures = frozenset((place, structure(text)) for place, text in self.stated)


class FactClass(str):
    """The CSS class of an element that states `text` at `place`. If it is `weak`, every difference is marked as lightly
    as a different number."""

    place: str
    text: str
    weak: bool


class Statement(NamedTuple):
    """An element that states something about a model. It is not marked if a statement in `inside` is."""

    element: Element
    place: str
    text: str
    weak: bool = False
    inside: range = range(0)


class Fragment(NamedTuple):
    """A part of a diagram, drawn downwards from y = 0. `svg` is its <g> element as text. The element is moved down by
    the heights of the fragments above it."""

    svg: str
    height: float


@lru_cache(maxsize=65_536)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Returns an upper bound for the width of a line of text in a font of this `size`, in the unit of `size`."""
    return size * sum(_WIDTHS.get(letter, 1.0) for letter in text) * (_BOLD if bold else 1)


def fit_text(text: str, size: float, width: float, bold: bool = False) -> str:
    """Returns the text, cut to `width` with an ellipsis if it is longer."""
    if text_width(text, size, bold) <= width + 0.01:  # the width may have been computed from this text
        return text
    while text and text_width(f"{text}…", size, bold) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def wrap_text(text: str, width: float, size: float = SMALL, bold: bool = False) -> list[str]:
    """Returns the text in lines of at most `width`. A word that is wider than a line is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= width + 0.01:
            lines[-1] = longer
        else:
            lines.append(fit_text(word, size, width, bold))
    return lines


def typeset(text: str) -> str:
    """Returns a description with typographic signs: 4,096 for 4096, ×8 for x8, 1/√168 for 168^-1/2."""
    text = re.sub(r"([\d.]+(?:e[+-]\d+)?)\^-1/2", lambda found: _inverse_root(float(found[1])), text)
    text = re.sub(r"(?<![\w.,])(\d{4,})(?![\w.,]*\w)", lambda found: f"{int(found[1]):,}", text)
    return re.sub(r"\bx(?=[\d(])", "×", text)


def _inverse_root(number: float) -> str:
    root = f"{number:,.2f}".rstrip("0").rstrip(".")
    return f"1/√{root}" if number != 1 else "1"


@lru_cache(maxsize=65_536)
def structure(text: str) -> str:
    """Returns a text without its numbers. Texts that differ only in numbers have the same structure."""
    return _NUMBER.sub("#", text)


class Canvas:
    """An <svg> of this `width` that is being drawn. It is a stack of fragments, each closed by `end_fragment`, or a
    single piece with its `height` set. The CSS classes are the names in zoo.diagram.palette.RULES."""

    def __init__(self, width: float, title: str, description: str) -> None:
        self.root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "zoo-diagram", "role": "img"})
        self.root.set("font-size", _n(SMALL))
        self.width, self.height = width, 0.0
        self.statements: list[Statement] = []
        self.facts: dict[tuple[str, str], None] = {}  # every (place, text) drawn so far, in order
        for tag, text in (("title", title), ("desc", description), ("style", "")):
            SubElement(self.root, tag).text = text
        self._parent = self.root
        self._fragments: list[tuple[Element, float]] = []

    def end_fragment(self, height: float) -> None:
        """Makes a fragment of everything drawn since the previous fragment. Its height is `height`, and it is placed
        below the earlier fragments."""
        group, start = Element("g"), HEADER + len(self._fragments)
        group.extend(self.root[start:])
        self.root[start:] = [group]
        self._fragments.append((group, float(ceil(height))))

    def fragments(self) -> list[Fragment]:
        """Returns the fragments drawn so far, from top to bottom. Their CSS classes need the style sheet of a page."""
        return [Fragment(ElementTree.tostring(group, encoding="unicode"), height) for group, height in self._fragments]

    def finish(self, prefix: str = "", theme: Theme = "auto") -> str:
        """Returns the document as text. Every id begins with `prefix`. Theme "auto" adds a style sheet with variables;
        "light" and "dark" write literal colours. A diagram made of fragments gets a background."""
        y = 0.0
        for group, height in self._fragments:
            group.set("transform", f"translate(0 {_n(y)})")
            y += height
        self.height = max(self.height, y)
        size = {"width": _n(self.width), "height": _n(self.height)}
        if self._fragments:
            corners = {"rx": "10"} if theme == "auto" else {}  # rounded corners would be transparent in a file
            self.root.insert(HEADER, Element("rect", {"class": "paper"} | corners | size))
        for label in self.root[:2]:
            label.set("id", f"{prefix}{label.tag}")
        view = {"viewBox": f"0 0 {size['width']} {size['height']}"}
        self.root.attrib |= view | {"aria-labelledby": f"{prefix}title {prefix}desc"} | size
        if theme == "auto":
            self.root[2].text = css()
        else:
            del self.root[2]
            _write_attributes(self.root, dark=theme == "dark")
        return ElementTree.tostring(self.root, encoding="unicode")

    @contextmanager
    def group(self, tooltip: str) -> Iterator[None]:
        """Groups everything that is drawn within the context under one tooltip."""
        outer, self._parent = self._parent, self._add("g", "part")
        SubElement(self._parent, "title").text = tooltip
        yield
        self._parent = outer

    def rect(self, x: float, y: float, width: float, height: float, css_class: str, radius: float = 0) -> Element:
        """Draws a rectangle. `stretch` can set its height later, when its contents are known."""
        corners = {"rx": _n(radius)} if radius else {}
        return self._add("rect", css_class, x=_n(x), y=_n(y), width=_n(width), height=_n(height), **corners)

    def boxes(self, boxes: Iterable[tuple[float, float, float, float]], css_class: str) -> None:
        """Draws many small boxes (x, y, width, height) as one path: a tenth of the text of separate rectangles."""
        d = "".join(f"M{_n(x)} {_n(y)}h{_n(w)}v{_n(h)}h-{_n(w)}z" for x, y, w, h in boxes)
        if d:
            self._add("path", css_class, d=d)

    def dashes(self, x: float, y: float, height: float, lengths: Sequence[float], repeats: int, css_class: str) -> None:
        """Draws a row of boxes as one dashed line. `lengths` (box, gap, box, gap, ...) repeats `repeats` times. The SVG
        text has the same length for any number of repeats."""
        width = sum(lengths) * repeats - lengths[-1]
        dashes = {"stroke-width": _n(height), "stroke-dasharray": " ".join(map(_n, lengths))}
        self._add("path", css_class, d=f"M{_n(x)} {_n(y + height / 2)}h{_n(width)}", **dashes)

    def path(self, d: str, css_class: str) -> Element:
        """Draws a path. Coordinates are rounded to a hundredth."""
        return self._add("path", css_class, d=_LONG.sub(lambda number: _n(float(number[0])), d))

    def circle(self, x: float, y: float, radius: float, css_class: str) -> Element:
        """Draws a circle around (x, y)."""
        return self._add("circle", css_class, cx=_n(x), cy=_n(y), r=_n(radius))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        max_width: float,
        css_class: str = "ink",
        anchor: str = "start",
        place: str = "",
    ) -> float:
        """Draws a line of text on the baseline `y`. Text wider than `max_width` is cut, and the tooltip has the whole
        text. Returns the width of the drawn text."""
        bold = "strong" in css_class.split()
        shown = fit_text(text, size, max_width, bold)
        others = {} if size == SMALL else {"font-size": _n(size)}
        others |= {} if anchor == "start" else {"text-anchor": anchor}
        css_class = self.with_fact(css_class, place, text) if place else css_class
        element = self._add("text", css_class, x=_n(x), y=_n(y), **others)
        element.text = shown
        if shown != text:
            SubElement(element, "title").text = text
        return text_width(shown, size, bold)

    def lines(self, x: float, y: float, lines: Iterable[str], width: float, css_class: str = "ink") -> float:
        """Draws lines of text, the first on the baseline `y`. Returns the baseline for a next line."""
        for line in lines:
            self.text(x, y, line, SMALL, width, css_class)
            y += LINE
        return y

    def with_fact(self, css_class: str, place: str, text: str, weak: bool = False) -> str:
        """Returns the CSS class of an element that states `text` at `place`."""
        self.facts[place, text] = None
        stated = FactClass(css_class)
        stated.place, stated.text, stated.weak = place, text, weak
        return stated

    def add_statement(self, element: Element, place: str, text: str, inside: range) -> None:
        """Records that an element states `text` at `place`. It is not marked if a statement in `inside` is."""
        self.facts[place, text] = None
        self.statements.append(Statement(element, place, text, inside=inside))

    def marks(self, other: Facts) -> list[tuple[Element, str]]:
        """Returns (element, mark) for each element whose statement is not in the `other` diagram. The mark is "resized"
        if the other diagram has the same text with different numbers at this place, else "differs"."""
        marks: list[str] = []
        for each in self.statements:
            mark = "resized" if each.weak or (each.place, structure(each.text)) in other.structures else "differs"
            same = (each.place, each.text) in other.stated or any(marks[i] for i in each.inside)
            marks.append("" if same else mark)
        return [(each.element, mark) for each, mark in zip(self.statements, marks, strict=True) if mark]

    def mark(self, other: Facts) -> None:
        """Adds its mark as a CSS class to each element that `marks` returns."""
        for element, mark in self.marks(other):
            element.set("class", f"{element.get('class')} {mark}")

    def _add(self, tag: str, css_class: str, **attributes: str) -> Element:
        element = SubElement(self._parent, tag, {"class": str(css_class)} | attributes)
        if isinstance(css_class, FactClass):
            self.statements.append(Statement(element, css_class.place, css_class.text, css_class.weak))
        return element


def _write_attributes(root: Element, dark: bool) -> None:
    """Replaces the CSS classes of all elements by presentation attributes."""
    for element in root.iter():
        if css_class := element.attrib.pop("class", ""):
            element.attrib |= attributes(element.tag, css_class, dark)
    root.set("font-family", FILE_FONT)


def _n(number: float) -> str:
    """Returns a coordinate as text, rounded to a hundredth."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def stretch(rect: Element, bottom: float) -> None:
    """Makes a rectangle end at `bottom`."""
    rect.set("height", _n(bottom - float(rect.get("y", 0))))


def encode(drawing: str, path: Path) -> bytes:
    """Returns the content of the file `path` for a diagram with literal colours (theme "light" or "dark"). The suffix
    of the path is the format. PNG has two pixels per unit. Raises UsageError for an unknown suffix, NotAvailable if the
    package that draws PNG and PDF is missing."""
    suffix = path.suffix.lower()
    if suffix == ".svg":
        return f"{drawing}\n".encode()
    if suffix not in (".png", ".pdf"):
        raise UsageError(f"{path} must end in .svg, .png or .pdf")
    require_package("vl_convert", "gallery")
    import vl_convert

    if suffix == ".png":
        return bytes(vl_convert.svg_to_png(drawing, scale=PNG_SCALE))
    return bytes(vl_convert.svg_to_pdf(drawing))
