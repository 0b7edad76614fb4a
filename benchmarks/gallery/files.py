"""The files of a gallery: the page, the data of its charts, and the charts as pictures.

The page is one HTML file, with the list of architectures and the text on blocks. It also holds, packed, its data, a
diagram of every model, and the scripts that show them.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import jinja2

from benchmarks.analytic import compare, weight_forms
from benchmarks.analytic.kv import InferenceConfig, crossing_row
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.analytic.roofline import device, devices
from benchmarks.analytic.weight_forms import FOUR_BIT
from benchmarks.gallery import blocks_page, chart, charts, cost_terms, learning_curves, swap_grid, timeline
from benchmarks.gallery.blocks_page import STYLE_SHEET, without_style
from benchmarks.gallery.chart_tables import tables
from benchmarks.gallery.cost_terms import BATCHES, Terms
from benchmarks.gallery.learning_tables import learning_tables, section
from benchmarks.gallery.overview import groups, overview, subtitle_of, title_of, typical
from benchmarks.gallery.swap_drawings import STRIP_PLACE, swap_drawings
from benchmarks.gallery.swap_grid import Grid
from benchmarks.output.report import columns
from benchmarks.output.show import describe_crossing
from zoo import __version__
from zoo.catalog import counterpart, title
from zoo.cli.tables import Format, Row, render
from zoo.diagram import callouts, marked_elements, svg
from zoo.model.decoder import Decoder
from zoo.new_files import write_file
from zoo.swaps.differences import structure_differences

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    *("sums", "show", "state", "architectures", "compare", "fit", "swap_drawings", "swap"),
    *("pointing", "charts", "saving", "playgrounds", "start"),
)
CARDS = (1, 2, 4, 8, 16)  # numbers of cards that hold a model together
CONTEXT, DEVICE = 4096, "h100"  # context and device of the costs in the comparison of two models
DTYPES = {"float32": 4, "bfloat16": 2, "float8": 1}
DTYPE_NAMES = {"float8_e4m3fn": "float8"}
FORM_LABELS = {"mxfp4": "MXFP4", "mxfp4+fp8": "MXFP4 and fp8"}
LAYOUTS: tuple[Literal["wide", "narrow"], ...] = ("wide", "narrow")  # of diagrams, for large screens and for phones
Json = dict[str, Any]
Interned = dict[str, tuple[int, Any]]  # repr of each distinct value -> (its index, the value)


def page(
    models: Sequence[NamedSpec], measured: Mapping[str, Any] | None = None, learned: Sequence[Row] | None = None
) -> str:
    """Returns the HTML of the page of these models.

    `measured`: the document of `python -m benchmarks throughput --json`. `learned`: the rows of `python -m benchmarks
    learn --json`, without which their section is left out.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, keep_trailing_newline=True)
    machine = "Measured on {cpu}, {platform}, torch {torch}.".format_map(measured["machine"]) if measured else ""
    shown = all_tables(models, measured, learned)
    curves, names = learning_curves.drawable(shown), frozenset(group.name for group in groups(models))
    specs = {  # every chart in Vega, the tables it reads, whether its colours distinguish models, and its height
        name: {"vega": each.compiled(shown), "tables": each.tables, "by_model": each.by_model} | each.size(shown)
        for name, each in {**charts.CHARTS, **curves}.items()
    }
    return environment.from_string(_read("page.html")).render(
        style=_read("style.css") + "".join(STYLE_SHEET.findall(svg(models[0].spec, models[0].name))),
        families=len(names),
        models=len(models),
        timeline=timeline.entries(models),
        sections={name: blocks_page.heading_id(each.section) for name, each in timeline.FEATURES.items()},
        shown=names,
        features=_feature_counts(models),
        overview=without_style(overview(typical(models), "overview-")),
        charts=charts.CHARTS,
        measured=machine,
        learned=section(learned) if learned else None,
        curves=curves,
        blocks=blocks_page.html(names),
        version=__version__,
        loader=_read("load.js"),
        packed=_packed(
            {
                "data": data(models, shown),
                "specs": specs,
                "diagrams": {model.name: _drawings(model) for model in models},
                "swaps": _swaps(models),
                "vega": chart.javascript(),
                "script": "\n".join(_read(f"{name}.js") for name in SCRIPTS),
            }
        ),
    )


