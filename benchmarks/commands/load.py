"""Time and memory that loading a checkpoint takes, compared with transformers."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import loading
from benchmarks.measure.environment import CPU, kernel_summary, merged, recorded
from benchmarks.measure.loading import PASS_TOKENS, Sample
from benchmarks.measure.runners import BASELINE, ZOO
from benchmarks.options import flag
from benchmarks.output.report import Report, Row, Rows, Table, columns
from benchmarks.output.show import three, three_in, unit
from weights.loading import open_source, resolve_dtype
from zoo.units import format_bytes


def command(
    *,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder in Hugging Face layout, or a .gguf file.")],
    dtype: Annotated[
        str, typer.Option(help="Dtype of the weights: auto (as stored), float32, bfloat16, float16.")
    ] = "auto",
    repeat: Annotated[int, typer.Option(min=1, help="Number of timed loads of each loader.")] = 5,
    alone: Annotated[bool, flag("Measure only the zoo's loader, without transformers.", "--alone")] = False,
    report: Report,
) -> None:
    """Time and memory that loading a checkpoint takes, compared with transformers.

    Each load runs in a new process, and the two loaders take turns. The table shows medians. The first load of each
    loader does not count: it brings the files into memory.
    """
    opened = open_source(source)
    opened.spec()
    resolve_dtype(dtype, opened)  # errors of the source or the dtype come before anything runs
    beside = not alone and find_spec("transformers") is not None
    if not alone and not beside:
        print("transformers is not installed and is left out: pip install -e '.[parity]'", file=sys.stderr)
    found: dict[str, list[Sample]] = {}

    def measured() -> list[Table]:
        machine = report.about["machine"]
        machine["kernels"] = merged(sample.get("kernels", {}) for sample in found.get(ZOO, []))
        return [table(loading.rows(opened.path, dtype, found), machine)] if found else []

    with recorded(report, CPU, measured):
        failed = loading.run(opened.path, dtype, [ZOO, BASELINE] if beside else [ZOO], repeat, found)
    for loader, why in failed.items():
        print(f"{loader} cannot load it: {why}", file=sys.stderr)


def table(rows: Rows, machine: Row) -> Table:
    """Returns a table with one line for each loader."""
    first = rows[0]
    shown = [
        *columns(loader="loader"),
        *columns(three, load_s="load s", ready_s="ready s"),
        *columns(three_in(1e9), ready_bytes_per_s="GB/s"),
        *columns(unit(2**20, 1), anonymous_bytes="own MiB", peak_bytes="with files MiB", model_bytes="model MiB"),
    ]
    legend = [
        f"load s: seconds until the model is built. ready s: seconds until it has also processed {PASS_TOKENS} tokens, "
        "which reads weights that were only mapped. GB/s: 10^9 bytes of the files per second of ready s.",
        "own MiB: peak memory of the process itself, above that of the imports. with files MiB: the same with the "
        "pages of mapped files, which the system takes back when it needs them.",
        f"Medians of {len(first['load_seconds'])}, files in memory, dtype {first['dtype']}, on the CPU.",
        f"{kernel_summary(machine)}.",
    ]
    return Table(f"{Path(first['source']).name}: {format_bytes(first['file_bytes'])} of files", shown, legend, rows)
