"""The files of a gallery: the page, the data of its charts, the charts as pictures, and what docs/ holds of it.

The page is one HTML file, which holds its data as JSON, a diagram of every model, and the scripts that show them.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.analytic import compare
from benchmarks.analytic.kv import InferenceConfig, crossing_row
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.analytic.roofline import device, devices
from benchmarks.analytic.selection import matching, one_each
from benchmarks.gallery import blocks_page, charts, cost_terms, learning_curves, swap_grid
from benchmarks.gallery.blocks_page import STYLE_SHEET, without_style
from benchmarks.gallery.chart_tables import tables
from benchmarks.gallery.charts import FORMATS
from benchmarks.gallery.cost_terms import BATCHES, Terms
from benchmarks.gallery.learning_tables import learning_tables, section
from benchmarks.gallery.overview import groups, overview, typical
from benchmarks.gallery.swap_grid import Grid
from benchmarks.output.report import columns
from benchmarks.output.show import describe_crossing
from zoo.cli.figure import figure
from zoo.cli.tables import Format, Row, render
from zoo.diagram import svg
from zoo.new_files import write_file

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("sums", "show", "diagrams", "whatif", "charts")
CARDS = (1, 2, 4, 8, 16)  # that hold a model together
FIGURE = "deepseek-v3-671b"  # in docs/models.md
CONTEXT, DEVICE = 4096, "h100"  # of the costs that two models are compared in
DTYPES = {"float32": 4, "bfloat16": 2, "float8": 1}
TAG = re.compile(r"<[a-z][^>]*>")  # the start of an element; the drawing escapes every > inside a value
DIFFERS = re.compile(r'class="[^"]*\bdiffers\b')
Json = dict[str, Any]
Interned = dict[str, tuple[int, Any]]  # the repr of each distinct value -> its index, and the value


def page(
    models: Sequence[NamedSpec], measured: Mapping[str, Any] | None = None, learned: Sequence[Row] | None = None
) -> str:
    """The HTML of the page of these models. `measured`: the document of `python -m benchmarks throughput --json`;
    `learned`: the rows of `python -m benchmarks learn --json`, without which their section is left out."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, keep_trailing_newline=True)
    machine = "Measured on {cpu}, {platform}, torch {torch}.".format_map(measured["machine"]) if measured else ""
    specs = {  # every chart in Vega, the tables it reads, and whether its colours distinguish models
        name: {"vega": charts.compiled(name), "tables": chart.tables, "by_model": chart.by_model}
        for name, chart in charts.CHARTS.items()
    }
    learning = learning_tables(learned or [])
    curves = learning_curves.drawable(learning)
    for name, chart in curves.items():
        vega = learning_curves.compiled(name, learning)
        specs[name] = {"vega": vega, "tables": (chart.table,), "by_model": False}
    return environment.from_string(_read("page.html")).render(
        style=_read("style.css") + "".join(STYLE_SHEET.findall(svg(models[0].spec, models[0].name))),
        families=len(groups(models)),
        models=len(models),
        overview=without_style(overview(typical(models), "overview-")),
        charts=charts.CHARTS,
        measured=machine,
        learned=section(learned) if learned else None,
        curves=curves,
        blocks=blocks_page.html(),
        version=version("zoo-llm"),
        diagrams={model.name: without_style(svg(model.spec, model.name)) for model in models},
        data=_json(data(models, measured, learning)),
        specs=_json(specs),
        vega=charts.javascript(),
        script="\n".join(_read(f"{name}.js") for name in SCRIPTS),
    )


def _json(value: Any) -> str:
    """JSON for a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _index(values: Interned, value: Any) -> int:
    """The index of a value among the distinct values so far, to which it is added if no other has the same `repr`."""
    return values.setdefault(repr(value), (len(values), value))[0]


def data(
    models: Sequence[NamedSpec], measured: Mapping[str, Any] | None = None, learning: Mapping[str, list[Row]] = {}
) -> Json:
    """Everything that the page's scripts look up or add up. `learning`: the tables of what small models learned."""
    terms: Interned = {}
    names = {model.name for model in models}
    return {
        "models": [_model(model, terms) | {"differing": _differing_elements(model, models)} for model in models],
        "terms": [asdict(value) for _, value in terms.values()],
        "families": [
            {name: getattr(group, name) for name in ("name", "title", "source", "new")}
            | {"models": [model.name for model in group.models], "typical": group.typical.name}
            for group in groups(models)
        ],
        "batches": BATCHES,
        "cards": CARDS,
        "dtypes": DTYPES,
        "devices": {name: asdict(each) for name, each in devices().items()},
        "pairs": [pair for pair in compare.PAIRS if {*pair} <= names],
        "comparisons": _comparisons(models),
        "tables": {
            name: {"columns": list(rows[0]) if rows else [], "rows": [list(row.values()) for row in rows]}
            for name, rows in {**tables(models, measured["rows"] if measured else ()), **learning}.items()
        },
    }


