"""The charts of costs and of measured speeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import altair as alt

from benchmarks.gallery.chart import (
    COUNT_LABEL,
    DECADES,
    HEIGHT,
    HUES,
    LEGEND,
    ONE_TWO_FIVE,
    PART_COLOURS,
    WIDTH,
    Chart,
    Tables,
    images,
    log_axis,
)
from benchmarks.gallery.chart_tables import PASSES, pass_name
from zoo.cli.tables import Row

ROW, MEASURED_ROW = 22, 46  # pixels of a model's row
RINGS = "rings"  # the chart parameter that shows (1) or hides (0) the rings around crossings
MOST_RINGED = 8  # models whose crossings are marked in the chart
SHAPES = ("circle", "square", "triangle-up", "cross")  # shapes of the passes
TOKEN_TICKS = [2**i for i in range(8, 21, 2)]
BYTE_TICKS = [2**i for i in range(16, 51, 2)]
# Vega expressions of axis labels.
TOKENS_LABEL = (
    "datum.value >= pow(2, 20) ? datum.value / pow(2, 20) + 'M' : "
    "datum.value >= pow(2, 10) ? datum.value / pow(2, 10) + 'k' : datum.value"
)
BYTES_LABEL = (
    "datum.value >= pow(2, 40) ? datum.value / pow(2, 40) + ' TiB' : datum.value >= pow(2, 30) ? "
    "datum.value / pow(2, 30) + ' GiB' : datum.value >= pow(2, 20) ? datum.value / pow(2, 20) + ' MiB' : "
    "datum.value / pow(2, 10) + ' KiB'"
)


def model_rows() -> alt.Y:
    """Returns an axis with a row for each model, in the order of the rows."""
    return alt.Y("model:N", sort=None).title(None)


def model_colour(orient: str = "bottom") -> alt.Color:
    """Returns the colour channel of models. The domain is filled in when the chart is drawn."""
    return alt.Color("model:N", sort=None).legend(**LEGEND | {"orient": orient}, symbolType="stroke")


def pictures(tables: Tables, params: Mapping[str, float]) -> dict[str, bytes]:
    """Returns {file name: image} of each chart with data. Speeds are those of the most frequent workload. Rings mark
    crossings if there are few models. `params`: the parameters that the page sets."""
    charts, models = dict(CHARTS), {row["model"] for row in tables["kv"]}
    if measured := tables["measured"]:
        workload, _ = Counter(row["workload"] for row in measured).most_common(1)[0]
        tables = {**tables, "measured": [row for row in measured if row["workload"] == workload]}
        charts["measured"] = replace(charts["measured"], title=f"{charts['measured'].title}: {workload}")
    return images(charts, tables, {**params, RINGS: len(models) <= MOST_RINGED})


def _sized(chart: alt.LayerChart, params: Mapping[str, float] = {}, rows: bool = False) -> alt.LayerChart:
    """Returns a chart of the usual size, or with a row for each model. `params`: numbers that the page may set."""
    chart = chart.properties(width=WIDTH, height=alt.Step(ROW) if rows else HEIGHT)
    return chart.add_params(*(alt.param(name=name, value=value) for name, value in params.items()))


def _lines(table: str, y: alt.Y, tip: alt.Tooltip, **calculated: str) -> alt.LayerChart:
    """Returns a line over the context for each model, dashed beyond the model's max context."""
    base = alt.Chart(alt.NamedData(table)).transform_calculate(**calculated)
    x = log_axis(alt.X("context:Q"), TOKEN_TICKS, TOKENS_LABEL, "tokens of context", base=2, domain=[2**8, 2**20])
    tips = [alt.Tooltip("model:N"), alt.Tooltip("context:Q", format=","), tip]
    line = base.encode(x=x, y=y, color=model_colour(), tooltip=tips)
    within = line.transform_filter("!datum.beyond").mark_line(strokeWidth=2.2)
    # The segment from the last point within the max context to the first point beyond it is dashed.
    next_point = {"sort": [alt.SortField("context")], "groupby": ["model"]}
    beyond = line.transform_window(next="lead(beyond)", **next_point).transform_filter("datum.beyond || datum.next")
    return alt.layer(beyond.mark_line(strokeWidth=1.6, strokeDash=[3, 4], strokeOpacity=0.8), within)


