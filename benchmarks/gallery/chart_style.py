"""What the charts have in common: sizes, axes, and how a model is told by its colour."""

from __future__ import annotations

import altair as alt

WIDTH, HEIGHT = 720, 420
ROW = 22  # pixels of a model's row
TOKENS = [2**i for i in range(8, 21, 2)]
BYTES = [2**i for i in range(16, 51, 4)]
TEN = [10**i for i in range(-3, 19)]
ROUND = [digit * 10**i for i in range(-3, 9) for digit in (1, 2, 5)]
# Vega expressions of axis labels.
AS_TOKENS = (
    "datum.value >= pow(2, 20) ? datum.value / pow(2, 20) + 'M' : "
    "datum.value >= pow(2, 10) ? datum.value / pow(2, 10) + 'k' : datum.value"
)
AS_BYTES = (
    "datum.value >= pow(2, 40) ? datum.value / pow(2, 40) + ' TiB' : datum.value >= pow(2, 30) ? "
    "datum.value / pow(2, 30) + ' GiB' : datum.value >= pow(2, 20) ? datum.value / pow(2, 20) + ' MiB' : "
    "datum.value / pow(2, 10) + ' KiB'"
)
AS_COUNT = "replace(format(datum.value, '.3~s'), 'G', 'B')"
COLUMNS = 4


def model_colour(orient: str = "bottom") -> alt.Color:
    """A model's colour; who draws it says which there are."""
    return alt.Color("model:N", sort=None).legend(orient=orient, columns=COLUMNS, title=None, symbolType="stroke")


def param(name: str, value: float) -> alt.Parameter:
    """A number that whoever shows the chart may set."""
    return alt.param(name=name, value=value)


def on_device(chart: alt.LayerChart) -> alt.LayerChart:
    """A chart of a device's FLOPs and bytes a second."""
    return chart.add_params(param("rate", 1.0), param("bandwidth", 1.0))


def sized(chart: alt.LayerChart) -> alt.LayerChart:
    """A chart of the usual size."""
    return chart.properties(width=WIDTH, height=HEIGHT)


def tall(chart: alt.LayerChart) -> alt.LayerChart:
    """A chart with a row for each model."""
    return chart.properties(width=WIDTH, height=alt.Step(ROW))
