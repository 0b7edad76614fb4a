"""The page's charts in a real browser: their figures equal Python's, and they are saved as shown."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.analytic import kv, roofline
from benchmarks.gallery.learning_tables import learning_tables
from benchmarks.gallery.overview import groups
from tests.benchmarks.gallery.conftest import SHOWN, Open, draw_charts
from tests.benchmarks.gallery.samples import sample

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]
TYPICAL = [group.typical.name for group in groups(SHOWN)]  # what the charts show at first: of each family one model
ONE = f'#picker input[value="{TYPICAL[-1]}"]'


def open_picker(page: Any) -> None:
    page.locator(".picker").evaluate("picker => { picker.open = true; }")


def test_charts_follow_the_selected_models(page: Any) -> None:
    draw_charts(page)
    open_picker(page)
    lines = page.locator('[data-chart="kv"] .legend li')
    assert lines.all_inner_texts() == TYPICAL
    page.locator(ONE).uncheck()
    fewer = "count => document.querySelectorAll('[data-chart=\"kv\"] .legend li').length === count"
    page.wait_for_function(fewer, arg=len(TYPICAL) - 1)
    page.locator(ONE).check()
    crossings = page.locator("#crossings li").all_text_contents()
    shown = {group.typical.name: group.typical.spec for group in groups(SHOWN)}
    for row in crossings:
        pattern = r"From ([\d,]+) tokens on, (\S+) has a smaller cache than (\S+)\."
        tokens, smaller, larger = re.fullmatch(pattern, row).groups()
        context = int(tokens.replace(",", ""))
        assert shown[smaller].kv_bytes(context) < shown[larger].kv_bytes(context)
    assert len(crossings) == page.locator('[data-chart="kv"] .plot .mark-symbol path').count() > 3
    before = page.locator('[data-chart="kv"] .plot svg').inner_html()
    page.locator("#kv-batch").select_option("64")
    page.wait_for_function(
        "before => document.querySelector('[data-chart=\"kv\"] .plot svg').innerHTML !== before", arg=before
    )


def test_tooltip_describes_the_point_under_the_pointer(page: Any) -> None:
    """It disappears completely afterwards."""
    draw_charts(page)
    elements = page.evaluate("document.querySelectorAll('*').length")
    page.locator('[data-chart="active"] .plot .mark-symbol path').first.hover(force=True)
    assert groups(SHOWN)[0].typical.name in page.locator(".tooltip").inner_text()
    page.mouse.move(1, 1)
    page.locator(".tooltip").wait_for(state="detached")
    assert page.evaluate("document.querySelectorAll('*').length") == elements


ROWS = """async ([name, columns]) => {
  const {view} = await drawn.get(name);
  const rows = SPECS[name].vega.data.flatMap(table => view.data(table.name));
  return rows.filter(row => columns.every(column => column in row))
    .map(row => Object.fromEntries(columns.map(column => [column, row[column]])));
}"""


def test_figures_of_the_charts_equal_python(page: Any) -> None:
    """The figures that charts compute from their rows: cache bytes, and ceilings on a device."""
    draw_charts(page)
    page.locator("#kv-batch").select_option("16")
    page.locator("#kv-dtype").select_option("float32")
    page.locator("#chart-device").select_option("rtx4090")
    specs, device = {model.name: model.spec for model in SHOWN}, roofline.device("rtx4090")
    rows = page.evaluate(ROWS, ["kv", ["model", "context", "bytes"]])
    assert len({row["model"] for row in rows}) == len(TYPICAL)
    for row in rows:
        assert row["bytes"] == specs[row["model"]].kv_bytes(row["context"], 16, torch.float32)
    passes = page.evaluate(ROWS, ["ceilings", ["model", "pass", "context", "batch", "tokens_per_s", "bound"]])
    assert len({(row["model"], row["pass"]) for row in passes}) == len(TYPICAL) * 4
    for row in passes:
        phase, config = row["pass"].partition(",")[0], kv.InferenceConfig(row["batch"])
        work = roofline.forward_pass(specs[row["model"]], phase, row["context"], config)
        assert row["tokens_per_s"] == pytest.approx(work.tokens_per_s(device), rel=1e-9)
        assert row["bound"] == work.bound(device)


SHAPES = {"○": "circle", "□": "square", "△": "triangle-up", "✚": "cross"}
SHAPES_OF_MARKS = """async name => {
  const {view} = await drawn.get(name), shape = view.scale("shape");
  const passes = view.data("passes").map(row => row.pass);
  return Object.fromEntries(passes.map(pass => [pass, shape(pass)]));
}"""


@pytest.mark.parametrize("name", ["ceilings", "roofline"])
def test_the_legend_shows_the_shapes_of_the_marks(page: Any, name: str) -> None:
    draw_charts(page)
    items = page.locator(f'[data-chart="{name}"] .legend li:has(.shape)').all_inner_texts()
    legend = {text[1:].strip(): SHAPES[text[0]] for text in items}
    assert legend == page.evaluate(SHAPES_OF_MARKS, name)
    assert len(set(legend.values())) == 4


def test_learning_is_shown_whichever_models_are_selected(page: Any) -> None:
    """Its models are scaled-down models and swaps, which are not those of the other charts."""
    draw_charts(page)
    tables = learning_tables(sample())
    names = [row["model"] for row in tables["learning"]]
    open_picker(page)
    page.locator(ONE).uncheck()
    columns = ["model", "kv_bytes_per_token", "bits_per_byte"]
    shown = page.evaluate(ROWS, ["learning-by-cache", columns])
    wanted = [{column: row[column] for column in columns} for row in tables["learning"]]
    assert wanted == [row for i, row in enumerate(shown) if row not in shown[:i]]
    assert page.locator('[data-chart="learning-by-cache"] .legend li').all_inner_texts() == names
    assert page.locator("#learning-table tbody th").all_inner_texts() == names
    page.locator(ONE).check()


def test_names_beside_points_give_way_to_the_legend_on_a_phone(page: Any, open_page: Open) -> None:
    for shown, size in ((page, "12px"), (open_page(390), "0px")):
        chart = shown.locator('[data-chart="learning-by-cache"]')
        chart.scroll_into_view_if_needed()
        chart.locator(".plot svg").wait_for()
        name = chart.locator(".plot svg").get_by_text("deepseek-v3", exact=True)
        assert name.evaluate("text => getComputedStyle(text).fontSize") == size
        assert chart.locator(".legend").get_by_text("deepseek-v3", exact=True).count() == 1


def test_chart_is_saved_as_shown(page: Any, folder: Path) -> None:
    draw_charts(page)
    for kind in ("csv", "svg", "png"):
        with page.expect_download() as download:
            page.locator(f'[data-chart="flops"] [data-save="{kind}"]').click()
        assert download.value.suggested_filename == f"flops.{kind}"
        content = Path(download.value.path()).read_bytes()
        if kind == "csv":
            saved = list(csv.reader(io.StringIO(content.decode())))
            expected = list(csv.reader(io.StringIO((folder / "data" / "flops.csv").read_text(encoding="utf-8"))))
            assert [[cell.lower() for cell in row] for row in saved] == [
                [cell.lower() for cell in row] for row in expected
            ]
        elif kind == "svg":
            drawing = ElementTree.fromstring(content)
            texts = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
            assert "var(--" not in content.decode()
            assert "FLOPs per token by context" in texts
            assert {*TYPICAL} <= {*texts}
        else:
            assert content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ([10, 40, 90], [10, 40, 90]),  # far enough apart
        ([50, 50, 50], [40, 50, 60]),  # around their mean
        ([50, 51, 52, 90], [41, 51, 61, 90]),
        ([2, 2, 2], [0, 10, 20]),  # not beyond the ends
        ([95, 95, 96], [80, 90, 100]),
    ],
)
def test_names_beside_lines_are_as_near_to_them_as_their_height_allows(
    page: Any, wanted: list[float], places: list[float]
) -> None:
    assert page.evaluate(f"spread({wanted}, 10, 0, 100)") == pytest.approx(places)
