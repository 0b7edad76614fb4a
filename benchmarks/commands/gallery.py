"""The gallery: a web page of the architectures."""

from __future__ import annotations

import json
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.analytic.models import chosen
from benchmarks.options import Names
from benchmarks.performance import kept
from zoo.cli.runner import Debug, emit
from zoo.errors import MalformedError, NotAvailable, require_package
from zoo.units import format_bytes

Folder = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where to write it; made if it is not there.")]
Png = Annotated[bool, typer.Option("--png", help="Each chart as a PNG and an SVG file, too.")]
Measured = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What `python -m benchmarks throughput --json` wrote: speeds to show."),
]
Docs = Annotated[bool, typer.Option("--docs", help="Write what docs/ holds of it: the text on blocks, and pictures.")]
Open = Annotated[bool, typer.Option("--open", help="Show it in a browser.")]


def command(
    names: Names = None,
    out: Folder = Path("gallery"),
    png: Png = False,
    measured: Measured = None,
    docs: Docs = False,
    open: Open = False,
    debug: Debug = False,
) -> None:
    """A web page of the architectures: diagrams, charts, what fits, what a swap costs.

    One file, index.html, which needs no network; beside it data/, the numbers of each chart as CSV, and with --png
    charts/, each chart for papers.
    """
    models = chosen(names or [])
    samples = measured or next(iter(kept().values()), None)  # those of the first processor, if nothing else is said
    speeds = read_measured(samples) if samples else None
    for package in ("altair", "vl_convert", "jinja2", "mistune"):
        require_package(package, "gallery")
    from benchmarks.gallery import files  # needs what was just looked for

    if docs:
        for name, content in files.docs_files().items():
            files.write_file(out / name, content)
        return
    index, *others = files.write_gallery(out, models, speeds, images=png, progress=partial(print, file=sys.stderr))
    emit(f"{index}  {format_bytes(index.stat().st_size)}, {len(others)} files beside it")
    if open:
        webbrowser.open(index.absolute().as_uri())


def read_measured(path: Path) -> dict[str, Any]:
    """A document of measured rows. Raises NotAvailable if there is none, MalformedError if it holds no speeds."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    try:
        document = json.loads(text)
        rows = [row for row in document["rows"] if row["table"] == "throughput" and "test" in row]
        machine = document["machine"]
    except (ValueError, TypeError, KeyError) as error:
        raise MalformedError(f"{path}: is no document of python -m benchmarks throughput --json") from error
    if not rows:
        raise MalformedError(f"{path}: holds no speeds; write it with python -m benchmarks throughput --json")
    return {"rows": rows, "machine": machine}
