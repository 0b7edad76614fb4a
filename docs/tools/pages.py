"""The generated files of docs/, made from committed samples and from the code.

A page marks its generated sections with two comments. The text outside the sections is written by hand and stays.
"""

import re
from collections.abc import Mapping

from benchmarks.analytic.models import one
from benchmarks.analytic.selection import matching, one_each
from benchmarks.gallery import blocks_page
from benchmarks.gallery.overview import overview
from benchmarks.output.documents import DOCS
from docs.tools import learning, performance, schema, single_blocks
from zoo.cli.card import figure

FIGURE = "deepseek-v3-671b"  # the model in docs/models.md
BEGIN, END = "<!-- measured: {} -->\n", "<!-- end -->\n"
SECTION = re.compile(r"<!-- measured: (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)


def texts() -> dict[str, str]:
    """Returns {file in docs/: its text}, as the present samples and code generate it."""
    sections = {
        "performance.md": performance.sections(),
        "single-blocks.md": single_blocks.sections(),
        "learning.md": learning.sections(),
    }
    pages = {name: filled((DOCS / name).read_text(encoding="utf-8"), each) for name, each in sections.items()}
    return pages | gallery() | {"benchmarks.schema.json": schema.text()}


def gallery() -> dict[str, str]:
    """Returns the text on blocks, its drawings, and two figures: the same on every machine."""
    best_known = [one(name) for name in one_each(matching())]
    made = {
        "overview.svg": overview(best_known, theme="light"),
        "figure.svg": figure(FIGURE)[0],
        "blocks.md": blocks_page.markdown(),
        **{f"blocks/{name}": drawing for name, drawing in blocks_page.pictures().items()},
    }
    return {name: f"{text}\n" for name, text in made.items()}


def filled(page: str, sections: Mapping[str, str]) -> str:
    """Returns the page with each section between its markers.

    A new section follows the last one, and markers without a section are removed.
    """
    blocks = {name: f"{BEGIN.format(name)}{text.strip()}\n\n{END}" for name, text in sections.items()}
    page = SECTION.sub(lambda found: blocks.get(found[1], ""), page)
    for name, block in blocks.items():
        if BEGIN.format(name) not in page:
            before, end, after = page.rpartition(END)
            page = f"{before}{end}\n{block}{after}" if end else f"{page.rstrip()}\n\n{block}"
    return page
