"""Charts compiled: to Vega for the page, which fills in rows and parameters, and to pictures for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt
import vl_convert

from benchmarks.gallery import palette
from benchmarks.gallery.chart_tables import Table
from benchmarks.gallery.charts import pictures

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
Spec = dict[str, Any]


@cache
def javascript() -> str:
    """What draws compiled charts in a page."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


@cache
def compiled(name: str) -> Spec:
    """A chart compiled to Vega, its tables empty, with the page's colours."""
    spec: Spec = vl_convert.vegalite_to_vega(_styled(pictures()[name].draws(), palette.PAGE))
    return spec


def image(name: str, tables: Mapping[str, Table], params: Mapping[str, float], format: str) -> bytes:
    """A chart as PNG (two pixels a point) or SVG, in light colours, of the tables' rows and at these parameters."""
    spec = _styled(pictures()[name].draws(), palette.LIGHT)
    spec["datasets"] = {table: tables[table].records() for table in pictures()[name].tables}
    shown = list(dict.fromkeys(row["model"] for row in tables[pictures()[name].tables[0]].records()))
    spec["title"] = pictures()[name].title
    for param in spec.get("params", []):
        param["value"] = params.get(param["name"], param["value"])
    _coloured(spec, shown)
    if format == "svg":
        return vl_convert.vegalite_to_svg(spec).encode()
    return vl_convert.vegalite_to_png(spec, scale=2)


def _coloured(node: Any, shown: Sequence[str]) -> None:
    """Give every colour by model its domain: the models that are shown."""
    if isinstance(node, dict):
        if isinstance(node.get("color"), dict) and node["color"].get("field") == "model":
            colours = palette.models()
            node["color"]["scale"] = {"domain": shown, "range": [colours.get(name, palette.OTHER) for name in shown]}
        for child in node.values():
            _coloured(child, shown)
    elif isinstance(node, list):
        for child in node:
            _coloured(child, shown)


def _styled(chart: alt.TopLevelMixin, colours: Mapping[str, str]) -> Spec:
    """A chart as a dict, its @names replaced by colours."""
    axis = {"domainColor": "@faint", "tickColor": "@faint", "gridColor": "@grid", "labelColor": "@ink"}
    words = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleColor": "@faint"}
    config = {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis | words | {"titleFontWeight": "normal", "titlePadding": 10, "labelPadding": 6},
        "legend": words | {"labelColor": "@ink", "labelLimit": 220, "symbolStrokeWidth": 2, "offset": 16},
        "title": {"color": "@ink", "font": FONT, "fontSize": 15, "anchor": "start", "offset": 14},
        "text": {"font": FONT, "fontSize": 12},
        "rule": {"color": "@faint"},
        "header": {"labelColor": "@ink", "labelFont": FONT, "labelFontSize": 13, "labelAngle": 0, "labelAlign": "left"},
    }
    spec: Spec = _filled(chart.to_dict() | {"config": config}, colours)
    return spec


def _filled(node: Any, colours: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, colours) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(item, colours) for item in node]
    return colours[node[1:]] if isinstance(node, str) and node.startswith("@") else node
