"""The charts, in Vega-Lite: what each shows of its tables, at the settings that its parameters have.

Colours begin with @: whoever compiles a chart says what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import altair as alt

from benchmarks.gallery import palette
from benchmarks.gallery.chart_style import (
    AS_BYTES,
    AS_COUNT,
    AS_TOKENS,
    BYTES,
    COLUMNS,
    ROUND,
    TEN,
    TOKENS,
    WIDTH,
    model_colour,
    on_device,
    param,
    sized,
    tall,
)


@dataclass(frozen=True)
class Picture:
    """A chart: `tables` are those it reads, `draws` makes it, `by_model` says what its colours tell apart."""

    title: str
    caption: str
    tables: tuple[str, ...]
    draws: Callable[[], alt.TopLevelMixin]
    by_model: bool = True


def pictures() -> dict[str, Picture]:
    """Every chart, by name."""
    return {
        "kv": Picture(
            "KV cache against context",
            "Bytes of the cache of all sequences. Dashed: beyond the context that the model was made for. A ring marks "
            "where two lines cross: from there on the other model has the smaller cache.",
            ("kv", "crossings"),
            _kv,
        ),
        "flops": Picture(
            "FLOPs of one token against context",
            "Of one decoded token that sees so many, 2 per multiply-add of all matrix products. Flat: the weights; "
            "rising: attention over the context. Dashed: beyond the model's own context.",
            ("flops",),
            _flops,
        ),
        "params": Picture(
            "Parameters by component",
            "Shares of each model's parameters, and their total at the right. A tied head is in the embedding.",
            ("params",),
            _params,
            by_model=False,
        ),
        "active": Picture(
            "Active parameters against total",
            "Hollow: all parameters. Full: those that one token uses, all but the experts it is not routed to.",
            ("active",),
            _active,
        ),
        "roofline": Picture(
            "Roofline",
            "What a device's arithmetic can reach at so many FLOPs for each byte moved. On the slope memory is the "
            "limit, on the level part arithmetic. All at 4k tokens of context, weights and cache in bfloat16.",
            ("passes",),
            _roofline,
        ),
        "ceilings": Picture(
            "Ceilings on tokens a second",
            "What no implementation can exceed on the device: the longer of FLOPs / rate and bytes / bandwidth. All "
            "sequences together, 4k tokens of context, bfloat16, whether it fits the card or not.",
            ("passes",),
            _ceilings,
        ),
        "measured": Picture(
            "Measured speed, and its ceiling",
            "Points: median tokens a second. Bars: slowest and fastest round. Ticks: the roofline of that machine.",
            ("measured",),
            _measured,
            by_model=False,
        ),
    }


def _lines(table: str, y: alt.Y, tips: list[alt.Tooltip], **calculated: str) -> alt.LayerChart:
    """A line for each model against context, dashed beyond its own."""
    base = alt.Chart(alt.NamedData(table)).transform_calculate(**calculated)
    x = alt.X("context:Q").scale(type="log", base=2, nice=False, domain=[2**8, 2**20])
    x = x.axis(values=TOKENS, labelExpr=AS_TOKENS).title("tokens of context")
    tips = [alt.Tooltip("model:N"), alt.Tooltip("context:Q", format=","), *tips]
    line = base.encode(x=x, y=y, color=model_colour(), tooltip=tips)
    within = line.transform_filter("!datum.beyond").mark_line(strokeWidth=2.2)
    # The stretch from the last point within to the first beyond belongs to the dashes.
    outside = line.transform_window(
        next="lead(beyond)", sort=[alt.SortField("context")], groupby=["model"]
    ).transform_filter("datum.beyond || datum.next")
    return alt.layer(outside.mark_line(strokeWidth=1.6, strokeDash=[3, 4], strokeOpacity=0.8), within)


def _kv() -> alt.LayerChart:
    y = alt.Y("bytes:Q").scale(type="log", base=2, nice=False).title("bytes of cache")
    y = y.axis(values=BYTES, labelExpr=AS_BYTES)
    lines = _lines("kv", y, [alt.Tooltip("GiB:Q", format=".4~r")], bytes=SCALED, GiB=f"{SCALED} / pow(2, 30)")
    crossing = alt.Chart(alt.NamedData("crossings")).transform_calculate(bytes=SCALED)
    rings = crossing.mark_point(size=70, strokeWidth=1.6, filled=False, color="@ink").encode(
        x="context:Q",
        y="bytes:Q",
        tooltip=[
            alt.Tooltip("less:N", title="less from here on"),
            alt.Tooltip("more:N", title="than"),
            alt.Tooltip("context:Q", format=","),
        ],
    )
    return sized(alt.layer(lines, rings).add_params(param("batch", 1), param("itemsize", 2)))


SCALED = "datum.numbers * batch * itemsize"


def _flops() -> alt.LayerChart:
    y = alt.Y("flops:Q").scale(type="log", nice=False).title("FLOPs a token").axis(values=TEN, labelExpr=AS_COUNT)
    return sized(_lines("flops", y, [alt.Tooltip("flops:Q", format=".4s")]))


def _params() -> alt.LayerChart:
    """Shares, in the order of the parts; the page sorts rows as they come."""
    parts = list(palette.PARTS)
    base = alt.Chart(alt.NamedData("params")).transform_joinaggregate(total="sum(params)", groupby=["model"])
    bars = base.transform_calculate(order=f"indexof({parts}, datum.part)", share="datum.params / datum.total")
    y = alt.Y("model:N", sort=None).title(None)
    colour = alt.Color("part:N").scale(domain=parts, range=list(palette.PARTS.values()))
    stacked = bars.mark_bar(height={"band": 0.72}).encode(
        x=alt.X("params:Q").stack("normalize").axis(format="%").title("share of the parameters"),
        y=y,
        color=colour.legend(orient="bottom", columns=COLUMNS, title=None),
        order=alt.Order("order:Q"),
        tooltip=["model:N", "part:N", alt.Tooltip("params:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
    )
    totals = base.transform_aggregate(all="sum(params)", groupby=["model"]).transform_calculate(
        shown="replace(format(datum.all, '.3s'), 'G', 'B')"
    )
    words = totals.mark_text(align="left", dx=6, color="@faint").encode(y=y, x=alt.datum(1), text="shown:N")
    return tall(alt.layer(stacked, words))


def _active() -> alt.LayerChart:
    base = alt.Chart(alt.NamedData("active"))
    y = alt.Y("model:N", sort=None).title(None)
    tips = ["model:N", alt.Tooltip("params:Q", format=","), alt.Tooltip("active:Q", format=",")]
    x = alt.X("active:Q").scale(type="log", nice=False, padding=12).axis(values=TEN, labelExpr=AS_COUNT, grid=True)
    between = base.mark_rule(strokeWidth=2, strokeOpacity=0.5).encode(y=y, x=x.title("parameters"), x2="params:Q")
    full = base.mark_point(filled=True, size=80, opacity=1).encode(y=y, x="active:Q", tooltip=tips)
    hollow = base.mark_point(filled=False, size=110, strokeWidth=1.8).encode(y=y, x="params:Q", tooltip=tips)
    colour = model_colour().legend(None)
    return tall(alt.layer(*(mark.encode(color=colour) for mark in (between, hollow, full))))


INTENSITY, RATE = "datum.flops / datum.bytes", "min(rate, bandwidth * datum.flops / datum.bytes)"
CEILING = "datum.tokens / max(datum.flops / rate, datum.bytes / bandwidth)"
BOUND = "datum.flops / datum.bytes > rate / bandwidth ? 'compute' : 'memory'"


def _passes() -> alt.Chart:
    return alt.Chart(alt.NamedData("passes")).transform_calculate(
        intensity=INTENSITY, reached=RATE, tokens_per_s=CEILING, bound=BOUND
    )


PASS_TIPS = [
    alt.Tooltip("model:N"),
    alt.Tooltip("pass:N"),
    alt.Tooltip("intensity:Q", format=".3~s", title="FLOPs a byte"),
    alt.Tooltip("tokens_per_s:Q", format=".3~s", title="tokens a second"),
    alt.Tooltip("bound:N", title="bound by"),
]


def _roofline() -> alt.LayerChart:
    x = alt.X("intensity:Q").scale(type="log", nice=False, domain=[0.5, 20_000]).axis(values=TEN, labelExpr=AS_COUNT)
    y = alt.Y("reached:Q").scale(type="log", nice=False).axis(values=TEN, labelExpr=AS_COUNT)
    grid = alt.Chart(alt.sequence(-1, 14.5, 0.1, as_="i")).transform_calculate(
        intensity="pow(2, datum.i)", reached="min(rate, bandwidth * pow(2, datum.i))"
    )
    roof = grid.mark_line(color="@faint", strokeWidth=1.5).encode(x.title("FLOPs a byte"), y.title("FLOPs a second"))
    shape = alt.Shape("pass:N", sort=None).legend(orient="bottom", columns=COLUMNS, title=None)
    points = (
        _passes()
        .mark_point(size=80, strokeWidth=1.8, opacity=0.95)
        .encode(x="intensity:Q", y="reached:Q", color=model_colour("top"), shape=shape, tooltip=PASS_TIPS)
    )
    return sized(on_device(alt.layer(roof, points)))


def _ceilings() -> alt.LayerChart:
    y = alt.Y("model:N", sort=None).title(None)
    x = alt.X("tokens_per_s:Q").scale(type="log", nice=False, padding=12).title("tokens a second")
    shape = alt.Shape("pass:N", sort=None).legend(orient="bottom", columns=COLUMNS, title=None)
    span = _passes().transform_aggregate(low="min(tokens_per_s)", high="max(tokens_per_s)", groupby=["model"])
    lines = span.mark_rule(strokeOpacity=0.35).encode(y=y, x=alt.X("low:Q"), x2="high:Q")
    points = _passes().mark_point(size=80, strokeWidth=1.8, opacity=1)
    points = points.encode(y=y, x=x.axis(values=TEN, labelExpr=AS_COUNT, grid=True), shape=shape, tooltip=PASS_TIPS)
    colour = model_colour().legend(None)
    return tall(on_device(alt.layer(*(mark.encode(color=colour) for mark in (lines, points)))))


def _measured() -> alt.FacetChart:
    """A panel for each case, a line for each implementation and mode."""
    colour = alt.Color("how:N", sort=None).scale(range=list(palette.HUES)).legend(orient="bottom", title=None)
    base = alt.Chart().encode(y=alt.Y("model:N", sort=None).title(None), yOffset=alt.YOffset("how:N", sort=None))
    x = alt.X("low:Q").scale(type="log", nice=False, padding=12).axis(values=ROUND, labelExpr=AS_COUNT, grid=True)
    tips = [
        *(alt.Tooltip(f"{name}:N") for name in ("model", "how", "case")),
        *(alt.Tooltip(f"{name}:Q", format=",.1f") for name in ("tokens_per_s", "low", "high", "ceiling")),
    ]
    bars = base.mark_rule(strokeWidth=2).encode(x=x.title("tokens a second"), x2="high:Q", color=colour)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x="tokens_per_s:Q", color=colour, tooltip=tips)
    ceilings = base.transform_filter("isValid(datum.ceiling)").mark_tick(thickness=2, color="@accent", bandSize=14)
    layers = alt.layer(bars, points, ceilings.encode(x="ceiling:Q", tooltip=tips))
    header = alt.Row("case:N", sort=None).header(title=None, labelOrient="top", labelAnchor="start", labelPadding=2)
    panels = layers.properties(width=WIDTH, height=alt.Step(16)).facet(row=header, data=alt.NamedData("measured"))
    return panels.resolve_scale(x="independent", y="independent")