def _differing_elements(model: NamedSpec, others: Sequence[NamedSpec]) -> list[list[int]]:
    """For each of the others, the indices (in document order, without the root) of the elements in the model's diagram
    that the other's diagram does not have."""
    drawings = (svg(model.spec, model.name, against=other.spec) for other in others)
    elements = (TAG.findall(without_style(drawing))[1:] for drawing in drawings)
    return [[i for i, tag in enumerate(each) if DIFFERS.search(tag)] for each in elements]


def _model(model: NamedSpec, terms: Interned) -> Json:
    spec = model.spec

    def indexed(layers: Terms) -> list[list[int]]:
        return [[n, _index(terms, each)] for n, each in layers]

    def grid(made: Grid) -> Json:
        axes = [
            [[choice.label, choice.code, ", ".join(choice.dropped_features(spec))] for choice in axis]
            for axis in (made.rows, made.columns)
        ]
        cells = [[None if cell is None else indexed(cell) for cell in row] for row in made.cells]
        return {"axes": axes, "cells": cells}

    def on_cards(cards: int) -> Json | None:
        found = cost_terms.card_terms(spec, cards)
        return found and {"layers": indexed(found[0]), "sent": asdict(found[1])}

    from_config = 'spec = zoo.from_hf(json.load(open("config.json")))'
    return {
        "name": model.name,
        "context": spec.context,
        "layers": len(spec.layers),
        "code": f'spec = zoo.spec("{model.name}")' if model.size else from_config,
        "colour": charts.model_colours().get(model.name, charts.OTHER),
        "cards": {str(cards): on_cards(cards) for cards in CARDS if cards > 1},
        "outside": indexed(((1, cost_terms.outside_terms(spec)),)),
        "attention": grid(swap_grid.attention_grid(spec)),
        "experts": grid(swap_grid.expert_grid(spec)),
        "positions": swap_grid.positions(spec),
        "costs": [value for _, _, value in compare.costs(spec, CONTEXT, InferenceConfig(), device(DEVICE))],
    }


def _comparisons(models: Sequence[NamedSpec]) -> Json:
    """For every two models the differences of their specs, as indices into `strings`, and whose cache is smaller."""
    strings: Interned = {}
    differences, caches = {}, {}
    for first, second in combinations(models, 2):
        pair = f"{first.name} {second.name}"
        rows = compare.difference_rows(first, second)
        differences[pair] = [[_index(strings, row[key]) for key in ("field", "value", "other")] for row in rows]
        caches[pair] = describe_crossing(crossing_row(first, second, InferenceConfig()))
    costs = compare.costs(models[0].spec, CONTEXT, InferenceConfig(), device(DEVICE))
    return {
        "strings": [value for _, value in strings.values()],
        "differences": differences,
        "caches": caches,
        "costs": [[figure, unit] for figure, unit, _ in costs],
        "context": CONTEXT,
        "device": device(DEVICE).name,
    }


def write_gallery(
    folder: Path,
    models: Sequence[NamedSpec],
    measured: Mapping[str, Any] | None,
    images: bool,
    progress: Callable[[str], None] = lambda step: None,
    learned: Sequence[Row] | None = None,
) -> list[Path]:
    """Write index.html, data/*.csv and, with `images`, charts/*.png and *.svg -> the files, the page first. `progress`
    is called with the name of each step. Raises NotAvailable if a file cannot be written."""
    progress("drawing and adding up")
    files = {folder / "index.html": page(models, measured, learned).encode()}
    speeds = measured["rows"] if measured else ()
    for name, rows in (tables(models, speeds) | learning_tables(learned or [])).items():
        if rows:
            text = render(rows, columns(**{key: key for key in rows[0]}), Format.csv)
            files[folder / "data" / f"{name}.csv"] = f"{text}\n".encode()
    if images:
        progress("drawing charts")
        images_by_name = chart_images(models, speeds) | learning_curves.pictures(learned or [])
        files |= {folder / "charts" / name: image for name, image in images_by_name.items()}
    for path, content in files.items():
        write_file(path, content)
    return list(files)


def chart_images(models: Sequence[NamedSpec], speeds: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """File name -> image of each chart that has data, for one model of each architecture and the page's defaults."""
    card, data = device(DEVICE), tables(typical(models), speeds)
    params = {"rate": card.flops, "bandwidth": card.bandwidth}
    names = [name for name, chart in charts.CHARTS.items() if data[chart.tables[0]]]
    return {f"{name}.{kind}": charts.image(name, data, params, kind) for name in names for kind in FORMATS}


def docs_files() -> dict[str, bytes]:
    """Path in docs/ -> content of every file there that the gallery generates; the same on every machine."""
    texts = {
        "overview.svg": overview([one(name) for name in one_each(matching())], theme="light"),
        "figure.svg": figure(FIGURE)[0],
        "blocks.md": blocks_page.markdown(),
    }
    texts |= {f"blocks/{name}": drawing for name, drawing in blocks_page.pictures().items()}
    return {name: f"{text}\n".encode() for name, text in texts.items()}
