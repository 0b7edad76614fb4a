"""Charts of learning: bits per byte by KV-cache bytes and by training tokens, FLOPs and seconds; accuracy at tasks.

They are drawn from the rows of `python -m benchmarks learn`, as pictures or for a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import log
from typing import Literal, NamedTuple

import altair as alt

from benchmarks.gallery.chart import (
    COUNT_LABEL,
    DECADES,
    HEIGHT,
    HUES,
    LEGEND,
    WIDTH,
    Chart,
    Tables,
    images,
    log_axis,
)
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
PLOT_WIDTH, PLOT_HEIGHT = 560, 340  # pixels: the narrowest plot that shows names, for which `label_places` places them
LETTER, LINE, POINT = 6.6, 13, 7  # pixels: the width of a letter, the height of a line, half a point

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def drawable(tables: Tables) -> dict[str, Chart]:
    """Returns the charts that have data, by name."""
    return {name: chart for name, chart in CHARTS.items() if chart.rows(tables)}


def pictures(rows: Sequence[Row]) -> dict[str, bytes]:
    """Returns {file name: image} of every chart that has data."""
    return images(CHARTS, learning_tables(rows))


def _colours(data: Sequence[Row], legend: alt.Legend | None) -> alt.Color:
    """Returns a colour channel with a hue for each model, in their order."""
    names = list(dict.fromkeys(row["model"] for row in data))
    hues = [hue for _, hue in zip(names, cycle(HUES), strict=False)]
    return alt.Color("model:N", sort=None, scale=alt.Scale(domain=names, range=hues), legend=legend)


def _base(table: str, data: Sequence[Row], x: alt.X, legend: alt.Legend | None, *tips: alt.Tooltip) -> alt.Chart:
    """Returns a chart of bits per byte by `x`, with a colour for each model."""
    y = alt.Y("bits_per_byte:Q").scale(zero=False, padding=12).title(Y_TITLE)
    shown = [alt.Tooltip("model:N"), alt.Tooltip("bits_per_byte:Q", format=".3f", title="bits per byte"), *tips]
    chart = alt.Chart(alt.NamedData(table)).transform_filter("isValid(datum.bits_per_byte)")
    return chart.encode(x=x, y=y, color=_colours(data, legend), tooltip=shown)


def _by_training(by: str, key: str, label: str, title: str, note: str = "") -> Chart:
    """Returns a chart of mean curves over a cost of training, with a band from the lowest to the highest seed."""
    x = log_axis(alt.X(f"{key}:Q"), TICKS, label, title)

    def draw(data: Sequence[Row]) -> alt.LayerChart:
        base = _base("learning_curves", data, x, alt.Legend(**LEGEND, symbolType="stroke"))
        band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q").title(Y_TITLE), y2="high:Q")
        lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=30))
        return alt.layer(band, lines).properties(width=WIDTH, height=HEIGHT)

    words = f"Means over the seeds; the band reaches from the lowest seed to the highest.{note}"
    return Chart(f"Bits per byte by {by}", words, ("learning_curves",), draw, by_model=False)


def _by_cache(data: Sequence[Row]) -> alt.LayerChart:
    sizes = [row["kv_bytes_per_token"] for row in data]
    domain = [min(sizes) / 1.6, max(sizes) * 1.6]  # space for the names
    title = "bytes of KV cache per token"
    x = log_axis(alt.X("kv_bytes_per_token:Q"), POWERS_OF_TWO, BYTES_LABEL, title, base=2, domain=domain)
    tips = [alt.Tooltip(f"bits_per_byte_{end}:Q", format=".3f", title=end) for end in ("low", "high")]
    cache = alt.Tooltip("kv_bytes_per_token:Q", format=",.0f", title="KV bytes per token")
    base = _base("learning", data, x, None, *tips, cache)
    intervals = base.transform_filter("isValid(datum.bits_per_byte_low)").mark_rule(strokeWidth=2)
    intervals = intervals.encode(y=alt.Y("bits_per_byte_low:Q"), y2="bits_per_byte_high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1)
    names, bits = [row["model"] for row in data], [row["bits_per_byte"] for row in data]
    places = label_places(names, sizes, bits, domain)
    at = {place: [name for name, each in zip(names, places, strict=True) if each == place] for place in places}
    labels = [_labels(base, *each) for each in at.items()]
    return alt.layer(intervals, points, *labels).properties(width=WIDTH, height=HEIGHT)


def _labels(base: alt.Chart, place: Place, models: Sequence[str]) -> alt.Chart:
    """Returns a layer with the names of these models, each at this place beside its point."""
    chosen = base.transform_filter(alt.FieldOneOfPredicate("model", list(models)))
    size = alt.expr(f"width < {NARROW} ? 0 : 12")  # size 0, because even invisible names would take space
    return chosen.mark_text(align=place.align, dx=place.dx, dy=place.dy, fontSize=size).encode(text="model:N")


class Place(NamedTuple):
    """The place of a name beside its point: to the right (align "left") or left, with an offset in pixels."""

    align: Literal["left", "right"]
    dx: int
    dy: int


PLACES = [place for dy in (0, -13, 13, -26, 26) for place in (Place("left", 10, dy), Place("right", -10, dy))]


def label_places(names: Sequence[str], x: Sequence[float], y: Sequence[float], domain: Sequence[float]) -> list[Place]:
    """Returns a place for the name of each point: the first of PLACES with the least overlap.

    Overlap is that with other points, with names placed before, and with the edges. `x` is on a logarithmic scale that
    shows `domain`, `y` on a linear one.
    """
    left, right = map(log, domain)
    low, high = min(y), max(y)
    across = [(log(value) - left) / (right - left) * PLOT_WIDTH for value in x]
    down = [(high - value) / ((high - low) or 1) * PLOT_HEIGHT for value in y]
    points = [(i - POINT, j - POINT, i + POINT, j + POINT) for i, j in zip(across, down, strict=True)]
    taken, chosen = list[Box](), list[Place]()
    for k, name in enumerate(names):
        others = [*points[:k], *points[k + 1 :], *taken]
        boxes = {place: _box(name, across[k], down[k], place) for place in PLACES}
        best = min(PLACES, key=lambda place: _cost(boxes[place], others))
        taken.append(boxes[best])
        chosen.append(best)
    return chosen


def _box(name: str, x: float, y: float, place: Place) -> Box:
    start = x + place.dx - (len(name) * LETTER if place.align == "right" else 0)
    return start, y + place.dy - LINE / 2, start + len(name) * LETTER, y + place.dy + LINE / 2


def _cost(box: Box, others: Sequence[Box]) -> float:
    """Returns the area of a box, in square pixels, that overlaps others or exceeds the left and right edges."""
    left, top, right, bottom = box
    shared = sum(
        max(min(right, other[2]) - max(left, other[0]), 0) * max(min(bottom, other[3]) - max(top, other[1]), 0)
        for other in others
    )
    return shared + (max(-left, 0) + max(right - PLOT_WIDTH, 0)) * LINE


def _accuracy(data: Sequence[Row]) -> alt.TopLevelMixin:
    """Returns the chart of accuracy by the size of a task, such as the number of pairs in a recall.

    It has a line for each model and a panel for each task.
    """
    sizes, tasks = sorted({row["size"] for row in data}), list(dict.fromkeys(row["task"] for row in data))
    colour = _colours(data, alt.Legend(**LEGEND, symbolType="stroke"))
    known = len(tasks) == 1 and (tasks[0] in TASKS or tasks[0] == LENGTH)
    x = alt.X("size:Q").scale(type="log", base=2, domain=[sizes[0] / 1.1, sizes[-1] * 1.1])
    x = x.axis(values=sizes, format="d").title(size_word(tasks[0]) if known else SIZE_TITLE)
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
    header = alt.Row("task:N", sort=tasks).header(title=None, labelOrient="top", labelAnchor="start", labelPadding=2)
    return layers.facet(row=header, data=alt.NamedData("learning_accuracy"))


CHARTS = {
    "learning-by-cache": Chart(
        "Bits per byte by KV cache",
        "Lower is better. Bars: 95 % intervals over seeds. The cache is that of one sequence as long as the trained "
        "context, in bfloat16.",
        ("learning",),
        _by_cache,
        "bits_per_byte",
        by_model=False,
    ),
    "learning-by-tokens": _by_training("training tokens", "tokens", COUNT_LABEL, "training tokens (bytes)"),
    "learning-by-flops": _by_training(
        "training FLOPs",
        "flops",
        COUNT_LABEL,
        "training FLOPs",
        " A training step takes three times the FLOPs of a forward pass.",
    ),
    "learning-by-seconds": _by_training(
        "training time", "seconds", SECONDS_LABEL, "seconds of training", " Training steps alone, one thread."
    ),
    "learning-accuracy": Chart(
        "Accuracy by the size of a task",
        "Points: means over the seeds. Bars: 95 % intervals. Grey ticks: the accuracy of a guess. The size of a recall "
        "is the number of pairs to choose from; more pairs are also further away.",
        ("learning_accuracy",),
        _accuracy,
        by_model=False,
        panels=True,
    ),
}