def _packed(value: Any) -> str:
    """Returns a value as JSON, deflated and in base64, so that a page with a hundred models stays small."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def _feature_counts(models: Sequence[NamedSpec]) -> dict[str, int]:
    """Returns {feature: number of architectures with it}, for features that some but not all architectures have."""
    found = [timeline.features(model.spec) for model in typical(models)]
    counts = {name: sum(name in each for each in found) for name in timeline.FEATURES}
    return {name: count for name, count in counts.items() if 0 < count < len(found)}


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _index(values: Interned, value: Any) -> int:
    """Returns the index of a value among the distinct values so far, compared by `repr`. A new value is added."""
    return values.setdefault(repr(value), (len(values), value))[0]


def all_tables(
    models: Sequence[NamedSpec], measured: Mapping[str, Any] | None, learned: Sequence[Row] | None
) -> dict[str, list[Row]]:
    """Returns the tables of all charts. Some tables may have no rows."""
    return tables(models, measured["rows"] if measured else ()) | learning_tables(learned or [])


def data(models: Sequence[NamedSpec], shown: Mapping[str, Sequence[Row]]) -> Json:
    """Returns the data that the page's scripts look up or add up. `shown`: the tables of the charts."""
    terms: Interned = {}
    names = {model.name for model in models}
    return {
        "models": [_model(model, terms) | {"marked": _marks(model, models)} for model in models],
        "terms": [asdict(value) for _, value in terms.values()],
        "families": [
            {name: getattr(entry.group, name) for name in ("name", "title", "source", "new")}
            | {"models": [model.name for model in entry.group.models], "typical": entry.group.typical.name}
            | {"compared_with": entry.compared_with.name if entry.compared_with else None}
            for entry in timeline.entries(models)
        ],
        "batches": BATCHES,
        "cards": CARDS,
        "dtypes": DTYPES,
        "forms": _forms(),
        "devices": {name: asdict(each) for name, each in devices().items()},
        "pairs": [pair for pair in compare.PAIRS if {*pair} <= names],
        "comparisons": _comparisons(models),
        "tables": {
            name: {"columns": list(rows[0]) if rows else [], "rows": [list(row.values()) for row in rows]}
            for name, rows in shown.items()
        },
    }


def _forms() -> dict[str, Json]:
    """Returns the storage formats of weights, by name.

    `itemsize`: bytes per weight; None for formats with packed matrices. `activation`: bytes per element of an
    activation. `choice`: whether the page offers the format for every model.
    """
    plain = {DTYPE_NAMES.get(form.name, form.name): form for form in weight_forms.PLAIN.values()}
    named = plain | {FOUR_BIT.name: FOUR_BIT} | weight_forms.PACKED
    return {
        name: {
            "name": name,
            "label": FORM_LABELS.get(name, name),
            "itemsize": form.dtype.itemsize if name in plain else None,
            "activation": form.activation_itemsize,
            "choice": name in DTYPES or form is FOUR_BIT,
        }
        for name, form in named.items()
    }


def _drawings(model: NamedSpec) -> dict[str, dict[str, str]]:
    """Returns the model's diagram in each layout: `plain`, and as a `figure` with notes on its differences."""
    earlier = counterpart(model.name) if model.size else None
    found = structure_differences(model.spec, one(earlier).spec) if earlier else []
    heading = f"New compared with {title(earlier)}" if earlier and found else ""
    notes = callouts(found, model.spec)
    drawn = partial(svg, model.spec, title_of(model), subtitle=subtitle_of(model))
    return {
        layout: {
            "plain": without_style(drawn(layout=layout)),
            "figure": without_style(drawn(layout=layout, callouts=notes, heading=heading)),
        }
        for layout in LAYOUTS
    }


def _marks(model: NamedSpec, others: Sequence[NamedSpec]) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Returns, by layout and other model, the elements to mark in the model's diagram (diagram.marked_elements)."""
    specs, names = [other.spec for other in others], (title_of(model), subtitle_of(model))
    return {
        layout: marked_elements(model.spec, names[0], specs, layout=layout, subtitle=names[1]) for layout in LAYOUTS
    }


def _swaps(models: Sequence[NamedSpec]) -> Json:
    """Returns the parts of the drawings of all swaps, without duplicates, and the drawings of each model."""
    parts: Interned = {}
    drawn = {model.name: swap_drawings(model.spec, lambda part: _index(parts, part)) for model in models}
    return {"parts": [part for _, part in parts.values()], "models": drawn, "strip": STRIP_PLACE}


