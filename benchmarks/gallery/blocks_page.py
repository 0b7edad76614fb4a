"""The tutorial on blocks: docs/blocks.md for readers of the repository, and a section of the page.

static/blocks.md is its Jinja template. It names drawings; who uses a block and what attention costs follow from specs.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import jinja2
import mistune

from benchmarks.analytic.models import chosen
from benchmarks.gallery.block_drawings import DRAWINGS, draw, without_style
from benchmarks.gallery.overview import typical
from zoo.architectures import families
from zoo.blocks.gqa import aliases
from zoo.blocks.layer import Placement
from zoo.catalog import sizes
from zoo.cli.tables import Column, Format, render
from zoo.swaps.rebuild import features
from zoo.units import format_bytes, format_count

SOURCE = Path(__file__).parent / "static" / "blocks.md"
SCROLL_BOX = '<div class="{}" tabindex="0" role="group" aria-label="{}">{}</div>'  # scrollable by keyboard too
HEADING = re.compile(r"<h(\d)>(.*?)</h\1>")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
IMAGES = re.compile(r'<p>((?:<img src="blocks/[\w-]+\.svg" alt="[^"]*" />\s*)+)</p>')
IMAGE = re.compile(r'<img src="blocks/([\w-]+)\.svg" alt="([^"]*)" />')


@cache
def markdown() -> str:
    """docs/blocks.md."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(SOURCE.read_text(encoding="utf-8"))
    return template.render(drawing=_image, used=used, costs=costs).strip()


def pictures() -> dict[str, str]:
    """File name in docs/blocks -> SVG, for every drawing that the text names."""
    images = re.findall(r"!\[([^\]]*)\]\(blocks/([\w-]+)\.svg\)", markdown())
    return {f"{name}.svg": draw(name, description) for description, name in images}


def html() -> str:
    """The section of the page: headings one level lower, drawings inline, wide content in boxes that scroll."""
    text: str = mistune.create_markdown(escape=False, plugins=["table"])(markdown())
    text = HEADING.sub(_lower_heading, text)
    text = IMAGES.sub(lambda images: SCROLL_BOX.format("drawings", "Drawing", IMAGE.sub(_inline, images[1])), text)
    text = text.replace("<p><em>Who uses", '<p class="used"><em>Who uses')
    text = TABLE.sub(lambda table: SCROLL_BOX.format("scroll", "Cost of attention", table[0]), text)
    return re.sub(r"<th(?=[ >])", '<th scope="col"', text.replace("<pre>", '<pre tabindex="0">'))


def _lower_heading(match: re.Match[str]) -> str:
    level, text = int(match[1]), match[2]
    name = "blocks-title" if level == 1 else f"block-{re.sub(r'[^a-z]+', '-', text.lower()).strip('-')}"
    return f'<h{level + 1} id="{name}">{text}</h{level + 1}>'


def _image(name: str, description: str) -> str:
    assert name in DRAWINGS, name
    return f"![{description}](blocks/{name}.svg)"


def _inline(match: re.Match[str]) -> str:
    return without_style(draw(match[1], match[2], f"block-{match[1]}-"))


def used(word: str, label: str | None = None) -> str:
    """The sentence that says which architectures (or which of their sizes) use a block, alias, option or placement."""
    users = []
    for family, module in families().items():
        names = [name for name in module.SIZES if word in words(name)]
        if names:
            users.append(family if len(names) == len(module.SIZES) else f"{family} ({', '.join(names)})")
    return f"*Who uses {label or word}:* {', '.join(users) or 'none of these'}."


@cache
def words(name: str) -> frozenset[str]:
    """The words for all parts of a preset: kinds of blocks, aliases, norm placements, and options in use."""
    found = set[str]()
    for layer in dict.fromkeys(sizes()[name].spec.layers):
        for node in layer.walk():
            found |= {node.placement} if isinstance(node, Placement) else {*aliases(node), *features(node).values()}
    return frozenset(found)


def costs() -> str:
    """A Markdown table of one layer's attention in each architecture, with a row for each kind of layer."""
    rows = []
    for model in typical(chosen([])):
        for mixer, layers in Counter(layer.mixer for layer in model.spec.layers).items():
            cache = mixer.cache_spec()
            per_token, params = 2 * cache.elements(), mixer.params(model.spec.dim)
            row = {"model": model.name, "layers": layers, "attn": mixer.describe(), "params": params}
            rows.append(row | {"bytes": per_token, "bytes_32k": per_token * cache.tokens(32 * 1024)})
    columns = [
        Column("model", "model"),
        Column("layers", "layers"),
        Column("attn", "attention"),
        Column("params", "parameters", format_count),
        Column("bytes", "cache per token", format_bytes),
        Column("bytes_32k", "cache at 32k tokens", format_bytes),
    ]
    return render(rows, columns, Format.md)
