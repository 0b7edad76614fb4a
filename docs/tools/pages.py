"""The generated files of docs/ that are made from committed samples and from the code.

A page marks its generated sections with two comments. Text outside of them is written by hand and stays.
"""

import re
from collections.abc import Mapping

from benchmarks.output.documents import DOCS
from docs.tools import learning, performance, schema, single_blocks

BEGIN, END = "<!-- measured: {} -->\n", "<!-- end -->\n"
SECTION = re.compile(r"<!-- measured: (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)


def texts() -> dict[str, str]:
    """File in docs/ -> its text, with every generated section as today's samples and code make it."""
    sections = {
        "performance.md": performance.sections(),
        "single-blocks.md": single_blocks.sections(),
        "learning.md": learning.sections(),
    }
    pages = {name: filled((DOCS / name).read_text(encoding="utf-8"), each) for name, each in sections.items()}
    return pages | {"benchmarks.schema.json": schema.text()}


def filled(page: str, sections: Mapping[str, str]) -> str:
    """The page with each section between its markers. A new section follows the last one, and markers without a section
    are removed."""
    blocks = {name: f"{BEGIN.format(name)}{text.strip()}\n\n{END}" for name, text in sections.items()}
    page = SECTION.sub(lambda found: blocks.get(found[1], ""), page)
    for name, block in blocks.items():
        if BEGIN.format(name) not in page:
            before, end, after = page.rpartition(END)
            page = f"{before}{end}\n{block}{after}" if end else f"{page.rstrip()}\n\n{block}"
    return page
