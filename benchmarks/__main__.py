"""python -m benchmarks: what the architectures cost, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks import costs, tables, tiny_throughput
from benchmarks.models import published, representatives
from benchmarks.report import Report
from benchmarks.timing import Samples
from zoo.terminal import Debug, Format, Json, Out, run
from zoo.tiny import tiny

app = typer.Typer(add_completion=False)
Names = Annotated[list[str] | None, typer.Argument(help="Presets, hub ids or families (all their sizes); none: all.")]
Static = Annotated[bool, typer.Option("--static", "--no-run", help="Only what follows from the specs; build nothing.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the tiny models' weights and tokens.")]
AsFormat = Annotated[Format, typer.Option("--format", help="How to write the rows.")]


@app.command()
def main(
    names: Names = None,
    static: Static = False,
    seed: Seed = 0,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Parameters, FLOPs and KV cache of the published sizes; then the speed of tiny models on this machine.

    Ctrl-C while it measures prints what there is. csv, json and jsonl hold all rows, each with the name of its table.
    """
    rows = costs.rows(published(names or []))
    report = Report(Format.json if json else format, out)
    report.add(tables.parameters(rows), tables.kv_cache(rows))
    try:
        if not static:
            measure(names or [], seed, report)
    finally:
        report.finish()


def measure(names: list[str], seed: int, report: Report) -> None:
    """Time the tiny models and add them to the report, as far as it came when it is interrupted."""
    specs = {name: tiny(size.spec) for name, size in representatives(names).items()}
    samples: Samples = {}
    report.about["complete"] = False
    try:
        tiny_throughput.run(specs, seed, samples)
        report.about["complete"] = True
    finally:
        if rows := tiny_throughput.rows(specs, samples):
            report.add(tables.tiny_throughput(rows))


if __name__ == "__main__":
    run(app, "python -m benchmarks")
