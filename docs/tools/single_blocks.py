"""The tables of docs/single-blocks.md, from the samples in docs/performance/blocks/."""

from dataclasses import replace

from benchmarks.commands import blocks
from benchmarks.output.documents import DOCS, kept, read
from benchmarks.output.report import Row
from zoo.cli.tables import Format

FOLDER = DOCS / "performance" / "blocks"
HERE = ("Medians of", "kernels")  # first words of legend lines about the machine that prints the table


def sections() -> dict[str, str]:
    """Returns {name of the samples: their tables as Markdown}."""
    return {name: section(name, read(file, "blocks")) for name, file in kept(FOLDER).items()}


def section(name: str, document: Row) -> str:
    """Returns the tables of one document as Markdown, with the machine of its samples."""
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
