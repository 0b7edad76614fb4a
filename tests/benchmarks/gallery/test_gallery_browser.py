"""The page in a real browser: its figures equal Python's, it uses no network, and it is accessible."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.analytic import compare, kv, roofline
from benchmarks.analytic.compare import PAIRS
from benchmarks.analytic.models import one
from benchmarks.gallery import charts, learning_curves, swap_grid
from benchmarks.gallery.cost_terms import outside_terms
from benchmarks.gallery.learning_tables import learning_tables
from benchmarks.gallery.overview import groups
from benchmarks.options import DTYPES
from tests.benchmarks.gallery.conftest import SHOWN
from tests.benchmarks.gallery.learned import sample
from zoo.units import format_bytes, format_count

pytestmark = pytest.mark.xdist_group("gallery")
SECTIONS = ("architectures", "compare", "charts", "learning", "fit", "swap", "blocks")
CHARTS = {**charts.CHARTS, **learning_curves.CHARTS}
WIDTHS, SCHEMES = (390, 1920), ("light", "dark")
ARTEFACTS = Path(__file__).resolve().parents[3] / ".artifacts" / "gallery"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def open_page(browser: Any, folder: Path) -> Iterator[Open]:
    """Opens the page at a width, in a colour scheme. Afterwards: no console message, no request but for the page."""
    events: list[str] = []
    contexts = []

    def opened(width: int = 1280, scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error: {error}"))
        page.on("request", lambda request: events.append(request.url) if not request.url.startswith("blob:") else None)
        page.goto((folder / "index.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert set(events) == {(folder / "index.html").as_uri()}


@pytest.fixture(scope="module")
def page(open_page: Open) -> Any:
    """A page that the tests share; each sets the controls that it needs."""
    return open_page()


def test_page_opens(page: Any) -> None:
    """The page is complete when it is loaded."""
    assert page.title() == "zoo: open language models, side by side"
    assert page.evaluate("document.readyState") == "complete"


def test_every_architecture_has_a_card(page: Any) -> None:
    for group in groups(SHOWN):
        card = page.locator(f'.architecture[data-family="{group.name}"]')
        assert card.locator("h3").inner_text().startswith(group.title)
        assert card.locator("option").all_inner_texts() == [model.name for model in group.models]
        assert card.locator("svg > title").text_content() == group.typical.name


def test_card_shows_the_selected_size(page: Any) -> None:
    group = next(group for group in groups(SHOWN) if len(group.models) > 1)
    card = page.locator(f'.architecture[data-family="{group.name}"]')
    for model in group.models:
        card.locator("select").select_option(model.name)
        assert card.locator("svg > title").text_content() == model.name


def test_ids_are_unique_with_one_model_shown_twice(page: Any) -> None:
    page.locator("#first").select_option(SHOWN[0].name)
    page.locator("#second").select_option(SHOWN[0].name)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    assert "Their specs are equal." in page.locator("#differences").inner_text()


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_button_of_a_pair_shows_its_differences(page: Any, pair: tuple[str, str]) -> None:
    first, second = map(one, pair)
    page.locator(f'[data-pair="{pair[0]} {pair[1]}"]').click()
    fields, figures = page.locator("#differences table").all()
    rows = compare.difference_rows(first, second)
    shown = fields.locator("tbody tr").all()
    assert [row.locator("th").inner_text() for row in shown] == [row["field"] for row in rows]
    assert [row.locator("td").all_inner_texts() for row in shown] == [
        [row["value"] or "", row["other"] or ""] for row in rows
    ]
    costs = compare.figure_rows(first, second, 4096, compare.InferenceConfig(), roofline.device("h100"))
    names = [row.locator("th").inner_text() for row in figures.locator("tbody tr").all()]
    assert names == [row["figure"] for row in costs]
    marked = page.evaluate(
        "[...document.querySelectorAll('#diagrams svg')].map(s => s.querySelectorAll('.differs').length)"
    )
    assert min(marked) > 3


def test_two_models_in_either_order(page: Any) -> None:
    """The page stores the differences of two models once, and swaps the columns."""
    first, second = PAIRS[0]
    for a, b in ((first, second), (second, first)):
        page.locator("#first").select_option(a)
        page.locator("#second").select_option(b)
        found = dict(zip(page.locator("#differences table").first.locator("tbody th").all_inner_texts(),
                         page.locator("#differences table").first.locator("tbody tr td:nth-child(2)").all_inner_texts(),
                         strict=True))  # fmt: skip
        assert found == {row["field"]: row["value"] or "" for row in compare.difference_rows(one(a), one(b))}


CONTEXTS, BATCHES = (1, 127, 129, 512, 1025, 4096, 100_003, 1_048_576), (1, 8, 256)


@pytest.mark.parametrize("model", SHOWN, ids=lambda model: model.name)
def test_sums_of_the_page_equal_python(page: Any, model: Any) -> None:
    """Every figure that the page computes, on a grid of contexts and batches."""
    spec, device = model.spec, roofline.device("a100")
    found = page.evaluate(
        """([name, contexts, batches]) => {
          const layers = released(MODELS.get(name)), device = DATA.devices.a100;
          return {
            params: sums.params(layers), active: sums.activeParams(layers),
            flops: contexts.map(context => sums.flops(layers, context)),
            cache: contexts.flatMap(context => batches.map(batch => sums.cacheBytes(layers, context, batch, 2))),
            ceiling: contexts.flatMap(context => batches.map(batch => ceiling(layers, context, batch, 4, 2, device))),
            longest: batches.map(batch => longestContext(layers, 5e9, batch, 2)),
          };
        }""",
        [model.name, CONTEXTS, BATCHES],
    )
    grid = [(context, batch) for context in CONTEXTS for batch in BATCHES]
    assert found["params"] == spec.params()
    assert found["active"] == spec.active_params()
    assert found["flops"] == [spec.flops(context - 1, 1) for context in CONTEXTS]
    assert found["cache"] == [spec.kv_bytes(context, batch) for context, batch in grid]
    pieces = kv.pieces(spec, torch.bfloat16)
    assert found["longest"] == [kv.longest(pieces, int(5e9) // batch) for batch in BATCHES]
    configs = ((context, kv.InferenceConfig(batch, torch.float32)) for context, batch in grid)
    decoded = [roofline.forward_pass(spec, "decode", *each).tokens_per_s(device) for each in configs]
    assert found["ceiling"] == pytest.approx(decoded, rel=1e-12)


def test_numbers_are_formatted_as_in_python(page: Any) -> None:
    numbers = [
        0,
        1,
        1.125,
        1.375,
        1.145,
        2.675,
        12.25,
        9.994,
        12.34,
        999,
        1125,
        1375,
        1145,
        12_250,
        1000,
        1536,
        4.19e9,
        6.71e11,
        2**20,
        3 * 2**30,
        1.5 * 2**40,
        5.2e15,
    ]
    assert page.evaluate("numbers => numbers.map(formatCount)", numbers) == [format_count(number) for number in numbers]
    whole = [int(number) for number in numbers] + [1152, 1408, 12_544]
    assert page.evaluate("numbers => numbers.map(formatBytes)", whole) == [format_bytes(number) for number in whole]


def test_sliders_update_what_fits(page: Any) -> None:
    values = page.evaluate("[CONTEXTS, DATA.batches, MEMORIES]")
    for context, batch, memory, weights, cache in (
        (131_072, 1, 24, "bfloat16", "bfloat16"),
        (8192, 16, 141, "float8", "bfloat16"),
        (1_048_576, 4, 80, "float32", "float8"),
    ):
        for name, chosen, held in zip(("context", "batch", "memory"), (context, batch, memory), values, strict=True):
            page.locator(f"#fit-{name}").fill(str(held.index(chosen)))
        page.locator("#fit-weights").select_option(weights)
        page.locator("#fit-cache").select_option(cache)
        assert page.locator("#fit-memory-shown").inner_text() == f"{memory} GB"
        for row, model in zip(page.locator("#fit-table tbody tr").all(), SHOWN, strict=True):
            weights_bytes = model.spec.params() * DTYPES[weights].itemsize
            cache_bytes = model.spec.kv_bytes(context, batch, DTYPES[cache])
            cells = row.locator("td").all_inner_texts()
            assert row.locator("th").inner_text() == model.name
            assert cells[1:5] == [
                format_bytes(weights_bytes),
                format_bytes(cache_bytes),
                format_bytes(weights_bytes + cache_bytes),
                "yes" if weights_bytes + cache_bytes <= memory * 1e9 else "no",
            ]


def test_card_sets_the_memory(page: Any) -> None:
    page.locator("#fit-device").select_option("rtx4090")
    assert page.locator("#fit-memory-shown").inner_text() == "24 GB"
    page.locator("#fit-device").select_option("h100")


@pytest.mark.parametrize("name", [group.typical.name for group in groups(SHOWN)])
def test_costs_of_a_swap_equal_python(page: Any, name: str) -> None:
    """The last valid cell of both grids: the figures shown, and the sums behind them."""
    spec = one(name).spec
    attention, experts = swap_grid.attention_grid(spec), swap_grid.expert_grid(spec)
    page.locator("#swap-model").select_option(name)
    terms = [(1, outside_terms(spec))]
    for grid, rows, columns in ((attention, "kv", "window"), (experts, "experts", "k")):
        i, j = max((i, j) for i, row in enumerate(grid.cells) for j, cell in enumerate(row) if cell is not None)
        page.locator(f"#swap-{rows}").select_option(index=i)
        page.locator(f"#swap-{columns}").select_option(index=j)
        terms += grid.cells[i][j] or ()
    context = page.evaluate("CONTEXTS[document.getElementById('swap-context').value]")
    released = {"params": spec.params(), "active": spec.active_params(), "kv": spec.kv_bytes(context)}
    swapped = {
        "params": sum(n * sum(each.params.values()) for n, each in terms),
        "active": sum(n * each.active_params for n, each in terms),
        "kv": 2 * sum(n * each.cache_elements * each.visible(context) for n, each in terms),
    }
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#swap-table tbody tr").all()]
    formats = {"params": format_count, "active": format_count, "kv": format_bytes}
    assert [row[:2] for row in rows[:3]] == [[form(released[key]), form(swapped[key])] for key, form in formats.items()]
    page.locator("#swap-reset").click()
    assert {row.locator("td").last.inner_text() for row in page.locator("#swap-table tbody tr").all()} == {"the same"}


def test_python_beside_a_swap_makes_that_spec(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page.locator("#swap-model").select_option("llama3.1-8b")
    for axis, label in (("kv", "2 KV heads (GQA)"), ("window", "512, all but every fourth layer"), ("experts", "8")):
        page.locator(f"#swap-{axis}").select_option(label=label)
    page.locator("#swap-positions").select_option(label="NoPE in every fourth layer")
    exec(page.locator("#swap-code").inner_text(), {})
    params = int(capsys.readouterr().out.split()[0])
    assert page.locator("#swap-table tbody tr").first.locator("td").nth(1).inner_text() == format_count(params)
    page.locator("#swap-reset").click()


def test_invalid_combinations_cannot_be_selected(page: Any) -> None:
    """MLA has no window: selecting MLA resets the window."""
    page.locator("#swap-model").select_option("llama3.1-8b")
    page.locator("#swap-window").select_option(label="512, all layers")
    page.locator("#swap-kv").select_option(label="latent of 512 (MLA)")
    chosen = page.locator("#swap-window option:checked")
    assert chosen.inner_text() == "as released"
    assert page.locator("#swap-window option:disabled").count() == 12 + 1
    page.locator("#swap-reset").click()


def test_dropped_features_are_listed(page: Any) -> None:
    page.locator("#swap-model").select_option("gpt-oss-20b")
    page.locator("#swap-kv").select_option(label="latent of 512 (MLA)")
    assert "Dropped features: window 128, biases, sinks." in page.locator("#swap-note").inner_text()
    page.locator("#swap-reset").click()
    assert "Dropped" not in page.locator("#swap-note").inner_text()


def draw_charts(page: Any) -> None:
    """Scroll to every chart, and wait until it is drawn."""
    for name in CHARTS:
        page.locator(f'[data-chart="{name}"]').scroll_into_view_if_needed()
        page.locator(f'[data-chart="{name}"] .plot svg').wait_for()


def test_charts_follow_the_selected_models(page: Any) -> None:
    draw_charts(page)
    lines = page.locator('[data-chart="kv"] .legend li')
    assert lines.all_inner_texts() == [group.typical.name for group in groups(SHOWN)]
    page.locator('#picker input[value="qwen3-8b"]').uncheck()
    page.wait_for_function("document.querySelectorAll('[data-chart=\"kv\"] .legend li').length === 7")
    page.locator('#picker input[value="qwen3-8b"]').check()
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
    """And it disappears without a trace."""
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
    assert len({row["model"] for row in rows}) == 8
    for row in rows:
        assert row["bytes"] == specs[row["model"]].kv_bytes(row["context"], 16, torch.float32)
    passes = page.evaluate(ROWS, ["ceilings", ["model", "pass", "context", "batch", "tokens_per_s", "bound"]])
    assert len({(row["model"], row["pass"]) for row in passes}) == 8 * 4
    for row in passes:
        phase, config = row["pass"].partition(",")[0], kv.InferenceConfig(row["batch"])
        work = roofline.forward_pass(specs[row["model"]], phase, row["context"], config)
        assert row["tokens_per_s"] == pytest.approx(work.tokens_per_s(device), rel=1e-9)
        assert row["bound"] == work.bound(device)


def test_learning_is_shown_whichever_models_are_selected(page: Any) -> None:
    """Its models are small forms and swaps, which are not those of the other charts."""
    draw_charts(page)
    tables = learning_tables(sample())
    names = [row["model"] for row in tables["learning"]]
    page.locator('#picker input[value="qwen3-8b"]').uncheck()
    columns = ["model", "kv_bytes_per_token", "bits_per_byte"]
    shown = page.evaluate(ROWS, ["learning-by-cache", columns])
    wanted = [{column: row[column] for column in columns} for row in tables["learning"]]
    assert wanted == [row for i, row in enumerate(shown) if row not in shown[:i]]
    assert page.locator('[data-chart="learning-by-cache"] .legend li').all_inner_texts() == names
    assert page.locator("#learning-table tbody th").all_inner_texts() == names
    page.locator('#picker input[value="qwen3-8b"]').check()


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
            assert "var(--" not in content.decode()
            assert "FLOPs per token" in content.decode()
        else:
            assert content.startswith(b"\x89PNG")


def test_all_controls_are_reachable_by_keyboard(open_page: Open) -> None:
    """The first stop is the link that skips the header."""
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the architectures"
    reached = page.evaluate(
        """() => [...document.querySelectorAll('a[href], button, select, input, [tabindex]')]
          .filter(each => each.offsetParent !== null && (each.tabIndex < 0 || each.disabled))
          .map(each => each.outerHTML.slice(0, 200))"""
    )
    assert reached == []
    page.locator("#fit-context").focus()
    before = page.locator("#fit-context-shown").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#fit-context-shown").inner_text() != before
    page.locator("#pairs button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#pairs button").first.get_attribute("aria-pressed") == "true"


def test_controls_and_images_have_accessible_names(page: Any) -> None:
    """A label that contains an output would name the output, so the labels of sliders refer to their ids."""
    draw_charts(page)
    for section, names in (("fit", ("Context", "Sequences", "Memory")), ("swap", ("Context",))):
        for name in names:
            assert page.locator(f"#{section}").get_by_role("slider", name=name).count() == 1
    for chart in CHARTS.values():
        assert page.get_by_role("img", name=chart.title, exact=True).count() == 1
    for card in page.locator(".architecture").all():
        assert card.get_by_role("img", name=card.locator("select").input_value()).count() == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_accessible_and_fits_its_width(open_page: Open, width: int, scheme: str) -> None:
    """axe-core finds no serious violation and the page does not scroll sideways. Saves a screenshot of each section."""
    page = open_page(width, scheme)
    draw_charts(page)
    package = find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("pip install 'zoo-llm[test]'")
    # Its script alone: the package itself reads it in the encoding of the locale.
    page.add_script_tag(content=Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert not serious, json.dumps([(each["id"], [node["html"] for node in each["nodes"][:3]]) for each in serious])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.add_style_tag(content="header { position: static !important }")
    for section in SECTIONS:
        path = ARTEFACTS / f"{section}-{width}-{scheme}.png"
        page.locator(f"#{section}").screenshot(path=path)
        assert path.stat().st_size > 10_000
