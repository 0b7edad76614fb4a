"""A small SVG canvas: shapes and text in absolute coordinates, the width of a text, and the style sheet.

Text and shapes that state something about a model are drawn with a `place`; the pairs (place, text) are its `facts`. A
canvas that compares against another model's facts marks what that model does not have in the same place.

A page restyles its diagrams by setting the variables --zoo-ink and so on of `.zoo-diagram`. Each rule names its light
colour before the variable, for programs that do not support variables.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

Facts = frozenset[tuple[str, str]]

FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","Liberation Sans",Arial,sans-serif'
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
    64: "TYaoeESbdghnpqu$0123456789{}",
    70: "KAVBRXZC",
    79: "U&HNDGOQ",
    86: "w#+<=>^~×→−M",
}
_WIDTHS = {letter: width / 100 for width, letters in _ADVANCES.items() for letter in letters}
_BOLD = 1.13  # width of bold text relative to regular
_LONG = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")

# name -> (light, dark)
PALETTE = {
    "paper": ("#ffffff", "#11151c"),
    "card": ("#f6f7f9", "#191f29"),
    "edge": ("#d3d8e0", "#343d4b"),
    "ink": ("#1a222e", "#e9edf3"),
    "faint": ("#566170", "#a2adbc"),
    "line": ("#3d4858", "#b4bfcd"),
    "attn": ("#e2ecfb", "#182a45"),
    "attn-edge": ("#3a70c4", "#6a9eea"),
    "ffn": ("#e0f3e4", "#15301e"),
    "ffn-edge": ("#2c8a4b", "#55b878"),
    "inputs": ("#fbe7dd", "#3b2214"),
    "inputs-edge": ("#b8603a", "#e08f66"),
    "norm": ("#fdf0cc", "#382e12"),
    "norm-edge": ("#b98200", "#d6a630"),
    "table": ("#eeebf9", "#272243"),
    "table-edge": ("#7565c2", "#9c8de8"),
    "kept": ("#d9622b", "#ef8b51"),
    "rope": ("#f1e8fa", "#2f2043"),
    "rope-edge": ("#8a57c4", "#b78ae8"),
    "window": ("#d9f1f1", "#0f3033"),
    "window-edge": ("#0d878c", "#3fbcc0"),
    "full-0": ("#5a6b86", "#8b9bb5"),
    "full-1": ("#aab6c8", "#56657d"),
    "full-2": ("#2f3b50", "#c9d3e2"),
    "full-3": ("#8391aa", "#707f99"),
    "window-0": ("#14969b", "#2fb0b5"),
    "window-1": ("#7fcfd1", "#1d6c70"),
    "window-2": ("#0a5f63", "#8adfe2"),
    "window-3": ("#49b2b6", "#268a8e"),
    "state-0": ("#b0762a", "#d9a45c"),
    "state-1": ("#e3c493", "#7a5726"),
    "state-2": ("#7d4f12", "#f0d3a4"),
    "state-3": ("#ca9d5f", "#a88048"),
    "differs": ("#c8105f", "#ff6fae"),
}

# class -> declarations; @name is a colour of the palette
RULES = {
    "paper": "fill:@paper",
    "card": "fill:@card;stroke:@edge",
    "ink": "fill:@ink",
    "faint": "fill:@faint",
    "strong": "fill:@ink;font-weight:600",
    "attn": "fill:@attn;stroke:@attn-edge",
    "ffn": "fill:@ffn;stroke:@ffn-edge",
    "inputs": "fill:@inputs;stroke:@inputs-edge",
    "norm": "fill:@norm;stroke:@norm-edge",
    "table": "fill:@table;stroke:@table-edge",
    "tied": "stroke-dasharray:4 3",
    "ghost": "fill:none;stroke:@edge;stroke-dasharray:3 3",
    "inner": "fill:@paper;stroke:@edge",
    "latent": "fill:@paper;stroke:@kept;stroke-width:1.5",
    "query": "fill:@attn-edge",
    "kept": "fill:@kept",
    "idle": "fill:none;stroke:@ffn-edge;stroke-opacity:.55",
    "chosen": "fill:@ffn-edge",
    "wide": "fill:@ffn-edge;fill-opacity:.25",
    "unseen": "fill:@paper;stroke:@edge",
    "seen": "fill:@attn-edge",
    "seen-window": "fill:@window-edge",
    "chip": "fill:@paper;stroke:@edge",
    "chip-rope": "fill:@rope;stroke:@rope-edge",
    "chip-nope": "fill:@paper;stroke:@rope-edge;stroke-dasharray:3 2",
    "chip-window": "fill:@window;stroke:@window-edge",
    "chip-norm": "fill:@norm;stroke:@norm-edge",
    "residual": "fill:none;stroke:@line;stroke-width:2.5",
    "rule": "fill:none;stroke:@edge",
    "branch": "fill:none;stroke:@line;stroke-width:1.3",
    "tip": "fill:@line",
    "plus": "fill:@card;stroke:@line;stroke-width:1.5",
    "track": "fill:@edge;fill-opacity:.6",
    "params": "fill:@table-edge",
    "kv": "fill:@kept",
    "flops": "fill:@attn-edge",
    **{f"kind-{name}": f"fill:@{name}" for name in PALETTE if name[-1].isdigit()},
}


def colours(dark: bool = False) -> str:
    """CSS declarations of the light or the dark scheme's variables, for a page that lets its reader choose one."""
    return ";".join(f"--zoo-{name}:{pair[dark]}" for name, pair in PALETTE.items())


