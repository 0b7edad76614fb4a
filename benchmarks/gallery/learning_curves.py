"""Charts of what models learn: bits per byte against tokens, FLOPs and seconds, and against the bytes of the cache.

They are drawn from the rows "learn" of `python -m benchmarks learn`, as pictures or for a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean

import altair as alt
import vl_convert

from benchmarks.gallery.charts import COUNT_LABEL, DECADES, HEIGHT, HUES, LEGEND, LIGHT, WIDTH, log_axis, styled
from benchmarks.gallery.files import FORMATS, write_file
from zoo.cli.tables import Row

ONE_TWO_FIVE = [digit * decade for decade in DECADES for digit in (1, 2, 5)]
SECONDS_LABEL = "datum.value + ' s'"
BYTES_LABEL = "datum.value >= 1024 ? datum.value / 1024 + ' KiB' : datum.value + ' B'"
POWERS_OF_TWO = [2**i for i in range(24)]


@dataclass(frozen=True)
class LearningChart:
    """A chart and the rows that it needs: `data` makes them of the rows of a comparison."""

    title: str
    caption: str
    data: Callable[[Sequence[Row]], list[Row]]
    draw: Callable[[Sequence[Row]], alt.LayerChart]


def label(row: Row) -> str:
    """A model with its swaps."""
    return f"{row['model']} {row['swap']}" if row["swap"] else row["model"]


def curve_points(rows: Sequence[Row]) -> list[Row]:
    """The evaluations during training: of each model and number of tokens, the means over its seeds."""
    found = []
    for row in rows:
        points = dict[int, list[Row]]()
        for run in row["runs"]:
            for point in run["curve"]:
                points.setdefault(point["tokens"], []).append(point)
        for seeds in points.values():
            means = {key: fmean(point[key] for point in seeds) for key in ("tokens", "flops", "seconds")}
            bits = [point["bits_per_byte"] for point in seeds]
            found.append({"model": label(row), **means, "bits": fmean(bits), "low": min(bits), "high": max(bits)})
    return found


def cache_points(rows: Sequence[Row]) -> list[Row]:
    """Bits per byte with its interval, and the bytes of the cache per token of a full context."""
    return [
        {
            "model": label(row),
            "kv": row["kv_bytes"] / row["context"],
            "bits": row["bits_per_byte"],
            "low": row["bits_per_byte"] if row["bits_per_byte_low"] is None else row["bits_per_byte_low"],
            "high": row["bits_per_byte"] if row["bits_per_byte_high"] is None else row["bits_per_byte_high"],
        }
        for row in rows
        if row["bits_per_byte"] is not None
    ]


def picture(name: str, rows: Sequence[Row], format: str) -> bytes:
    """A chart as PNG (two pixels per point) or SVG, in light colours."""
    chart = CHARTS[name]
    data = chart.data(rows)
    spec = styled(chart.draw(data), LIGHT) | {
        "title": chart.title,
        "datasets": {"learned": data},
        "background": LIGHT["paper"],
    }
    vega = vl_convert.vegalite_to_vega(spec)
    return vl_convert.vega_to_svg(vega).encode() if format == "svg" else vl_convert.vega_to_png(vega, scale=2)


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write every chart that has data as PNG and SVG -> the files. Raises NotAvailable if one cannot be written."""
    files = []
    for name, chart in CHARTS.items():
        if chart.data(rows):
            for format in FORMATS:
                files.append(folder / f"{name}.{format}")
                write_file(files[-1], picture(name, rows, format))
    return files


def _colour(data: Sequence[Row]) -> alt.Color:
    models = list(dict.fromkeys(row["model"] for row in data))
    hues = [hue for _, hue in zip(models, cycle(HUES), strict=False)]
    legend = alt.Legend(**LEGEND, symbolType="stroke")
    return alt.Color("model:N", sort=None, scale=alt.Scale(domain=models, range=hues), legend=legend)


def _bits() -> alt.Y:
    return alt.Y("bits:Q").scale(zero=False, padding=12).title("bits per byte, held-out text")


def _base(data: Sequence[Row], x: alt.X) -> alt.Chart:
    tips = [alt.Tooltip("model:N"), alt.Tooltip("bits:Q", format=".3f")]
    return alt.Chart(alt.NamedData("learned")).encode(x=x, y=_bits(), color=_colour(data), tooltip=tips)


def _curves(x: alt.X) -> Callable[[Sequence[Row]], alt.LayerChart]:
    """Means, and a band from the lowest to the highest seed."""

    def draw(data: Sequence[Row]) -> alt.LayerChart:
        base = _base(data, x)
        band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q").title(None), y2="high:Q")
        lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=30))
        return alt.layer(band, lines).properties(width=WIDTH, height=HEIGHT)

    return draw


def _by_cache(data: Sequence[Row]) -> alt.LayerChart:
    sizes = [row["kv"] for row in data]
    domain = [min(sizes) / 1.5, max(sizes) * 2]  # room for the names
    x = log_axis(alt.X("kv:Q"), POWERS_OF_TWO, BYTES_LABEL, "bytes of KV cache per token", base=2, domain=domain)
    base = _base(data, x)
    intervals = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1)
    names = base.mark_text(align="left", dx=9, dy=-7).encode(text="model:N")
    return alt.layer(intervals, points, names).properties(width=WIDTH, height=HEIGHT)


_BAND = "Means over the seeds; the band reaches from the lowest seed to the highest."
CHARTS = {
    "learning-by-tokens": LearningChart(
        "Bits per byte by training tokens",
        _BAND,
        curve_points,
        _curves(log_axis(alt.X("tokens:Q"), ONE_TWO_FIVE, COUNT_LABEL, "training tokens (bytes)")),
    ),
    "learning-by-flops": LearningChart(
        "Bits per byte by training FLOPs",
        f"{_BAND} A training step takes three times the FLOPs of a forward pass.",
        curve_points,
        _curves(log_axis(alt.X("flops:Q"), ONE_TWO_FIVE, COUNT_LABEL, "training FLOPs")),
    ),
    "learning-by-seconds": LearningChart(
        "Bits per byte by training time",
        f"{_BAND} Training steps alone, one thread.",
        curve_points,
        _curves(log_axis(alt.X("seconds:Q"), ONE_TWO_FIVE, SECONDS_LABEL, "seconds of training")),
    ),
    "learning-by-cache": LearningChart(
        "Bits per byte by KV cache",
        "Bars: 95 % intervals over seeds. The cache is that of one sequence as long as the trained context.",
        cache_points,
        _by_cache,
    ),
}
