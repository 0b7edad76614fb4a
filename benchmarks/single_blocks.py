"""The tables of docs/single-blocks.md, from the samples in docs/performance/blocks/.

python -m benchmarks.single_blocks      write the tables anew

To measure anew first: python -m benchmarks mla --json --out docs/performance/blocks/mla.json, and the same for
sparse and blocks.
The tables stand between the page's markers; all else on the page is written by hand and stays.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.commands import blocks, mla, sparse
from zoo.cli.tables import Format

PAGE = Path(__file__).resolve().parents[1] / "docs" / "single-blocks.md"
FOLDER = PAGE.parent / "performance" / "blocks"
TABLES = {"mla": mla.tables, "sparse": sparse.tables, "blocks": blocks.tables}
SECTION = re.compile(r"(?<=<!-- measured: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
HERE = ("Medians of", "kernels")  # how the legend lines begin that describe the machine that prints the table


def page(text: str, documents: dict[str, dict[str, Any]]) -> str:
    """The page with the tables of each document, by verb, between its markers."""
    return SECTION.sub(lambda found: f"{found[1]}{found[2]}{section(found[1], documents[found[1]])}\n", text)


def section(verb: str, document: dict[str, Any]) -> str:
    """The tables of one verb as Markdown, under the machine that the samples come from."""
    tables = []
    for table in TABLES[verb](document["rows"]):
        legend = [line for line in table.legend if not line.startswith(HERE)]
        tables.append(replace(table, legend=legend).text(Format.md))
    machine, dtype = document["machine"], document["rows"][0]["dtype"]
    method = (
        f"- Medians after warm-up, in turns; {dtype}, batch 1, threads: {machine['threads']}, {machine['cpu']}, "
        f"torch {machine['torch']}. Samples: [performance/blocks/{verb}.json](performance/blocks/{verb}.json)."
    )
    return "\n\n".join(tables) + f"\n{method}\n"


def documents() -> dict[str, dict[str, Any]]:
    """The documents that come with the repository, by verb."""
    return {verb: json.loads((FOLDER / f"{verb}.json").read_text(encoding="utf-8")) for verb in TABLES}


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), documents()), encoding="utf-8")
