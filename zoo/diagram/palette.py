"""Colours of the diagrams in a light and a dark theme, as CSS variables for a page or as literal attributes for a file.

A page can set the variables of `.zoo-diagram`, such as --zoo-ink, so that its diagrams follow its own colour scheme. A
file has no style sheet: all programs that draw SVG support presentation attributes, but many support neither variables
nor selectors.
"""

import re
from functools import cache
from itertools import chain
from typing import Literal

from zoo.costs import Chunk, Full, Reach, Window

Theme = Literal["auto", "light", "dark"]

FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","Liberation Sans",Arial,sans-serif'
# For files: common system fonts. None is wider than DejaVu Sans, with whose widths text is measured.
FILE_FONT = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"

# name -> (light, dark)
PALETTE = {
    "paper": ("#ffffff", "#11151c"),
    "card": ("#f6f7f9", "#191f29"),
    "edge": ("#d3d8e0", "#343d4b"),
    "ink": ("#1a222e", "#e9edf3"),
    "faint": ("#566170", "#a2adbc"),
    "line": ("#3d4858", "#b4bfcd"),
    "attn": ("#e9f0fb", "#16253b"),
    "attn-edge": ("#3a70c4", "#6a9eea"),
    "ffn": ("#e6f4e9", "#142a1b"),
    "ffn-edge": ("#2c8a4b", "#55b878"),
    "inputs": ("#fbe7dd", "#3b2214"),
    "inputs-edge": ("#b8603a", "#e08f66"),
    "norm": ("#fdf0cc", "#382e12"),
    "norm-edge": ("#b98200", "#d6a630"),
    "table": ("#eeebf9", "#272243"),
    "table-edge": ("#7565c2", "#9c8de8"),
    "kept": ("#d9622b", "#ef8b51"),
    "kept-fill": ("#fbeadf", "#38210f"),
    "rope": ("#f1e8fa", "#2f2043"),
    "rope-edge": ("#8a57c4", "#b78ae8"),
    "window": ("#d9f1f1", "#0f3033"),
    "window-edge": ("#0d878c", "#3fbcc0"),
    # The looks of layers: a colour has the same meaning in every diagram.
    "reach-full": Full.colours,
    "reach-nope": ("#a9bbd8", "#4b5f83"),
    "reach-window": Window.colours,
    "reach-chunk": Chunk.colours,
    "reach-sparse": ("#8857c6", "#b48be8"),
    "reach-entries": ("#c25f9c", "#dd86bb"),
    "reach-state": ("#d08b2c", "#d9a45c"),
    "ffn-dense": ("#9ed3ae", "#2f6b43"),
    "ffn-experts": ("#2c8a4b", "#5fc483"),
    "differs": ("#c8105f", "#ff6fae"),
    "resized": ("#7d4a63", "#d9aabf"),
}

# CSS class -> declarations; @name stands for a colour of the palette
RULES = {
    "paper": "fill:@paper",
    "card": "fill:@card;stroke:@edge",
    "frame": "fill:@card",
    "ink": "fill:@ink",
    "faint": "fill:@faint",
    "strong": "fill:@ink;font-weight:600",
    "attn": "fill:@attn;stroke:@attn-edge",
    "ffn": "fill:@ffn;stroke:@ffn-edge",
    "inputs": "fill:@inputs;stroke:@inputs-edge",
    "norm": "fill:@norm;stroke:@norm-edge",
    "table": "fill:@table;stroke:@table-edge",
    "inner": "fill:@paper;stroke:@edge",
    "latent": "fill:@kept-fill;stroke:@kept",
    "query": "fill:@attn-edge",
    "queries": "fill:none;stroke:@attn-edge",
    "keys": "fill:none;stroke:@kept",
    "experts": "fill:none;stroke:@ffn-edge;stroke-opacity:.22",
    "kept": "fill:@kept",
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
    "guide": "fill:none;stroke:@faint;stroke-width:.8;stroke-dasharray:2 3",
    "tip": "fill:@line",
    "plus": "fill:@card;stroke:@line;stroke-width:1.5",
    "badge": "fill:@ink",
    "badge-text": "fill:@paper;font-weight:600",
    "track": "fill:@edge;fill-opacity:.6",
    "params": "fill:@table-edge",
    "kv": "fill:@kept",
    "flops": "fill:@attn-edge",
    "none": "fill:@paper;stroke:@edge",
}
# Marks of differences from another model: strong for structure, weak if only a number differs.
MARKS = {
    ("text", "differs"): "fill:@differs;text-decoration:underline",
    ("rect", "differs"): "stroke:@differs;stroke-width:2",
    ("text", "resized"): "fill:@resized",
}
_COLOUR = re.compile(r"@([\w-]+)")


def palette() -> dict[str, tuple[str, str]]:
    """Maps the name of each colour to its values in light and in dark mode: PALETTE, and the colours of all kinds of
    Reach, including those defined outside the zoo."""
    return PALETTE | {f"reach-{kind.name}": kind.colours for kind in Reach.kinds.values()}


def rules() -> dict[str, str]:
    """Maps each CSS class to its declarations: RULES, and a fill colour for each class in zoo.diagram.looks."""
    looks = (name for name in palette() if name.startswith(("reach-", "ffn-")) and name != "ffn-edge")
    return RULES | {name: f"fill:@{name}" for name in looks}


def colours(dark: bool = False) -> str:
    """Returns the CSS variables of the light or the dark theme, for a page whose reader chooses a theme."""
    return ";".join(f"--zoo-{name}:{pair[dark]}" for name, pair in palette().items())


def css() -> str:
    """Returns the style sheet, which is the same for all diagrams. Each colour is declared twice: as the literal light
    colour, for programs without CSS variables, and as a variable."""
    selectors = {f".{name}": rule for name, rule in rules().items()}
    selectors |= {f"{tag}.{mark}": rule for (tag, mark), rule in MARKS.items()}
    dark = f"@media(prefers-color-scheme:dark){{:where(.zoo-diagram){{{colours(dark=True)}}}}}"
    base = f".zoo-diagram{{font-family:{FONT}}}.zoo-diagram text{{font-variant-numeric:tabular-nums}}"
    sheet = [f":where(.zoo-diagram){{{colours()}}}", dark, base]
    for selector, rule in selectors.items():
        light, variable = _literal(rule, dark=False), _COLOUR.sub(r"var(--zoo-\1)", rule)
        both = dict.fromkeys(chain.from_iterable(zip(light.split(";"), variable.split(";"), strict=True)))
        sheet.append(f".zoo-diagram {selector}{{{';'.join(both)}}}")
    return "\n".join(sheet)


@cache
def attributes(tag: str, css_classes: str, dark: bool) -> dict[str, str]:
    """Returns the style of an element with these CSS classes, as presentation attributes with literal colours."""
    known, classes = rules(), css_classes.split()
    found = [known[name] for name in classes if name in known]
    found += [MARKS[tag, name] for name in classes if (tag, name) in MARKS]
    declarations = (each.partition(":") for rule in found for each in _literal(rule, dark).split(";"))
    return {name: value for name, _, value in declarations}


def _literal(rule: str, dark: bool) -> str:
    known = palette()
    return _COLOUR.sub(lambda found: known[found[1]][dark], rule)
