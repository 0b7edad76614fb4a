"""Charts of learning: bits per byte by KV-cache bytes and by training tokens, FLOPs and seconds, and accuracy at tasks.

They are drawn from the rows of `python -m benchmarks learn`, as pictures or for a page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any

import altair as alt
import vl_convert

from benchmarks.gallery.chart_style import (
    AXIS,
    COUNT_LABEL,
    DECADES,
    HEIGHT,
    HUES,
    LEGEND,
    LIGHT,
    PAGE,
    WIDTH,
    log_axis,
    styled,
)
from benchmarks.gallery.label_places import Place, label_places
from benchmarks.gallery.learning_tables import learning_tables
from benchmarks.learning.comparison import LENGTH
from benchmarks.learning.rows import size_word
from benchmarks.learning.tasks import TASKS
from zoo.cli.tables import Row

TICKS = [digit * decade for decade in DECADES for digit in (1, 2, 3, 4, 6, 8)]
SECONDS_LABEL = "datum.value + ' s'"
BYTES_LABEL = "datum.value >= 1024 ? datum.value / 1024 + ' KiB' : datum.value + ' B'"
POWERS_OF_TWO = [2**i for i in range(24)]
Y_TITLE = "bits per byte, held-out text"
SIZE_TITLE = "size of the task"
PANEL = 230  # pixels: the height of one of several panels
NARROW = 480  # pixels; below this width, a page shows its legend instead of names in the chart


@dataclass(frozen=True)
class LearningChart:
    """A chart of a table of `learning_tables`.

    `wanted` selects its rows. `panels`: whether it has several panels, one above the other.
    """

    title: str
    caption: str
    table: str
    wanted: Callable[[Row], bool]
    draw: Callable[[Sequence[Row]], alt.TopLevelMixin]
    panels: bool = False

    def data(self, tables: Mapping[str, Sequence[Row]]) -> list[Row]:
        """Returns the rows that the chart shows."""
        return [row for row in tables[self.table] if self.wanted(row)]


def drawable(tables: Mapping[str, Sequence[Row]]) -> dict[str, LearningChart]:
    """Returns the charts that have data, by name."""
    return {name: chart for name, chart in CHARTS.items() if chart.data(tables)}


def compiled(name: str, tables: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Returns a chart compiled to Vega, with the page's colours and an empty table that the page fills."""
    chart = CHARTS[name]
    spec: dict[str, Any] = vl_convert.vegalite_to_vega(styled(chart.draw(chart.data(tables)), PAGE))
    return spec


def size(name: str, tables: Mapping[str, Sequence[Row]]) -> dict[str, int]:
    """Returns the height of a chart on the page, without its legend, in pixels: of the plot, and of the axis below.

    A chart with a panel for each task is drawn to find its height.
    """
    chart = CHARTS[name]
    if not chart.panels:
        return {"height": HEIGHT, "axis": AXIS}
    spec = styled(chart.draw(chart.data(tables)), LIGHT) | {"datasets": {chart.table: tables[chart.table]}}
    vega = vl_convert.vegalite_to_vega(spec) | {"legends": []}
    height = re.search(r'height="([\d.]+)"', vl_convert.vega_to_svg(vega))
    return {"height": ceil(float(height[1])) if height else HEIGHT, "axis": 0}


def pictures(rows: Sequence[Row]) -> dict[str, bytes]:
    """Returns {file name: image} of every chart that has data, in light colours: PNG (two pixels per point) and SVG."""
    tables = learning_tables(rows)
    images = dict[str, bytes]()
    for name, chart in drawable(tables).items():
        spec = styled(chart.draw(chart.data(tables)), LIGHT)
        spec |= {"title": chart.title, "datasets": {chart.table: tables[chart.table]}, "background": LIGHT["paper"]}
        vega = vl_convert.vegalite_to_vega(spec)
        images |= {
            f"{name}.png": vl_convert.vega_to_png(vega, scale=2),
            f"{name}.svg": vl_convert.vega_to_svg(vega).encode(),
        }
    return images