KV_BYTES = "(datum.elements * itemsize + datum.float32_bytes) * batch"


def _kv(_: Sequence[Row]) -> alt.LayerChart:
    y = log_axis(alt.Y("bytes:Q"), BYTE_TICKS, BYTES_LABEL, "bytes of cache", base=2)
    lines = _lines("kv", y, alt.Tooltip("GiB:Q", format=".4~r"), bytes=KV_BYTES, GiB=f"{KV_BYTES} / pow(2, 30)")
    rings = alt.Chart(alt.NamedData("crossings")).transform_calculate(bytes=KV_BYTES)
    rings = rings.mark_point(
        size=alt.expr(f"70 * {RINGS}"), strokeWidth=alt.expr(f"1.6 * {RINGS}"), filled=False, color="@ink"
    )
    tips = [alt.Tooltip("smaller:N", title="smaller from here on"), alt.Tooltip("larger:N", title="than")]
    rings = rings.encode(x="context:Q", y="bytes:Q", tooltip=[*tips, alt.Tooltip("context:Q", format=",")])
    return _sized(alt.layer(lines, rings), {"batch": 1, "itemsize": 2, RINGS: 1})


def _flops(_: Sequence[Row]) -> alt.LayerChart:
    y = log_axis(alt.Y("flops:Q"), ONE_TWO_FIVE, COUNT_LABEL, "FLOPs per token")
    return _sized(_lines("flops", y, alt.Tooltip("flops:Q", format=".4s")))