def _model(model: NamedSpec, terms: Interned) -> Json:
    spec = model.spec

    def indexed(layers: Terms) -> list[list[int]]:
        return [[n, _index(terms, each)] for n, each in layers]

    def grid(made: Grid) -> Json:
        axes = [[choice.shown(spec) for choice in axis] for axis in (made.rows, made.columns)]
        cells = [[None if cell is None else indexed(cell) for cell in row] for row in made.cells]
        return {"axes": axes, "cells": cells}

    forms = {form.name: form for form in (model.released_form, FOUR_BIT) if form not in weight_forms.PLAIN.values()}

    def stored(part: Decoder) -> dict[str, list[int]]:
        return {name: cost_terms.stored_bytes(part, form) for name, form in forms.items()}

    def on_cards(cards: int) -> Json | None:
        config, part = cost_terms.card_part(spec, cards)
        if part is None:
            return None
        layers, sent = indexed(cost_terms.model_terms(part)), cost_terms.sent_terms(spec, config)
        return {"layers": layers, "stored": stored(part), "sent": sent}

    from_config = 'spec = zoo.from_hf(json.load(open("config.json")))'
    return {
        "name": model.name,
        "title": title_of(model),
        "context": spec.context,
        "form": DTYPE_NAMES.get(model.released_form.name, model.released_form.name),
        "stored": stored(spec),
        "facts": timeline.facts(model),
        "code": f'spec = zoo.spec("{model.name}")' if model.size else from_config,
        "colour": chart.model_colours().get(model.name, chart.OTHER),
        "cards": {str(cards): on_cards(cards) for cards in CARDS if cards > 1},
        "outside": indexed(((1, cost_terms.outside_terms(spec)),)),
        "attention": grid(swap_grid.attention_grid(spec)),
        "experts": grid(swap_grid.expert_grid(spec)),
        "positions": swap_grid.positions(spec),
        "costs": [value for _, _, value in compare.costs(spec, CONTEXT, InferenceConfig(), device(DEVICE))],
    }


def _comparisons(models: Sequence[NamedSpec]) -> Json:
    """Returns the differences of every two models' specs, and the contexts at which each cache is smaller.

    `structure`: structural differences of the second model from the first, for both orders. Integers index `strings`.
    """
    strings: Interned = {}
    differences, caches, structure = {}, {}, {}
    for first, second in combinations(models, 2):
        pair = f"{first.name} {second.name}"
        rows = compare.difference_rows(first, second)
        differences[pair] = [[_index(strings, row[key]) for key in ("words", "value", "other")] for row in rows]
        for a, b in ((first, second), (second, first)):
            sentences = [(compare.field_in_words(row["part"]), row["sentence"]) for row in compare.structure_rows(a, b)]
            structure[f"{a.name} {b.name}"] = [[_index(strings, each) for each in found] for found in sentences]
        caches[pair] = describe_crossing(crossing_row(first, second, InferenceConfig()))
    costs = compare.costs(models[0].spec, CONTEXT, InferenceConfig(), device(DEVICE))
    return {
        "strings": [value for _, value in strings.values()],
        "differences": differences,
        "structure": structure,
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
    """Writes index.html, data/*.csv and, with `images`, charts/*.png and *.svg; returns the files, the page first.

    `progress` is called with the name of each step. Raises NotAvailable if a file cannot be written.
    """
    progress("drawing and adding up")
    files = {folder / "index.html": page(models, measured, learned).encode()}
    for name, rows in all_tables(models, measured, learned).items():
        if rows:
            text = render(rows, columns(**{key: key for key in rows[0]}), Format.csv)
            files[folder / "data" / f"{name}.csv"] = f"{text}\n".encode()
    if images:  # one size per architecture, with the page's defaults
        progress("drawing charts")
        card, shown = device(DEVICE), all_tables(typical(models), measured, learned)
        drawn = charts.pictures(shown, {"rate": card.flops, "bandwidth": card.bandwidth})
        drawn |= chart.images(learning_curves.CHARTS, shown)
        files |= {folder / "charts" / name: image for name, image in drawn.items()}
    for path, content in files.items():
        write_file(path, content)
    return list(files)