def _colours(names: Sequence[str], field: str, legend: alt.Legend | None) -> alt.Color:
    """Returns a colour channel with a hue for each name, in their order."""
    hues = [hue for _, hue in zip(names, cycle(HUES), strict=False)]
    return alt.Color(f"{field}:N", sort=None, scale=alt.Scale(domain=list(names), range=hues), legend=legend)


def _base(table: str, data: Sequence[Row], x: alt.X, legend: alt.Legend | None, *tips: alt.Tooltip) -> alt.Chart:
    """Returns a chart of bits per byte by `x`, with a colour for each model."""
    y = alt.Y("bits_per_byte:Q").scale(zero=False, padding=12).title(Y_TITLE)
    colour = _colours(list(dict.fromkeys(row["model"] for row in data)), "model", legend)
    shown = [alt.Tooltip("model:N"), alt.Tooltip("bits_per_byte:Q", format=".3f", title="bits per byte"), *tips]
    chart = alt.Chart(alt.NamedData(table)).transform_filter("isValid(datum.bits_per_byte)")
    return chart.encode(x=x, y=y, color=colour, tooltip=shown)


def _curves(x: alt.X) -> Callable[[Sequence[Row]], alt.LayerChart]:
    """Returns the drawing function of mean curves, with a band from the lowest to the highest seed."""

    def draw(data: Sequence[Row]) -> alt.LayerChart:
        base = _base("learning_curves", data, x, alt.Legend(**LEGEND, symbolType="stroke"))
        band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q").title(Y_TITLE), y2="high:Q")
        lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=30))
        return alt.layer(band, lines).properties(width=WIDTH, height=HEIGHT)

    return draw


def _by_cache(data: Sequence[Row]) -> alt.LayerChart:
    sizes = [row["kv_bytes_per_token"] for row in data]
    domain = [min(sizes) / 1.6, max(sizes) * 1.6]  # room for the names
    title = "bytes of KV cache per token"
    x = log_axis(alt.X("kv_bytes_per_token:Q"), POWERS_OF_TWO, BYTES_LABEL, title, base=2, domain=domain)
    tips = [alt.Tooltip(f"bits_per_byte_{end}:Q", format=".3f", title=end) for end in ("low", "high")]
    cache = alt.Tooltip("kv_bytes_per_token:Q", format=",.0f", title="KV bytes per token")
    base = _base("learning", data, x, None, *tips, cache)
    intervals = base.transform_filter("isValid(datum.bits_per_byte_low)").mark_rule(strokeWidth=2)
    intervals = intervals.encode(y=alt.Y("bits_per_byte_low:Q"), y2="bits_per_byte_high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1)
    labels = [_labels(base, place, models) for place, models in _by_place(data, domain).items()]
    return alt.layer(intervals, points, *labels).properties(width=WIDTH, height=HEIGHT)


def _by_place(data: Sequence[Row], domain: Sequence[float]) -> dict[Place, list[str]]:
    places = label_places(
        [row["model"] for row in data],
        [row["kv_bytes_per_token"] for row in data],
        [row["bits_per_byte"] for row in data],
        domain,
    )
    by_place = dict[Place, list[str]]()
    for row, place in zip(data, places, strict=True):
        by_place.setdefault(place, []).append(row["model"])
    return by_place


def _labels(base: alt.Chart, place: Place, models: Sequence[str]) -> alt.Chart:
    """Returns the names of these models, each at this place beside its point."""
    chosen = base.transform_filter(alt.FieldOneOfPredicate("model", list(models)))
    size = alt.expr(f"width < {NARROW} ? 0 : 12")  # size 0, since invisible names would still take room
    return chosen.mark_text(align=place.align, dx=place.dx, dy=place.dy, fontSize=size).encode(text="model:N")


def _accuracy(data: Sequence[Row]) -> alt.TopLevelMixin:
    """Returns accuracy by the size of a task, such as the number of pairs in a recall.

    It has a line for each model and a panel for each task.
    """
    names, sizes = (list(dict.fromkeys(row[key] for row in data)) for key in ("model", "size"))
    tasks = {task: max(row["size"] for row in data if row["task"] == task) for task in dict.fromkeys(map(_task, data))}
    colour = _colours(names, "model", alt.Legend(**LEGEND, symbolType="stroke"))
    x = alt.X("size:Q").scale(type="log", base=2, domain=[min(sizes) / 1.1, max(sizes) * 1.1])
    x = x.axis(values=sorted(sizes), format="d").title(SIZE_TITLE if len(tasks) > 1 else _size_title(_task(data[0])))
    y = alt.Y("mean:Q").scale(domain=[0, 1], clamp=True).axis(format=".0%").title("accuracy")
    tips = [alt.Tooltip(f"{name}:N") for name in ("model", "measure")]
    tips += [alt.Tooltip(f"{name}:Q", format=".1%") for name in ("mean", "low", "high", "chance")]
    base = (alt.Chart() if len(tasks) > 1 else alt.Chart(alt.NamedData("learning_accuracy"))).encode(x=x, color=colour)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.4, strokeOpacity=0.35)
    bars = bars.encode(y=alt.Y("low:Q").title("accuracy"), y2="high:Q")
    lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=45)).encode(y=y, tooltip=tips)
    chance = base.mark_tick(thickness=1.6, color="@faint", orient="horizontal", bandSize=26).encode(
        y="chance:Q", color=alt.value("@faint")
    )
    layers = alt.layer(bars, lines, chance).properties(width=WIDTH, height=HEIGHT if len(tasks) == 1 else PANEL)
    if len(tasks) == 1:
        return layers
    header = alt.Row("task:N", sort=list(tasks)).header(
        title=None, labelOrient="top", labelAnchor="start", labelPadding=2
    )
    return layers.facet(row=header, data=alt.NamedData("learning_accuracy"))


