"""The text on blocks, written once: docs/blocks.md for readers of the repository, and a section of the page.

static/blocks.md is a template. It names drawings, and leaves to the registry who uses a block and what it costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import mistune

from benchmarks.analytic.models import Model, chosen
from benchmarks.gallery.diagrams import bare
from benchmarks.gallery.drawings import DRAWINGS, draw
from benchmarks.gallery.groups import typical
from zoo.architectures import families
from zoo.blocks.gqa import aliases
from zoo.blocks.layer import Placement
from zoo.catalog import sizes
from zoo.cli.tables import Column, Format, render
from zoo.swaps.rebuild import features
from zoo.units import format_bytes, format_count

SOURCE = Path(__file__).parent / "static" / "blocks.md"
IMAGE = re.compile(r'<p>((?:<img src="blocks/[\w-]+\.svg" alt="[^"]*" />\s*)+)</p>')
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
BOX = '<div class="{}" tabindex="0" role="group" aria-label="{}">{}</div>'  # scrolls, by keyboard too
HEADING = re.compile(r"<h(\d)>(.*?)</h\1>")
ONE = re.compile(r'<img src="blocks/([\w-]+)\.svg" alt="([^"]*)" />')


@cache
def markdown() -> str:
    """docs/blocks.md."""
    shown = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return shown.from_string(SOURCE.read_text(encoding="utf-8")).render(drawing=_image, used=used, costs=costs).strip()


def pictures() -> dict[str, str]:
    """File name in docs/blocks -> the drawing, for every drawing that the text names."""
    named = re.findall(r"!\[([^\]]*)\]\(blocks/([\w-]+)\.svg\)", markdown())
    return {f"{name}.svg": draw(name, says) for says, name in named}


def html() -> str:
    """The section of the page: headings one level lower, drawings inside, and what is wide in a box that scrolls."""
    text: str = mistune.create_markdown(escape=False, plugins=["table"])(markdown())
    text = HEADING.sub(_lower, text)
    text = IMAGE.sub(lambda match: BOX.format("drawings", "Drawing", ONE.sub(_inside, match[1])), text)
    text = text.replace("<p><em>Who uses", '<p class="used"><em>Who uses')
    text = TABLE.sub(lambda match: BOX.format("scroll", "What attention costs", match[0]), text)
    return re.sub(r"<th(?=[ >])", '<th scope="col"', text.replace("<pre>", '<pre tabindex="0">'))


def _lower(match: re.Match[str]) -> str:
    """The page has a title of its own."""
    level, text = int(match[1]), match[2]
    name = "blocks-title" if level == 1 else f"block-{re.sub(r'[^a-z]+', '-', text.lower()).strip('-')}"
    return f'<h{level + 1} id="{name}">{text}</h{level + 1}>'


def used(word: str, named: str | None = None) -> str:
    """Who uses a block, a point of one, an option or a placement, in a sentence."""
    found = {family: [name for name in module.SIZES if word in words(name)] for family, module in families().items()}
    told = [_told(family, names) for family, names in found.items() if names]
    return f"*Who uses {named or word}:* {', '.join(told) or 'none of these'}."


@cache
def words(name: str) -> frozenset[str]:
    """Every word for a part of a preset: kinds, points of grouped-query attention, placements and options in use."""
    found = set[str]()
    layers = dict.fromkeys(sizes()[name].spec.layers)
    for node in (node for layer in layers for node in layer.walk()):
        if isinstance(node, Placement):  # its options are where norms stand, which it has a word for
            found.add(node.placement)
        else:
            found |= {*aliases(node), *features(node).values()}
    return frozenset(found)


def costs() -> str:
    """A table of one layer's attention in each architecture, a line for each kind of layer."""
    rows = [row for model in typical(chosen([])) for row in _costs(model)]
    columns = [
        Column("model", "model"),
        Column("layers", "layers"),
        Column("attn", "attention"),
        Column("params", "parameters", format_count),
        Column("bytes", "a token", format_bytes),
        Column("at", "at 32k tokens", format_bytes),
    ]
    return render(rows, columns, Format.md)


def _costs(model: Model) -> Iterable[dict[str, Any]]:
    spec = model.spec
    found: dict[tuple[str, int, int, int], int] = {}
    for layer in spec.layers:
        kept = layer.cache_spec()
        key = (
            layer.mixer.describe(),
            layer.mixer.params(spec.dim),
            2 * kept.elements(),
            2 * kept.elements() * kept.tokens(32_768),
        )
        found[key] = found.get(key, 0) + 1
    for (attn, params, each, at), layers in found.items():
        yield {"model": model.name, "layers": layers, "attn": attn, "params": params, "bytes": each, "at": at}


def _told(family: str, names: list[str]) -> str:
    """An architecture, with the sizes that are meant where not all are."""
    return family if len(names) == len(families()[family].SIZES) else f"{family} ({', '.join(names)})"


def _image(name: str, says: str) -> str:
    assert name in DRAWINGS, name
    return f"![{says}](blocks/{name}.svg)"


def _inside(match: re.Match[str]) -> str:
    """The drawing itself in the place of an image, without the style sheet that the page has already."""
    return bare(draw(match[1], match[2], f"block-{match[1]}-"))
