"""Charts in Vega-Lite, compiled to Vega for the page or drawn as pictures: fonts, colours, legends and axes.

Until `styled` replaces them, colours in a chart are names that begin with @. The colours of models and parts are
distinguishable on a white and on a dark page. Parts have the colours of the model diagrams.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from colorsys import hls_to_rgb, rgb_to_hls
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from math import ceil
from typing import Any

import altair as alt
import vl_convert

from zoo.architectures import families
from zoo.cli.tables import Row

Json = dict[str, Any]
Tables = Mapping[str, Sequence[Row]]
FORMATS = ("png", "svg")  # formats of a chart as a picture
WIDTH, HEIGHT = 720, 420
AXIS = 63  # pixels of a horizontal axis with its title and a margin
LEGEND: Json = {"orient": "bottom", "columns": 4, "title": None, "symbolLimit": 0}  # limit 0: all symbols
DECADES = [10**i for i in range(-3, 19)]
ONE_TWO_FIVE = [digit * 10**i for i in range(-3, 16) for digit in (1, 2, 5)]
COUNT_LABEL = "datum.value < 1 ? format(datum.value, '~r') : replace(format(datum.value, '.3~s'), 'G', 'B')"

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
HUES = ("#3b76d6", "#d9731a", "#2f9e5b", "#d6455d", "#9a5fd0", "#1295a0", "#8f8412", "#d459a6")  # hues of architectures
LIGHTNESS_RANGE = 0.16  # difference in lightness between a family's lightest and darkest size (of 1)
PART_COLOURS = {
    "embedding": "#7565c2",
    "head": "#a99ee0",
    "attn": "#3a70c4",
    "ffn": "#2c8a4b",
    "routed": "#63b87f",
    "shared": "#1295a0",
    "router": "#d6455d",
    "inputs": "#c27a2c",
    "norm": "#b98200",
}
OTHER = "#8a93a0"  # colour of a model that is not a preset
LIGHT = {"ink": "#1a222e", "faint": "#566170", "grid": "#e3e7ec", "paper": "#ffffff", "accent": "#c8105f"}
PAGE = {name: f"var(--{name})" for name in LIGHT}  # the page's own colours, which follow its colour scheme


@dataclass(frozen=True)
class Chart:
    """A chart that shows the rows of its first table. Some of its marks may show rows of its other tables.

    `figure`: the column that a row needs to be shown. `by_model`: whether colours distinguish models. `row`: the height
    of each model's row in pixels, in a chart of rows. `panels`: whether panels are stacked in it.
    """

    title: str
    caption: str
    tables: tuple[str, ...]
    draw: Callable[[Sequence[Row]], alt.TopLevelMixin]  # from its rows
    figure: str = "model"
    by_model: bool = True
    row: int | None = None
    panels: bool = False

    def rows(self, tables: Tables) -> list[Row]:
        """Returns the rows that the chart shows."""
        return [row for row in tables[self.tables[0]] if row[self.figure] is not None]

    def compiled(self, tables: Tables) -> Json:
        """Returns the chart in Vega, with the page's colours and empty tables that the page fills."""
        spec: Json = vl_convert.vegalite_to_vega(styled(self.draw(self.rows(tables)), PAGE))
        return spec

    def size(self, tables: Tables) -> dict[str, int]:
        """Returns heights in pixels, without the legend: of the plot or of each model's row, and of the axis below it.
        Panels are drawn to find their height."""
        if not self.panels:
            return ({"row": self.row} if self.row else {"height": HEIGHT}) | {"axis": AXIS}
        svg = vl_convert.vega_to_svg(self._filled(tables) | {"legends": []})
        height = re.search(r'height="([\d.]+)"', svg)
        return {"height": ceil(float(height[1])) if height else HEIGHT, "axis": 0}

    def image(self, tables: Tables, params: Mapping[str, float], format: str) -> bytes:
        """Returns the chart as PNG (two pixels per point) or SVG, in light colours, with these parameters set."""
        spec = self._filled(tables, params, title=self.title, background=LIGHT["paper"])
        if self.by_model:
            models = list(dict.fromkeys(row["model"] for row in self.rows(tables)))
            colour = next(scale for scale in spec["scales"] if scale["name"] == "color")
            colour |= {"domain": models, "range": [model_colours().get(model, OTHER) for model in models]}
        return vl_convert.vega_to_svg(spec).encode() if format == "svg" else vl_convert.vega_to_png(spec, scale=2)

    def _filled(self, tables: Tables, params: Mapping[str, float] = {}, **more: str) -> Json:
        """Returns the chart in Vega, with its rows and in light colours."""
        spec = styled(self.draw(self.rows(tables)), LIGHT) | more
        spec["datasets"] = {table: list(tables[table]) for table in self.tables}
        for param in spec.get("params", []):
            param["value"] = params.get(param["name"], param["value"])
        filled: Json = vl_convert.vegalite_to_vega(spec)
        return filled


