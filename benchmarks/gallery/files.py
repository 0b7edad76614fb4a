"""The folder of a gallery: the page, the numbers behind its charts, and the charts as pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analytic.models import Model, chosen
from benchmarks.analytic.roofline import device
from benchmarks.gallery import blocks_page, chart_tables, charts, vega
from benchmarks.gallery.chart_tables import Table
from benchmarks.gallery.groups import typical
from benchmarks.gallery.overview import overview
from benchmarks.gallery.page import page
from benchmarks.gallery.page_data import DEVICE
from zoo.errors import NotAvailable

FORMATS = ("png", "svg")


def write(
    folder: Path,
    models: Sequence[Model],
    measured: Mapping[str, Any] | None,
    images: bool,
    told: Callable[[str], None] = lambda what: None,
) -> list[Path]:
    """Write index.html, data/*.csv and, with `images`, charts/*.png and *.svg -> the files, the page first. `told` is
    handed what is being done."""
    told("drawing and adding up")
    files = {folder / "index.html": page(models, measured).html.encode()}
    rows = measured["rows"] if measured else ()
    for name, table in chart_tables.tables(models, rows).items():
        if table.rows:
            files[folder / "data" / f"{name}.csv"] = as_csv(table).encode()
    if images:
        told("drawing charts")
        files |= {folder / "charts" / name: image for name, image in pictures(models, rows).items()}
    for path, content in files.items():
        put(path, content)
    return list(files)


def pictures(models: Sequence[Model], rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """File name -> picture, of the models that the page begins with, at its first settings."""
    card, tables = device(DEVICE), chart_tables.tables(typical(models), rows)
    params = {"rate": card.flops, "bandwidth": card.bandwidth}
    drawn = {name: picture for name, picture in charts.pictures().items() if tables[picture.tables[0]].rows}
    return {f"{name}.{kind}": vega.image(name, tables, params, kind) for name in drawn for kind in FORMATS}


def as_csv(table: Table) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return text.getvalue()


def documents() -> dict[str, bytes]:
    """What docs/ holds: path below it -> content. Text is the same on every machine."""
    held = {"overview.svg": overview(typical(chosen([]))), "blocks.md": blocks_page.markdown()}
    held |= {f"blocks/{name}": text for name, text in blocks_page.pictures().items()}
    return {name: f"{text}\n".encode() for name, text in held.items()}


def put(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotAvailable(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise NotAvailable(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
