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
from benchmarks.output.report import DOCS, kept, read
from zoo.catalog import names as zoo_names
from zoo.cli.runner import Debug, emit
from zoo.cli.tables import Row
from zoo.errors import MalformedError, UsageError, require_package
from zoo.units import format_bytes

FOLDER = Path("gallery")
# Facts that all figures of a comparison must share.
SHARED = ("data_hash", "code_hash", "tokens", "batch", "context", "seeds")


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Presets, hub ids, families (all their sizes) or folders with a config.json. Default: the best-known "
            "size of each family, and the compared pairs."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder, created if missing.")] = FOLDER,
    png: Annotated[bool, flag("Also write each chart as a PNG and an SVG file.", "--png")] = False,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Speeds to show: output of `python -m benchmarks throughput --json`."),
    ] = None,
    learned: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Learning results to show: output of `python -m benchmarks learn --json`."),
    ] = None,
    all_sizes: Annotated[
        bool, flag("Show every size of every family, not only the best-known.", "--all-sizes")
    ] = False,
    open: Annotated[bool, flag("Show the page in a browser.", "--open")] = False,
    debug: Debug = False,
) -> None:
    """A web page of the architectures.

    It shows diagrams, charts, how well scaled-down models learn, the models that fit on a card, and the costs of swaps.
    The page is one file, index.html, which needs no network. The folder data/ beside it holds the numbers of each chart
    as CSV. With --png, the folder charts/ holds each chart as an image.
    """
    if names and all_sizes:
        raise UsageError("--all-sizes chooses among all models: leave it out, or name none")
    if out.suffix == ".html" and not out.is_dir():
        raise UsageError(f"--out takes a folder, in which index.html is written: --out {out.parent}")
    models = chosen(names or (zoo_names() if all_sizes else shown_by_default()))
    samples = measured or next(iter(kept(DOCS / "performance").values()), None)  # default: the first processor's speeds
    speeds = read_measured(samples) if samples else None
    comparison = learned or kept(DOCS / "learning").get("default")
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
    """Returns the best-known size of each family, and the sizes compared in PAIRS, ordered by family."""
    shown = {*one_each(matching()), *(name for pair in PAIRS for name in pair)}
    return [name for name in zoo_names() if name in shown]


def read_measured(path: Path) -> dict[str, Any]:
    """Returns the rows and the machine of a file of measured speeds.

    Raises the errors of `read`, and MalformedError for a file without speeds.
    """
    document = read(path)
    rows = [row for row in document["rows"] if row["table"] == "throughput" and "test" in row]
    if not rows:
        raise MalformedError(f"{path}: holds no speeds; write it with python -m benchmarks throughput --json")
    return {"rows": rows, "machine": document["machine"]}


def read_learned(path: Path) -> list[Row]:
    """Returns the rows of a comparison of learning.

    Raises the errors of `read`. Raises MalformedError for a file without such rows, for rows that lack a figure, and
    for figures of several texts or budgets.
    """
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
