"""The files of a gallery: the page, the data of its charts, the charts as pictures, and what docs/ holds of it."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analytic.models import NamedSpec, chosen
from benchmarks.analytic.roofline import device
from benchmarks.gallery import blocks_page, charts
from benchmarks.gallery.chart_tables import Row, tables
from benchmarks.gallery.overview import overview, typical
from benchmarks.gallery.page import DEVICE, page
from zoo.errors import NotAvailable

FORMATS = ("png", "svg")


def write_gallery(
    folder: Path,
    models: Sequence[NamedSpec],
    measured: Mapping[str, Any] | None,
    images: bool,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Path]:
    """Write index.html, data/*.csv and, with `images`, charts/*.png and *.svg -> the files, the page first. `progress`
    is called with the name of each step. Raises NotAvailable if a file cannot be written."""
    progress("drawing and adding up")
    files = {folder / "index.html": page(models, measured).encode()}
    speeds = measured["rows"] if measured else ()
    for name, rows in tables(models, speeds).items():
        if rows:
            files[folder / "data" / f"{name}.csv"] = as_csv(rows).encode()
    if images:
        progress("drawing charts")
        files |= {folder / "charts" / name: image for name, image in chart_images(models, speeds).items()}
    for path, content in files.items():
        write_file(path, content)
    return list(files)


def chart_images(models: Sequence[NamedSpec], speeds: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """File name -> image of each chart that has data, for one model of each architecture and the page's defaults."""
    card, data = device(DEVICE), tables(typical(models), speeds)
    params = {"rate": card.flops, "bandwidth": card.bandwidth}
    names = [name for name, chart in charts.CHARTS.items() if data[chart.tables[0]]]
    return {f"{name}.{kind}": charts.image(name, data, params, kind) for name in names for kind in FORMATS}


def as_csv(rows: Sequence[Row]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def docs_files() -> dict[str, bytes]:
    """Path in docs/ -> content of every file there that the gallery generates; the same on every machine."""
    texts = {"overview.svg": overview(typical(chosen([]))), "blocks.md": blocks_page.markdown()}
    texts |= {f"blocks/{name}": drawing for name, drawing in blocks_page.pictures().items()}
    return {name: f"{text}\n".encode() for name, text in texts.items()}


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file or none of it. Raises NotAvailable if it cannot be written."""
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
