"""How fast and in how much memory a checkpoint is loaded, next to transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.options import AsFormat
from benchmarks.measure import loading
from benchmarks.measure.environment import kernel_summary, merged, recorded
from benchmarks.measure.loading import PEER, ZOO, Found
from benchmarks.measure.one_load import TOKENS
from benchmarks.output.report import Report, Table
from benchmarks.output.show import three, unit
from weights.loading import open_source, resolve_dtype
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Column, Format
from zoo.units import format_bytes

Rows = Sequence[dict[str, Any]]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A folder in Hugging Face layout, or a .gguf file.")]
AsDType = Annotated[str, typer.Option("--dtype", help="auto (as stored), float32, bfloat16, float16.")]
Repeat = Annotated[int, typer.Option("--repeat", min=1, help="Loads that count, of each loader.")]
Alone = Annotated[bool, typer.Option("--alone", help="Without transformers beside it.")]


def command(
    source: Source,
    dtype: AsDType = "auto",
    repeat: Repeat = 5,
    alone: Alone = False,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Seconds and memory of loading, next to transformers.

    Each load has a process of its own, the two loaders take turns, and the medians are shown. The first load of each
    does not count: it brings the files into memory.
    """
    report = Report.asked(format, json, out)
    opened = open_source(source)
    opened.spec()
    resolve_dtype(dtype, opened)  # what is wrong with it is told before anything runs
    beside = not alone and find_spec("transformers") is not None
    if not alone and not beside:
        print("without transformers beside it: pip install 'zoo-llm[parity]'", file=sys.stderr)
    found: dict[str, list[Found]] = {}
    try:
        with recorded(report, torch.device("cpu")):
            failed = loading.run(opened.path, dtype, [ZOO, PEER] if beside else [ZOO], repeat, found)
        for loader, why in failed.items():
            print(f"{loader} does not load it: {why}", file=sys.stderr)
    finally:
        if found:
            report.about["machine"]["kernels"] = merged(sample.get("kernels", {}) for sample in found.get(ZOO, []))
            report.add(table(loading.rows(opened.path, dtype, found), report.about["machine"]))
            report.finish()


def table(rows: Rows, machine: dict[str, Any]) -> Table:
    """A row a loader."""
    first, mib = rows[0], unit(2**20, 1)
    columns = [
        Column("loader", "loader"),
        Column("load_s", "load s", three),
        Column("ready_s", "ready s", three),
        Column("ready_bytes_per_s", "GB/s", lambda rate: three(rate / 1e9)),
        Column("anonymous_bytes", "own MiB", mib),
        Column("peak_bytes", "with files MiB", mib),
        Column("model_bytes", "model MiB", mib),
    ]
    legend = [
        f"load: until there is a model. ready: until it has passed {TOKENS} tokens, which reads what was only mapped. "
        "GB/s: of the files, 10^9 bytes, until ready.",
        "own: most memory above that of the imports which only this process can use. with files: and the pages of the "
        "files, which the system takes back when it needs them.",
        f"Medians of {len(first['load_seconds'])}, files in memory, dtype {first['dtype']}, on the CPU.",
        f"{kernel_summary(machine)}.",
    ]
    return Table(f"{Path(first['source']).name}: {format_bytes(first['file_bytes'])} of files", columns, legend, rows)
