"""The tables of docs/learning.md, from the comparisons in docs/learning/.

To repeat a comparison, run the command above its table on the page with --json --out docs/learning/NAME.json.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.learning.rows import BITS
from benchmarks.learning.tables import by_size, compared, data_line, learned
from benchmarks.output.documents import DOCS, kept, read
from benchmarks.output.report import Row, Rows, Table
from zoo.cli.tables import Format
from zoo.units import format_count


def sections() -> dict[str, str]:
    """Returns {name of a comparison: its tables as Markdown}."""
    return {name: section(name, read(file, "learn")) for name, file in kept(DOCS / "learning").items()}


def section(name: str, document: Row) -> str:
    """Returns the tables of one comparison as Markdown, with its data and its machine."""
    shown = [replace(table, legend=[]).text(Format.md).strip() for table in tables(document["rows"])]
    shown = [re.sub(r"^### (.*)", r"**\1**", text) for text in shown]  # the page's headings are its findings
    first, machine = next(row for row in document["rows"] if row["table"] == "learn"), document["machine"]
    on_text = any(run["task"] == "text" for run in first["runs"])
    trained = f"{format_count(first['tokens'])} bytes of text" if on_text else "synthetic sequences"
    about = (
        f"- {first['seeds']} seeds, trained on {trained}; means, 95 % intervals, differences by Holm's procedure. "
        f"{data_line(first) + ' ' if on_text else ''}{machine['cpu']}, torch {machine['torch']}. "
        f"Samples: [learning/{name}.json](learning/{name}.json)."
    )
    return "\n\n".join([*shown, about])


def tables(rows: Rows) -> Iterator[Table]:
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