@cache
def javascript() -> str:
    """Returns the Vega runtime, which draws compiled charts in a page."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def images(charts: Mapping[str, Chart], tables: Tables, params: Mapping[str, float] = {}) -> dict[str, bytes]:
    """Returns {file name: image} of each chart with data."""
    shown = {name: chart for name, chart in charts.items() if chart.rows(tables)}
    return {f"{name}.{kind}": each.image(tables, params, kind) for name, each in shown.items() for kind in FORMATS}


def model_colours() -> dict[str, str]:
    """Returns {preset: colour}: the hue of its architecture, in a shade for its size."""
    return {
        name: _shade(hue, i, len(family.SIZES))
        for hue, family in zip(cycle(HUES), families().values(), strict=False)
        for i, name in enumerate(family.SIZES)
    }


def _shade(colour: str, i: int, sizes: int) -> str:
    hue, lightness, saturation = rgb_to_hls(*(int(colour[j : j + 2], 16) / 255 for j in (1, 3, 5)))
    lightness += LIGHTNESS_RANGE * (0.5 - i / (sizes - 1)) if sizes > 1 else 0.0
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in hls_to_rgb(hue, lightness, saturation))


def log_axis(axis: Any, ticks: list[int], label: str, title: str, grid: bool | None = None, **scale: Any) -> Any:
    """Returns an alt.X or alt.Y on a logarithmic scale, with labels at `ticks` by the Vega expression `label`."""
    shown = {"values": ticks, "labelExpr": label} | ({"grid": grid} if grid is not None else {})
    return axis.scale(type="log", nice=False, **scale).axis(**shown).title(title)


def styled(chart: alt.TopLevelMixin, colours: Mapping[str, str]) -> Json:
    """Returns a chart as Vega-Lite, with `colours` for its @names."""
    axis = {"domainColor": "@faint", "tickColor": "@faint", "gridColor": "@grid", "labelColor": "@ink"}
    text = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleColor": "@faint"}
    config = {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis | text | {"titleFontWeight": "normal", "titlePadding": 10, "labelPadding": 6},
        "legend": text | {"labelColor": "@ink", "labelLimit": 220, "symbolStrokeWidth": 2, "offset": 16},
        "title": {"color": "@ink", "font": FONT, "fontSize": 15, "anchor": "start", "offset": 14},
        "text": {"font": FONT, "fontSize": 12},
        "rule": {"color": "@faint"},
        "header": {"labelColor": "@ink", "labelFont": FONT, "labelFontSize": 13, "labelAngle": 0, "labelAlign": "left"},
    }
    spec: Json = _replaced(chart.to_dict() | {"config": config}, colours)
    return spec


def _replaced(node: Any, colours: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _replaced(value, colours) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(item, colours) for item in node]
    return colours[node[1:]] if isinstance(node, str) and node.startswith("@") else node
