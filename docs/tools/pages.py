"""Generates files of docs/ from committed samples and from the code.

A page marks its generated sections with two comments. The text outside is written by hand. To repeat a comparison of
docs/learning.md, run the command above its table with --json --out docs/learning/NAME.json.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from benchmarks.analytic.models import one
from benchmarks.analytic.selection import matching, one_each
from benchmarks.commands import blocks
from benchmarks.gallery import blocks_page
from benchmarks.gallery.overview import overview
from benchmarks.learning.rows import BITS
from benchmarks.learning.tables import by_size, compared, data_line, learned
from benchmarks.output.report import DOCS, Row, Rows, Table, kept, read
from docs.tools import performance, schema
from zoo.catalog import found
from zoo.cli.card import figure
from zoo.cli.tables import Format
from zoo.units import format_count

FIGURE = "deepseek-v3-671b"  # the model in docs/models.md
BLOCKS = DOCS / "performance" / "blocks"
HERE = ("Medians of", "kernels")  # first words of legend lines about the current machine
BEGIN, END = "<!-- measured: {} -->\n", "<!-- end -->\n"
SECTION = re.compile(r"<!-- measured: (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)


def texts() -> dict[str, str]:
    """Returns {file in docs/: its text}, generated from the current samples and code."""
    compared, measured = kept(DOCS / "learning"), kept(BLOCKS)
    sections = {
        "performance.md": performance.sections(),
        "single-blocks.md": {name: block_section(name, read(file, "blocks")) for name, file in measured.items()},
        "learning.md": {name: learning_section(name, read(file, "learn")) for name, file in compared.items()},
    }
    pages = {name: filled((DOCS / name).read_text(encoding="utf-8"), each) for name, each in sections.items()}
    return pages | gallery() | {"benchmarks.schema.json": schema.text()}


def gallery() -> dict[str, str]:
    """Returns {file in docs/: its text} for the page on blocks and for drawings: the same on every machine."""
    best_known = [one(name) for name in one_each(matching())]
    made = {
        "overview.svg": overview(best_known, theme="light"),
        "figure.svg": figure(found(FIGURE))[0],
        "blocks.md": blocks_page.markdown(),
        **{f"blocks/{name}": drawing for name, drawing in blocks_page.pictures().items()},
    }
    return {name: f"{text}\n" for name, text in made.items()}


def filled(page: str, sections: Mapping[str, str]) -> str:
    """Returns the page with the text of each section between its markers.

    A section without markers is added after the last section. Markers without a section are removed.
    """
    marked = {name: f"{BEGIN.format(name)}{text.strip()}\n\n{END}" for name, text in sections.items()}
    page = SECTION.sub(lambda found: marked.get(found[1], ""), page)
    for name, block in marked.items():
        if BEGIN.format(name) not in page:
            before, end, after = page.rpartition(END)
            page = f"{before}{end}\n{block}{after}" if end else f"{page.rstrip()}\n\n{block}"
    return page


def learning_section(name: str, document: Row) -> str:
    """Returns the tables of one comparison as Markdown, and a line about its data and its machine."""
    shown = [replace(table, legend=[]).text(Format.md).strip() for table in learning_tables(document["rows"])]
    shown = [re.sub(r"^### (.*)", r"**\1**", text) for text in shown]  # the page's own headings state findings
    first, machine = next(row for row in document["rows"] if row["table"] == "learn"), document["machine"]
    on_text = any(run["task"] == "text" for run in first["runs"])
    trained = f"{format_count(first['tokens'])} bytes of text" if on_text else "synthetic sequences"
    about = (
        f"- {first['seeds']} seeds, trained on {trained}; means, 95 % intervals, differences by Holm's procedure. "
        f"{data_line(first) + ' ' if on_text else ''}{machine['cpu']}, torch {machine['torch']}. "
        f"Samples: [learning/{name}.json](learning/{name}.json)."
    )
    return "\n\n".join([*shown, about])


def learning_tables(rows: Rows) -> Iterator[Table]:
    """Yields the tables of a comparison: the models, each synthetic task or length, and the differences.

    A comparison on text shows only differences in bits per byte.
    """
    groups = dict[str, list[Row]]()
    for row in rows:
        groups.setdefault(row["table"], []).append(row)
    on_text = any(row["bits_per_byte"] for row in groups["learn"])
    if on_text:
        yield learned(groups["learn"])
    figures = groups.get("learn_figures", [])
    for task in dict.fromkeys(row["task"] for row in figures):
        yield by_size(task, [row for row in figures if row["task"] == task], 0.0)
    differences = [row for row in groups.get("learn_differences", []) if row["unit"] == BITS or not on_text]
    if differences:
        yield compared(differences)


def block_section(name: str, document: Row) -> str:
    """Returns the tables of one document as Markdown, and the machine on which it was measured."""
    tables = []
    for table in blocks.tables(document["rows"]):
        legend = [line for line in table.legend if not line.startswith(HERE)]
        tables.append(replace(table, legend=legend).text(Format.md))
    machine, dtype = document["machine"], document["rows"][0]["dtype"]
    method = (
        f"- Medians after warm-up, in turns; {dtype}, batch 1, threads: {machine['threads']}, {machine['cpu']}, "
        f"torch {machine['torch']}. Samples: [performance/blocks/{name}.json](performance/blocks/{name}.json)."
    )
    return "\n\n".join(tables) + f"\n{method}"
