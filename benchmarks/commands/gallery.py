"""The gallery: a web page of the architectures."""

import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.analytic.models import chosen
from benchmarks.options import Names, flag
from benchmarks.performance import kept, read
from zoo.cli.runner import Debug, emit
from zoo.errors import MalformedError, require_package
from zoo.units import format_bytes

FOLDER = Path("gallery")


def command(
    names: Names = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it; made if it is not there.")] = FOLDER,
    png: Annotated[bool, flag("Each chart as a PNG and an SVG file, too.", "--png")] = False,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `python -m benchmarks throughput --json` wrote: speeds to show."),
    ] = None,
    docs: Annotated[bool, flag("Write what docs/ holds of it: the text on blocks, and pictures.", "--docs")] = False,
    open: Annotated[bool, flag("Show it in a browser.", "--open")] = False,
    debug: Debug = False,
) -> None:
    """A web page of the architectures: diagrams, charts, what fits, what a swap costs.

    One file, index.html, which needs no network; beside it data/, the numbers of each chart as CSV, and with --png
    charts/, each chart for papers.
    """
    models = chosen(names or [])
    samples = measured or next(iter(kept().values()), None)  # the default: the speeds of the first processor kept here
    speeds = read_measured(samples) if samples else None
    for package in ("altair", "vl_convert", "jinja2", "mistune"):
        require_package(package, "gallery")
    from benchmarks.gallery import files  # imports the packages above

    if docs:
        for name, content in files.docs_files().items():
            files.write_file(out / name, content)
        return
    index, *others = files.write_gallery(out, models, speeds, images=png, progress=partial(print, file=sys.stderr))
    emit(f"{index}  {format_bytes(index.stat().st_size)}, {len(others)} files beside it")
    if open:
        webbrowser.open(index.absolute().as_uri())


def read_measured(path: Path) -> dict[str, Any]:
    """The rows and the machine of a file of measured speeds. Raises what `read` does, and MalformedError for a file
    without speeds."""
    document = read(path)
    rows = [row for row in document["rows"] if row["table"] == "throughput" and "test" in row]
    if not rows:
        raise MalformedError(f"{path}: holds no speeds; write it with python -m benchmarks throughput --json")
    return {"rows": rows, "machine": document["machine"]}
