"""The main job: costs of all published sizes, and the speed of tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.analytic import costs
from benchmarks.analytic.models import Model, chosen, representatives
from benchmarks.measure import throughput
from benchmarks.measure.environment import recorded
from benchmarks.measure.throughput_rows import rows as throughput_rows
from benchmarks.options import AsFormat, IgnoreField, Names, Seed, Swap
from benchmarks.output import tables
from benchmarks.output.report import Report
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Format

Static = Annotated[bool, typer.Option("--static", "--no-run", help="Only what follows from the specs; build nothing.")]


def command(
    names: Names = None,
    static: Static = False,
    seed: Seed = 0,
    swap: Swap = None,
    ignore_field: IgnoreField = None,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """The main job: all costs, then the speed of tiny models.

    Parameters, FLOPs and KV cache of the published sizes; then prefill and decode of tiny models on this machine.
    Ctrl-C while it measures prints what there is. csv, json and jsonl hold all rows, each with the name of its table.
    """
    models = chosen(names or [], swap or [], ignore_field or [])
    report = Report.asked(format, json, out)
    report.add(*tables.static(costs.rows(models)))
    try:
        if not static:
            measure(representatives(names or [], swap or [], ignore_field or []), seed, report)
    finally:
        report.finish()


def measure(models: Sequence[Model], seed: int, report: Report) -> None:
    """Time the tiny models and add them to the report, as far as it came when it is interrupted."""
    results = throughput.prepare_tiny(models, seed)
    try:
        with recorded(report, results.config.device):
            throughput.measure_tiny(results)
    finally:
        if rows := throughput_rows(results):
            report.add(tables.tiny_throughput(rows))
