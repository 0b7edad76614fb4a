"""The charts in Vega-Lite, and compiled: to Vega for the page, which fills in rows and parameters, and to pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import altair as alt
import vl_convert

from benchmarks.gallery import chart_style as style
from benchmarks.gallery.chart_style import Spec, log_axis, model_colour, model_rows
from benchmarks.gallery.chart_tables import Row


@dataclass(frozen=True)
class Chart:
    """A chart of the rows of `tables`. `by_model`: whether its colours distinguish models."""

    title: str
    caption: str
    tables: tuple[str, ...]
    draw: Callable[[], alt.TopLevelMixin]
    by_model: bool = True


@cache
def javascript() -> str:
    """The Vega runtime, which draws compiled charts in a page."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


@cache
def compiled(name: str) -> Spec:
    """A chart compiled to Vega: empty tables, and the page's colours."""
    spec: Spec = vl_convert.vegalite_to_vega(style.styled(CHARTS[name].draw(), style.PAGE))
    return spec


def image(name: str, tables: Mapping[str, Sequence[Row]], params: Mapping[str, float], format: str) -> bytes:
    """A chart of the tables' rows as PNG (two pixels per point) or SVG, in light colours. `params` sets parameters."""
    chart = CHARTS[name]
    spec = style.styled(chart.draw(), style.LIGHT) | {"title": chart.title}
    spec["datasets"] = {table: list(tables[table]) for table in chart.tables}
    for param in spec.get("params", []):
        param["value"] = params.get(param["name"], param["value"])
    spec = vl_convert.vegalite_to_vega(spec)
    if chart.by_model:
        models = list(dict.fromkeys(row["model"] for row in tables[chart.tables[0]]))
        colour = next(scale for scale in spec["scales"] if scale["name"] == "color")
        colour |= {"domain": models, "range": [style.model_colours().get(model, style.OTHER) for model in models]}
    return vl_convert.vega_to_svg(spec).encode() if format == "svg" else vl_convert.vega_to_png(spec, scale=2)


def _sized(chart: alt.LayerChart, params: Mapping[str, float] = {}, rows: bool = False) -> alt.LayerChart:
    """A chart of the usual size, or with a row for each model. `params`: numbers that the page may set."""
    chart = chart.properties(width=style.WIDTH, height=alt.Step(style.ROW) if rows else style.HEIGHT)
    return chart.add_params(*(alt.param(name=name, value=value) for name, value in params.items()))


def _lines(table: str, y: alt.Y, tip: alt.Tooltip, **calculated: str) -> alt.LayerChart:
    """A line for each model by context, dashed beyond its max context."""
    base = alt.Chart(alt.NamedData(table)).transform_calculate(**calculated)
    x = log_axis(
        alt.X("context:Q"), style.TOKEN_TICKS, style.TOKENS_LABEL, "tokens of context", base=2, domain=[2**8, 2**20]
    )
    tips = [alt.Tooltip("model:N"), alt.Tooltip("context:Q", format=","), tip]
    line = base.encode(x=x, y=y, color=model_colour(), tooltip=tips)
    within = line.transform_filter("!datum.beyond").mark_line(strokeWidth=2.2)
    # The segment from the last point within to the first point beyond is dashed.
    next_point = {"sort": [alt.SortField("context")], "groupby": ["model"]}
    beyond = line.transform_window(next="lead(beyond)", **next_point).transform_filter("datum.beyond || datum.next")
    return alt.layer(beyond.mark_line(strokeWidth=1.6, strokeDash=[3, 4], strokeOpacity=0.8), within)


KV_BYTES = "datum.elements * batch * itemsize"


def _kv() -> alt.LayerChart:
    y = log_axis(alt.Y("bytes:Q"), style.BYTE_TICKS, style.BYTES_LABEL, "bytes of cache", base=2)
    lines = _lines("kv", y, alt.Tooltip("GiB:Q", format=".4~r"), bytes=KV_BYTES, GiB=f"{KV_BYTES} / pow(2, 30)")
    rings = alt.Chart(alt.NamedData("crossings")).transform_calculate(bytes=KV_BYTES)
    rings = rings.mark_point(size=70, strokeWidth=1.6, filled=False, color="@ink")
    tips = [alt.Tooltip("smaller:N", title="smaller from here on"), alt.Tooltip("larger:N", title="than")]
    rings = rings.encode(x="context:Q", y="bytes:Q", tooltip=[*tips, alt.Tooltip("context:Q", format=",")])
    return _sized(alt.layer(lines, rings), {"batch": 1, "itemsize": 2})


