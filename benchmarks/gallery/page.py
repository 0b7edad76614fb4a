"""The page: one HTML file that needs nothing else, and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.analytic.models import Model
from benchmarks.gallery import blocks_page, charts, diagrams, vega
from benchmarks.gallery.groups import groups, typical
from benchmarks.gallery.overview import overview
from benchmarks.gallery.page_data import data

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("sums", "show", "diagrams", "whatif", "charts")


@dataclass(frozen=True)
class Page:
    """The HTML, and the data it was written from."""

    html: str
    data: Mapping[str, Any]


def page(models: Sequence[Model], measured: Mapping[str, Any] | None = None) -> Page:
    """The gallery of these models. `measured`: the document of `python -m benchmarks throughput --json`."""
    marks = {model.name: diagrams.marks(model, models) for model in models}
    held = data(models, marks, measured)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, keep_trailing_newline=True)
    html = environment.from_string(_read("page.html")).render(
        style=_read("style.css") + diagrams.style(models[0]),
        families=len(groups(models)),
        models=len(models),
        overview=diagrams.bare(overview(typical(models), "overview-")),
        pictures=charts.pictures(),
        measured=_machine(measured),
        blocks=blocks_page.html(),
        version=version("zoo-llm"),
        diagrams={model.name: diagrams.drawing(model) for model in models},
        data=_json(held),
        specs=_json(specs()),
        vega=vega.javascript(),
        script="\n".join(_read(f"{name}.js") for name in SCRIPTS),
    )
    return Page(html, held)


def specs() -> dict[str, Any]:
    """Every chart in Vega, the tables it reads, and whether its colours tell models apart."""
    return {
        name: {"vega": vega.compiled(name), "tables": picture.tables, "by_model": picture.by_model}
        for name, picture in charts.pictures().items()
    }


def _machine(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return ""
    machine = measured["machine"]
    return f"Measured on {machine['cpu']}, {machine['platform']}, torch {machine['torch']}."


def _json(value: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