def css() -> str:
    """The style sheet, the same for every diagram. Declarations have the light colour, and again the variable."""
    rules = {f".{name}": rule for name, rule in RULES.items()}
    rules["text.differs"] = "fill:@differs;text-decoration:underline"
    rules["rect.differs"] = "stroke:@differs;stroke-width:2"
    dark = f"@media(prefers-color-scheme:dark){{:where(.zoo-diagram){{{colours(dark=True)}}}}}"
    base = f".zoo-diagram{{font-family:{FONT}}}.zoo-diagram text{{font-variant-numeric:tabular-nums}}"
    sheet = [f":where(.zoo-diagram){{{colours()}}}", dark, base]
    for selector, rule in rules.items():
        light = re.sub(r"@([\w-]+)", lambda found: PALETTE[found[1]][0], rule).split(";")
        variable = re.sub(r"@([\w-]+)", r"var(--zoo-\1)", rule).split(";")
        both = dict.fromkeys(chain.from_iterable(zip(light, variable, strict=True)))
        sheet.append(f".zoo-diagram {selector}{{{';'.join(both)}}}")
    return "\n".join(sheet)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """An upper bound for the width of a line of text, in the unit of its font `size`."""
    return size * sum(_WIDTHS.get(letter, 1.0) for letter in text) * (_BOLD if bold else 1)


def fit_text(text: str, size: float, width: float, bold: bool = False) -> str:
    """The text, cut to `width` with an ellipsis where it is longer."""
    if text_width(text, size, bold) <= width + 0.01:  # the width may have been computed from this text
        return text
    while text and text_width(f"{text}…", size, bold) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def wrap_text(text: str, size: float, width: float, bold: bool = False) -> list[str]:
    """The text in lines of at most `width`; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(fit_text(word, size, width, bold))
    return lines


class Canvas:
    """An <svg> being drawn, `width` wide; set `height` before `finish`. CSS classes are the names in RULES."""

    def __init__(self, width: float, title: str, description: str, css: str, against: Facts | None = None) -> None:
        self.root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "zoo-diagram", "role": "img"})
        self.width, self.height = width, 0.0
        self.against = against
        self.marks = 0  # number of marked texts and shapes
        self.facts: set[tuple[str, str]] = set()  # every (place, text) drawn so far
        for tag, text in (("title", title), ("desc", description), ("style", css)):
            SubElement(self.root, tag).text = text
        self._parent = self.root

    def finish(self, prefix: str) -> str:
        """The document as text. Every id begins with `prefix`."""
        width, height = _n(self.width), _n(self.height)
        for label in self.root[:2]:
            label.set("id", f"{prefix}{label.tag}")
        self.root.attrib |= {"viewBox": f"0 0 {width} {height}", "aria-labelledby": f"{prefix}title {prefix}desc"}
        self.root.attrib |= {"width": width, "height": height}
        return ElementTree.tostring(self.root, encoding="unicode")

    @contextmanager
    def group(self, tooltip: str) -> Iterator[None]:
        """A group of everything drawn within, a part of the model, with a tooltip."""
        outer, self._parent = self._parent, self._add("g", "part")
        SubElement(self._parent, "title").text = tooltip
        yield
        self._parent = outer

    def rect(self, x: float, y: float, width: float, height: float, css_class: str, radius: float = 0) -> Element:
        """A rectangle; `stretch` changes its height once its contents are known."""
        corners = {"rx": _n(radius)} if radius else {}
        return self._add("rect", css_class, x=_n(x), y=_n(y), width=_n(width), height=_n(height), **corners)

    def path(self, d: str, css_class: str) -> Element:
        """A path; `trace` changes it once its end is known."""
        return trace(self._add("path", css_class), d)

    def circle(self, x: float, y: float, radius: float, css_class: str) -> Element:
        """A circle around (x, y)."""
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
        """A line of text on the baseline `y`; cut to `max_width`, with the whole as its tooltip. Returns its width."""
        bold = "strong" in css_class.split()
        shown = fit_text(text, size, max_width, bold)
        anchors = {} if anchor == "start" else {"text-anchor": anchor}
        css_class = self.marked(css_class, place, text) if place else css_class
        element = self._add("text", css_class, x=_n(x), y=_n(y), **{"font-size": _n(size)}, **anchors)
        element.text = shown
        if shown != text:
            SubElement(element, "title").text = text
        return text_width(shown, size, bold)

    def marked(self, css_class: str, place: str, text: str) -> str:
        """The class of what states `text` at `place`, with "differs" where the other model does not state it there."""
        self.facts.add((place, text))
        differs = self.against is not None and (place, text) not in self.against
        self.marks += differs
        return f"{css_class} differs" if differs else css_class

    def _add(self, tag: str, css_class: str, **attributes: str) -> Element:
        return SubElement(self._parent, tag, {"class": css_class} | attributes)


def _n(number: float) -> str:
    """A coordinate, to a hundredth."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def stretch(rect: Element, bottom: float) -> None:
    """Make a rectangle end at `bottom`."""
    rect.set("height", _n(bottom - float(rect.get("y", 0))))


def trace(path: Element, d: str) -> Element:
    """Set the commands of a path, its coordinates rounded to a hundredth."""
    path.set("d", _LONG.sub(lambda number: _n(float(number[0])), d))
    return path