def _params(_: Sequence[Row]) -> alt.LayerChart:
    """Returns bars of the parts' shares, stacked in the order of PART_COLOURS."""
    parts = list(PART_COLOURS)
    base = alt.Chart(alt.NamedData("params")).transform_joinaggregate(total="sum(params)", groupby=["model"])
    bars = base.transform_calculate(order=f"indexof({parts}, datum.part)", share="datum.params / datum.total")
    colour = alt.Color("part:N").scale(domain=parts, range=list(PART_COLOURS.values()))
    stacked = bars.mark_bar(height={"band": 0.72}).encode(
        x=alt.X("params:Q").stack("normalize").axis(format="%").title("share of the parameters"),
        y=model_rows(),
        color=colour.legend(**LEGEND),
        order=alt.Order("order:Q"),
        tooltip=["model:N", "part:N", alt.Tooltip("params:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
    )
    totals = base.transform_aggregate(all="sum(params)", groupby=["model"])
    totals = totals.transform_calculate(label="replace(format(datum.all, '.3s'), 'G', 'B')")
    labels = totals.mark_text(align="left", dx=6, color="@faint").encode(y=model_rows(), x=alt.datum(1), text="label:N")
    return _sized(alt.layer(stacked, labels), rows=True)


def _active(_: Sequence[Row]) -> alt.LayerChart:
    tips = ["model:N", alt.Tooltip("params:Q", format=","), alt.Tooltip("active:Q", format=",")]
    x = log_axis(alt.X("active:Q"), DECADES, COUNT_LABEL, "parameters", grid=True, padding=12)
    base = alt.Chart(alt.NamedData("active")).encode(y=model_rows(), color=model_colour().legend(None))
    between = base.mark_rule(strokeWidth=2, strokeOpacity=0.5).encode(x=x, x2="params:Q")
    hollow = base.mark_point(filled=False, size=110, strokeWidth=1.8).encode(x="params:Q", tooltip=tips)
    filled = base.mark_point(filled=True, size=80, opacity=1).encode(x="active:Q", tooltip=tips)
    return _sized(alt.layer(between, hollow, filled), rows=True)


DEVICE_RATES = {"rate": 1.0, "bandwidth": 1.0}  # FLOPs and bytes per second; the page sets the rates of a device


def _passes() -> alt.Chart:
    return alt.Chart(alt.NamedData("passes")).transform_calculate(
        intensity="datum.flops / datum.bytes",
        reached="min(rate, bandwidth * datum.flops / datum.bytes)",
        tokens_per_s="datum.tokens / max(datum.flops / rate, datum.bytes / bandwidth)",
        bound="datum.flops / datum.bytes > rate / bandwidth ? 'compute' : 'memory'",
    )


def _pass_points(**channels: object) -> alt.Chart:
    """Returns a point for each pass. Its shape shows the phase and the batch."""
    names = [pass_name(phase, batch) for phase, batch in PASSES]
    shape = alt.Shape("pass:N").scale(domain=names, range=list(SHAPES)).legend(**LEGEND)
    points = _passes().mark_point(size=80, strokeWidth=1.8, opacity=1)
    rates = {"intensity:Q": "FLOPs per byte", "tokens_per_s:Q": "tokens per second"}
    tips = [alt.Tooltip(field, format=".3~s", title=title) for field, title in rates.items()]
    bound = alt.Tooltip("bound:N", title="bound by")
    return points.encode(shape=shape, tooltip=["model:N", "pass:N", *tips, bound], **channels)


def _roofline(_: Sequence[Row]) -> alt.LayerChart:
    x = log_axis(alt.X("intensity:Q"), DECADES, COUNT_LABEL, "FLOPs per byte", domain=[0.5, 20_000])
    y = log_axis(alt.Y("reached:Q"), DECADES, COUNT_LABEL, "FLOPs per second")
    roof = alt.Chart(alt.sequence(-1, 14.5, 0.1, as_="i")).mark_line(color="@faint", strokeWidth=1.5).encode(x, y)
    roof = roof.transform_calculate(intensity="pow(2, datum.i)", reached="min(rate, bandwidth * pow(2, datum.i))")
    points = _pass_points(x="intensity:Q", y="reached:Q", color=model_colour("top"))
    return _sized(alt.layer(roof, points), DEVICE_RATES)


def _ceilings(_: Sequence[Row]) -> alt.LayerChart:
    x = log_axis(alt.X("tokens_per_s:Q"), DECADES, COUNT_LABEL, "tokens per second", grid=True, padding=12)
    colour = model_colour().legend(None)
    span = _passes().transform_aggregate(low="min(tokens_per_s)", high="max(tokens_per_s)", groupby=["model"])
    lines = span.mark_rule(strokeOpacity=0.35).encode(y=model_rows(), x=alt.X("low:Q"), x2="high:Q", color=colour)
    return _sized(alt.layer(lines, _pass_points(x=x, y=model_rows(), color=colour)), DEVICE_RATES, rows=True)


def _measured(_: Sequence[Row]) -> alt.LayerChart:
    """Returns the speeds of one workload: a row for each model, a colour for each implementation and mode."""
    colour = alt.Color("how:N", sort=None).scale(range=list(HUES)).legend(**LEGEND)
    base = alt.Chart(alt.NamedData("measured")).encode(y=model_rows(), yOffset=alt.YOffset("how:N", sort=None))
    x = log_axis(alt.X("low:Q"), ONE_TWO_FIVE, COUNT_LABEL, "tokens per second", grid=True, padding=12)
    tips = [
        *(alt.Tooltip(f"{name}:N") for name in ("model", "how", "workload")),
        *(alt.Tooltip(f"{name}:Q", format=",.1f") for name in ("tokens_per_s", "low", "high", "ceiling")),
    ]
    bars = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q", color=colour)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x="tokens_per_s:Q", color=colour, tooltip=tips)
    ceilings = base.transform_filter("isValid(datum.ceiling)").mark_tick(thickness=2, color="@ink", bandSize=9)
    layers = alt.layer(bars, points, ceilings.encode(x="ceiling:Q", tooltip=tips))
    return layers.properties(width=WIDTH, height=alt.Step(MEASURED_ROW, **{"for": "position"}))


CHARTS = {
    "kv": Chart(
        "KV cache by context",
        "Bytes of the cache of all sequences. Dashed: beyond the model's max context. Where two lines "
        "cross, the other model has the smaller cache from there on; for up to eight models, rings mark these points.",
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
        row=ROW,
    ),
    "active": Chart(
        "Active and total parameters",
        "Hollow: all parameters. Filled: active parameters, without the experts that a token is not routed to.",
        ("active",),
        _active,
        row=ROW,
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
        row=ROW,
    ),
    "measured": Chart(
        "Measured speed and its ceiling",
        "Points: median tokens per second. Bars: slowest and fastest round. Ticks: the roofline of that machine. The "
        "axis is the same for all workloads.",
        ("measured",),
        _measured,
        by_model=False,
        row=MEASURED_ROW,
    ),
}
