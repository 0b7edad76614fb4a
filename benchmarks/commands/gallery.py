"""The gallery: a web page of the architectures."""

import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.analytic.compare import PAIRS
from benchmarks.analytic.models import chosen
from benchmarks.analytic.selection import matching, one_each
from benchmarks.gallery.learning_tables import learning_tables, section
from benchmarks.options import flag
from benchmarks.output.documents import DOCS, kept, read
from zoo.catalog import names as zoo_names
from zoo.cli.runner import Debug, emit
from zoo.cli.tables import Row
from zoo.errors import MalformedError, UsageError, require_package
from zoo.units import format_bytes

FOLDER = Path("gallery")
# What all figures of a comparison have in common.
SHARED = ("data_hash", "code_hash", "tokens", "batch", "context", "seeds")


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Presets, hub ids, families (all their sizes), folders with a config.json. None: the best-known of "
            "each family, and those compared."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it; made if it is not there.")] = FOLDER,
    png: Annotated[bool, flag("Each chart as a PNG and an SVG file, too.", "--png")] = False,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `python -m benchmarks throughput --json` wrote: speeds to show."),
    ] = None,
    learned: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `python -m benchmarks learn --json` wrote: learning to show."),
    ] = None,
    all_sizes: Annotated[bool, flag("Every size of every family, not only the best-known.", "--all-sizes")] = False,
    open: Annotated[bool, flag("Show it in a browser.", "--open")] = False,
    debug: Debug = False,
) -> None:
    """A web page of the architectures: diagrams, charts, what small forms learn, what fits, what a swap costs.

    By default with the best-known size of each family, and with the pairs that it suggests to compare. One file,
    index.html, which needs no network; beside it data/, the numbers of each chart as CSV, and with --png
    charts/, each chart for papers.
    """
    if names and all_sizes:
        raise UsageError("--all-sizes chooses among all models: leave it out, or name none")
    models = chosen(names or (zoo_names() if all_sizes else shown_by_default()))
    samples = measured or next(iter(kept(DOCS / "performance").values()), None)  # by default of the first processor
    speeds = read_measured(samples) if samples else None
    comparisons = kept(DOCS / "learning")
    comparison = learned or comparisons.get("default") or next(iter(comparisons.values()), None)
    rows = read_learned(comparison) if comparison else None
    for package in ("altair", "vl_convert", "jinja2", "mistune"):
        require_package(package, "gallery")
    from benchmarks.gallery import files  # imports the packages above

    note = partial(print, file=sys.stderr)
    index, *others = files.write_gallery(out, models, speeds, images=png, progress=note, learned=rows)
    emit(f"{index}  {format_bytes(index.stat().st_size)}, {len(others)} files beside it")
    if open:
        webbrowser.open(index.absolute().as_uri())


def shown_by_default() -> list[str]:
    """The best-known size of each family, and the sizes of the comparisons, family by family."""
    shown = {*one_each(matching()), *(name for pair in PAIRS for name in pair)}
    return [name for name in zoo_names() if name in shown]


def read_measured(path: Path) -> dict[str, Any]:
    """The rows and the machine of a file of measured speeds. Raises what `read` does, and MalformedError for a file
    without speeds."""
    document = read(path)
    rows = [row for row in document["rows"] if row["table"] == "throughput" and "test" in row]
    if not rows:
        raise MalformedError(f"{path}: holds no speeds; write it with python -m benchmarks throughput --json")
    return {"rows": rows, "machine": document["machine"]}


def read_learned(path: Path) -> list[Row]:
    """The rows of a comparison of what models learn. Raises what `read` does, and MalformedError for a file without
    such rows, with rows that lack a figure, and for one whose figures are of several texts or budgets."""
    rows: list[Row] = read(path, "learn")["rows"]
    if not any(row["table"] == "learn" for row in rows):
        raise MalformedError(f"{path}: holds no comparison; write it with python -m benchmarks learn --json")
    try:
        learning_tables(rows)
        section(rows)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise MalformedError(f"{path}: not rows of python -m benchmarks learn --json ({error})") from error
    for fact in SHARED:
        values = {row[fact] for row in rows if row.get(fact) is not None}
        if len(values) > 1:
            found = " and ".join(sorted(map(str, values)))
            raise MalformedError(f"{path}: figures of different {fact} cannot stand side by side: {found}")
    return rows
