"""SVG, as little of it as the diagrams need: shapes and text in absolute coordinates, and how wide a text may get.

Whatever says something about a model is drawn with a `fact`, the place it speaks of: the pair (place, what is drawn
there) is kept in `facts`. Drawn against the facts of another model, what that one does not have is marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

Facts = frozenset[tuple[str, str]]

# Advances of DejaVu Sans in hundredths of the font size: the widest face that a system's own font is likely to be.
_ADVANCES = {
    28: "'ijl",
    32: "IJ ,.·",
    35: "/:;\\|f",
    39: "-()[]t!",
    41: "r",
    52: '"*_`–sz?',
    58: "cLFk",
    60: "vxyP",
    64: "TYaoeESbdghnpqu$0123456789{}",
    70: "KAVBRXZC",
    79: "U&HNDGOQ",
    86: "w#+<=>^~×→−M",
}
_WIDTHS = {letter: width / 100 for width, letters in _ADVANCES.items() for letter in letters}
_BOLD = 1.13
_LONG = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def text_width(words: str, size: float, bold: bool = False) -> float:
    """The most that a line of text takes, in the unit of its font `size`."""
    return size * sum(_WIDTHS.get(letter, 1.0) for letter in words) * (_BOLD if bold else 1)


def fitted(words: str, size: float, room: float, bold: bool = False) -> str:
    """As much of a text as fits `room`, an ellipsis where some does not."""
    if text_width(words, size, bold) <= room + 0.01:  # a room may have been made from that width
        return words
    while words and text_width(f"{words}…", size, bold) > room:
        words = words[:-1]
    return f"{words.rstrip()}…"


def wrapped(words: str, size: float, room: float, bold: bool = False) -> list[str]:
    """A text in lines that fit `room`; a word that does not is cut short."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= room:
            lines[-1] = longer
        else:
            lines.append(fitted(word, size, room, bold))
    return lines


class Canvas:
    """An <svg> being drawn, `width` wide. Looks are class names of zoo/diagram/style.py."""

    def __init__(self, width: float, title: str, description: str, css: str, against: Facts | None = None) -> None:
        self.root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "zoo-diagram", "role": "img"})
        self.width, self.height = width, 0.0
        self.against = against
        self.marks = 0  # how often something was marked
        self._told = {"title": title, "desc": description}
        for tag, words in self._told.items():
            SubElement(self.root, tag).text = words
        SubElement(self.root, "style").text = css
        self._into = self.root
        self._facts: set[tuple[str, str]] = set()

    @property
    def facts(self) -> Facts:
        """Every (place, what is drawn there) so far."""
        return frozenset(self._facts)

    def finish(self, prefix: str) -> str:
        """The document; every id begins with `prefix`."""
        size = {"width": _n(self.width), "height": _n(self.height)}
        for element in self.root:
            if element.tag in self._told:
                element.set("id", f"{prefix}{element.tag}")
        labelled = " ".join(f"{prefix}{tag}" for tag in self._told)
        self.root.attrib |= {"viewBox": f"0 0 {size['width']} {size['height']}", "aria-labelledby": labelled} | size
        return ElementTree.tostring(self.root, encoding="unicode")

    @contextmanager
    def group(self, look: str, tip: str) -> Iterator[None]:
        """What is drawn inside belongs together; `tip` is shown where a pointer rests on it."""
        outer, self._into = self._into, self._add("g", look)
        SubElement(self._into, "title").text = tip
        yield
        self._into = outer

    def rect(self, x: float, y: float, width: float, height: float, look: str, round: float = 0) -> Element:
        """A rectangle, which `stretch` may make higher once it is known what stands in it."""
        corners = {"rx": _n(round)} if round else {}
        return self._add("rect", look, x=_n(x), y=_n(y), width=_n(width), height=_n(height), **corners)

    def path(self, d: str, look: str) -> Element:
        """A path, which `trace` may draw anew once it is known where it ends."""
        return trace(self._add("path", look), d)

    def circle(self, x: float, y: float, radius: float, look: str) -> Element:
        """A circle."""
        return self._add("circle", look, cx=_n(x), cy=_n(y), r=_n(radius))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float,
        room: float,
        look: str = "ink",
        anchor: str = "start",
        fact: str = "",
    ) -> float:
        """A line of text on the baseline `y`, cut to `room`; its whole is then its tip. Returns its greatest width."""
        bold = "strong" in look.split()
        shown = fitted(words, size, room, bold)
        places = {} if anchor == "start" else {"text-anchor": anchor}
        look = self.marked(look, fact, words) if fact else look
        element = self._add("text", look, x=_n(x), y=_n(y), **{"font-size": _n(size)}, **places)
        element.text = shown
        if shown != words:
            SubElement(element, "title").text = words
        return text_width(shown, size, bold)

    def marked(self, look: str, fact: str, says: str) -> str:
        """The look of what says something, with a mark if the other model does not say it at that place."""
        self._facts.add((fact, says))
        differs = self.against is not None and (fact, says) not in self.against
        self.marks += differs
        return f"{look} differs" if differs else look

    def _add(self, tag: str, look: str, **attributes: str) -> Element:
        return SubElement(self._into, tag, {"class": look} | attributes)


def _n(number: float) -> str:
    """A coordinate, to a hundredth."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def stretch(rect: Element, bottom: float) -> None:
    """Let a rectangle end at `bottom`."""
    rect.set("height", _n(bottom - float(rect.get("y", 0))))


def trace(path: Element, d: str) -> Element:
    """Let a path run along `d`, whose numbers may be of any length."""
    path.set("d", _LONG.sub(lambda number: _n(float(number[0])), d))
    return path