def _size_title(task: str) -> str:
    """Returns the unit of a task's sizes ("pairs" for recall), or a general title for an unknown task."""
    return size_word(task) if task in TASKS or task == LENGTH else SIZE_TITLE


def _task(row: Row) -> str:
    name: str = row["task"]
    return name


def _has_bits(row: Row) -> bool:
    return row["bits_per_byte"] is not None


_BAND = "Means over the seeds; the band reaches from the lowest seed to the highest."
CHARTS = {
    "learning-by-cache": LearningChart(
        "Bits per byte by KV cache",
        "Lower is better. Bars: 95 % intervals over seeds. The cache is that of one sequence as long as the trained "
        "context, in bfloat16.",
        "learning",
        _has_bits,
        _by_cache,
    ),
    "learning-by-tokens": LearningChart(
        "Bits per byte by training tokens",
        _BAND,
        "learning_curves",
        _has_bits,
        _curves(log_axis(alt.X("tokens:Q"), TICKS, COUNT_LABEL, "training tokens (bytes)")),
    ),
    "learning-by-flops": LearningChart(
        "Bits per byte by training FLOPs",
        f"{_BAND} A training step takes three times the FLOPs of a forward pass.",
        "learning_curves",
        _has_bits,
        _curves(log_axis(alt.X("flops:Q"), TICKS, COUNT_LABEL, "training FLOPs")),
    ),
    "learning-by-seconds": LearningChart(
        "Bits per byte by training time",
        f"{_BAND} Training steps alone, one thread.",
        "learning_curves",
        _has_bits,
        _curves(log_axis(alt.X("seconds:Q"), TICKS, SECONDS_LABEL, "seconds of training")),
    ),
    "learning-accuracy": LearningChart(
        "Accuracy by the size of a task",
        "Of a recall: the pairs among which it looks, and so its distance. Points: means over the seeds. Bars: 95 % "
        "intervals. Grey ticks: a guess.",
        "learning_accuracy",
        lambda row: True,
        _accuracy,
        panels=True,
    ),
}