def _flops() -> alt.LayerChart:
    y = log_axis(alt.Y("flops:Q"), style.DECADES, style.COUNT_LABEL, "FLOPs per token")
    return _sized(_lines("flops", y, alt.Tooltip("flops:Q", format=".4s")))


def _params() -> alt.LayerChart:
    """Shares, stacked in the order of style.PART_COLOURS."""
    parts = list(style.PART_COLOURS)
    base = alt.Chart(alt.NamedData("params")).transform_joinaggregate(total="sum(params)", groupby=["model"])
    bars = base.transform_calculate(order=f"indexof({parts}, datum.part)", share="datum.params / datum.total")
    colour = alt.Color("part:N").scale(domain=parts, range=list(style.PART_COLOURS.values()))
    stacked = bars.mark_bar(height={"band": 0.72}).encode(
        x=alt.X("params:Q").stack("normalize").axis(format="%").title("share of the parameters"),
        y=model_rows(),
        color=colour.legend(orient="bottom", columns=style.LEGEND_COLUMNS, title=None),
        order=alt.Order("order:Q"),
        tooltip=["model:N", "part:N", alt.Tooltip("params:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
    )
    totals = base.transform_aggregate(all="sum(params)", groupby=["model"]).transform_calculate(
        label="replace(format(datum.all, '.3s'), 'G', 'B')"
    )
    labels = totals.mark_text(align="left", dx=6, color="@faint").encode(y=model_rows(), x=alt.datum(1), text="label:N")
    return _sized(alt.layer(stacked, labels), rows=True)


def _active() -> alt.LayerChart:
    tips = ["model:N", alt.Tooltip("params:Q", format=","), alt.Tooltip("active:Q", format=",")]
    x = log_axis(alt.X("active:Q"), style.DECADES, style.COUNT_LABEL, "parameters", grid=True, padding=12)
    base = alt.Chart(alt.NamedData("active")).encode(y=model_rows(), color=model_colour().legend(None))
    between = base.mark_rule(strokeWidth=2, strokeOpacity=0.5).encode(x=x, x2="params:Q")
    hollow = base.mark_point(filled=False, size=110, strokeWidth=1.8).encode(x="params:Q", tooltip=tips)
    filled = base.mark_point(filled=True, size=80, opacity=1).encode(x="active:Q", tooltip=tips)
    return _sized(alt.layer(between, hollow, filled), rows=True)


DEVICE_RATES = {"rate": 1.0, "bandwidth": 1.0}  # FLOPs and bytes per second; the page sets a device's
PASS_FIGURES = {
    "intensity": "datum.flops / datum.bytes",
    "reached": "min(rate, bandwidth * datum.flops / datum.bytes)",
    "tokens_per_s": "datum.tokens / max(datum.flops / rate, datum.bytes / bandwidth)",
    "bound": "datum.flops / datum.bytes > rate / bandwidth ? 'compute' : 'memory'",
}
PASS_TIPS = [
    alt.Tooltip("model:N"),
    alt.Tooltip("pass:N"),
    alt.Tooltip("intensity:Q", format=".3~s", title="FLOPs per byte"),
    alt.Tooltip("tokens_per_s:Q", format=".3~s", title="tokens per second"),
    alt.Tooltip("bound:N", title="bound by"),
]


def _passes() -> alt.Chart:
    return alt.Chart(alt.NamedData("passes")).transform_calculate(**PASS_FIGURES)


def _pass_points(**channels: object) -> alt.Chart:
    """A point for each pass, in a shape for its phase and batch."""
    shape = alt.Shape("pass:N", sort=None).legend(orient="bottom", columns=style.LEGEND_COLUMNS, title=None)
    points = _passes().mark_point(size=80, strokeWidth=1.8, opacity=1)
    return points.encode(shape=shape, tooltip=PASS_TIPS, **channels)


def _roofline() -> alt.LayerChart:
    x = log_axis(alt.X("intensity:Q"), style.DECADES, style.COUNT_LABEL, "FLOPs per byte", domain=[0.5, 20_000])
    y = log_axis(alt.Y("reached:Q"), style.DECADES, style.COUNT_LABEL, "FLOPs per second")
    roof = alt.Chart(alt.sequence(-1, 14.5, 0.1, as_="i")).transform_calculate(
        intensity="pow(2, datum.i)", reached="min(rate, bandwidth * pow(2, datum.i))"
    )
    roof = roof.mark_line(color="@faint", strokeWidth=1.5).encode(x, y)
    points = _pass_points(x="intensity:Q", y="reached:Q", color=model_colour("top"))
    return _sized(alt.layer(roof, points), DEVICE_RATES)


def _ceilings() -> alt.LayerChart:
    x = log_axis(alt.X("tokens_per_s:Q"), style.DECADES, style.COUNT_LABEL, "tokens per second", grid=True, padding=12)
    colour = model_colour().legend(None)
    span = _passes().transform_aggregate(low="min(tokens_per_s)", high="max(tokens_per_s)", groupby=["model"])
    lines = span.mark_rule(strokeOpacity=0.35).encode(y=model_rows(), x=alt.X("low:Q"), x2="high:Q", color=colour)
    return _sized(alt.layer(lines, _pass_points(x=x, y=model_rows(), color=colour)), DEVICE_RATES, rows=True)


def _measured() -> alt.FacetChart:
    """A panel for each case, a line for each implementation and mode."""
    colour = alt.Color("how:N", sort=None).scale(range=list(style.HUES)).legend(orient="bottom", title=None)
    base = alt.Chart().encode(y=model_rows(), yOffset=alt.YOffset("how:N", sort=None))
    x = log_axis(alt.X("low:Q"), style.ONE_TWO_FIVE, style.COUNT_LABEL, "tokens per second", grid=True, padding=12)
    tips = [
        *(alt.Tooltip(f"{name}:N") for name in ("model", "how", "case")),
        *(alt.Tooltip(f"{name}:Q", format=",.1f") for name in ("tokens_per_s", "low", "high", "ceiling")),
    ]
    bars = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q", color=colour)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x="tokens_per_s:Q", color=colour, tooltip=tips)
    ceilings = base.transform_filter("isValid(datum.ceiling)").mark_tick(thickness=2, color="@accent", bandSize=14)
    layers = alt.layer(bars, points, ceilings.encode(x="ceiling:Q", tooltip=tips))
    header = alt.Row("case:N", sort=None).header(title=None, labelOrient="top", labelAnchor="start", labelPadding=2)
    panels = layers.properties(width=style.WIDTH, height=alt.Step(16)).facet(row=header, data=alt.NamedData("measured"))
    return panels.resolve_scale(x="independent", y="independent")


CHARTS = {
    "kv": Chart(
        "KV cache by context",
        "Bytes of the cache of all sequences. Dashed: beyond the model's max context. A ring marks where two lines "
        "cross: from there on, the other model has the smaller cache.",
        ("kv", "crossings"),
        _kv,
    ),
    "flops": Chart(
        "FLOPs per token by context",
        "One decoded token at this context, 2 FLOPs per multiply-add of all matrix products. Flat: the weights; "
        "rising: attention over the context. Dashed: beyond the model's max context.",
        ("flops",),
        _flops,
    ),
    "params": Chart(
        "Parameters by component",
        "Shares of each model's parameters, and the total on the right. A tied head is counted in the embedding.",
        ("params",),
        _params,
        by_model=False,
    ),
    "active": Chart(
        "Active and total parameters",
        "Hollow: all parameters. Filled: active parameters, without the experts that a token is not routed to.",
        ("active",),
        _active,
    ),
    "roofline": Chart(
        "Roofline",
        "FLOPs per second that a device can reach, by FLOPs per byte moved. Slope: bound by memory bandwidth; "
        "plateau: bound by arithmetic. All at 4k tokens of context, weights and cache in bfloat16.",
        ("passes",),
        _roofline,
    ),
    "ceilings": Chart(
        "Ceilings on tokens per second",
        "No implementation can be faster on the device: the longer of FLOPs / peak rate and bytes / bandwidth. All "
        "sequences together, 4k tokens of context, bfloat16, whether or not the model fits the card.",
        ("passes",),
        _ceilings,
    ),
    "measured": Chart(
        "Measured speed and its ceiling",
        "Points: median tokens per second. Bars: slowest and fastest round. Ticks: the roofline of that machine.",
        ("measured",),
        _measured,
        by_model=False,
    ),
}
