"""The tables of docs/learning.md, from the comparisons in docs/learning/.

python -m benchmarks.findings      write the tables anew

To compare anew first: the command above each table on the page, with --json --out docs/learning/NAME.json. The tables
stand between the page's markers; all else on the page is written by hand and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.learning.rows import BITS
from benchmarks.learning.tables import by_size, compared, data_line, learned
from benchmarks.output.report import Row, Rows, Table
from zoo.cli.tables import Format
from zoo.units import format_count

PAGE = Path(__file__).resolve().parents[1] / "docs" / "learning.md"
FOLDER = PAGE.with_suffix("")
SECTION = re.compile(r"(?<=<!-- measured: )([\w-]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
Document = dict[str, Any]


def page(text: str, documents: dict[str, Document]) -> str:
    """The page with the tables of each document, by its name, between its markers."""
    return SECTION.sub(lambda found: f"{found[1]}{found[2]}{section(found[1], documents[found[1]])}\n", text)


def section(name: str, document: Document) -> str:
    """The tables of one comparison as Markdown, and what they are of."""
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
    return "\n\n".join(shown) + f"\n\n{about}\n"


def tables(rows: Rows) -> Iterator[Table]:
    """The tables of a comparison: the models, each synthetic task or length, and the differences; of a comparison on
    text these are differences in bits per byte alone."""
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


def documents() -> dict[str, Document]:
    """The comparisons that come with the repository, by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), documents()), encoding="utf-8")
