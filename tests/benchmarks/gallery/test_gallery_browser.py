"""The page in a real browser: its figures equal Python's, it uses no network, and it is accessible."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from benchmarks.analytic import compare, kv, roofline
from benchmarks.analytic.models import NamedSpec, chosen, one
from benchmarks.analytic.roofline import device, forward_pass
from benchmarks.analytic.weight_forms import FOUR_BIT, PLAIN
from benchmarks.gallery import files
from benchmarks.gallery.cost_terms import card_part
from benchmarks.output.show import format_decimal_bytes
from tests.benchmarks.gallery.conftest import CHARTS, PAIRS_SHOWN, SHOWN, Open, draw_charts
from zoo.catalog import title
from zoo.units import format_bytes, format_count

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]
LIMIT, RUNS = 6 * 10**6, 5  # bytes of the page; how often it is opened to time it
PAINTED = "performance.getEntriesByName('first-contentful-paint')"
SECTIONS = ("architectures", "compare", "charts", "learning", "fit", "swap", "blocks")
OTHERS = ((390, "dark"), (1440, "light"), (1440, "dark"), (1920, "light"), (1920, "dark"))
SCREENS = [(390, "light"), *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)]
ARTEFACTS = Path(__file__).resolve().parents[3] / ".artifacts" / "gallery"


def test_ids_are_unique_with_one_model_shown_twice(page: Any) -> None:
    page.locator("#first").select_option(SHOWN[0].name)
    page.locator("#second").select_option(SHOWN[0].name)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    assert "Their specs are equal." in page.locator("#differences").inner_text()


def assert_differences(page: Any, first: NamedSpec, second: NamedSpec) -> list[str]:
    """Checks that the fields and the sentences shown are Python's. Returns the sentences."""
    rows = page.locator("#differences table").first.locator("tbody tr").all()
    found = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}
    wanted = compare.difference_rows(first, second)
    assert found == {row["words"]: [row["value"] or "", row["other"] or ""] for row in wanted}
    assert len(rows) == len(wanted)
    sentences: list[str] = page.locator("#structure dd p").all_inner_texts()
    assert sorted(sentences) == sorted(row["sentence"] for row in compare.structure_rows(first, second))
    return sentences


@pytest.mark.parametrize("pair", PAIRS_SHOWN, ids=" ".join)
def test_button_of_a_pair_shows_its_differences(page: Any, pair: tuple[str, str]) -> None:
    first, second = map(one, pair)
    page.locator(f'[data-pair="{pair[0]} {pair[1]}"]').click()
    page.locator("#differences summary").click()
    costs = compare.figure_rows(first, second, 4096, kv.InferenceConfig(), roofline.device("h100"))
    figures = page.locator("#differences table").nth(1).locator("tbody tr")
    assert [row.locator("th").inner_text() for row in figures.all()] == [row["figure"] for row in costs]
    assert assert_differences(page, first, second), "pairs of the documentation differ in structure"
    marked = page.evaluate(
        "[...document.querySelectorAll('#diagrams svg')].map(s => s.querySelectorAll('.differs').length)"
    )
    assert min(marked) > 0


@pytest.mark.parametrize("pair", [PAIRS_SHOWN[0], PAIRS_SHOWN[0][::-1]], ids=" ".join)
def test_two_models_in_either_order(page: Any, pair: tuple[str, str]) -> None:
    """The page stores the differences of two models once, and swaps the columns."""
    for name, model in zip(("first", "second"), pair, strict=True):
        page.locator(f"#{name}").select_option(model)
    page.locator("#differences summary").click()
    assert_differences(page, *map(one, pair))


CONTEXTS, BATCHES = (1, 127, 129, 512, 1025, 4096, 100_003, 1_048_576), (1, 8, 256)


@pytest.mark.parametrize("model", SHOWN, ids=lambda model: model.name)
def test_sums_of_the_page_equal_python(page: Any, model: Any) -> None:
    """Every figure that the page computes, on a grid of contexts and batches."""
    spec, device = model.spec, roofline.device("a100")
    found = page.evaluate(
        """([wanted, contexts, batches]) => {
          const model = MODELS.get(wanted), layers = released(model), device = DATA.devices.a100;
          const part = onCards(model, 1), form = formOf(model, "released");
          return {
            params: sums.params(layers), active: sums.activeParams(layers),
            flops: contexts.map(context => sums.flops(layers, context)),
            cache: contexts.flatMap(context => batches.map(batch => sums.cacheBytes(layers, context, batch, 2))),
            fixed: sums.cacheFixed(layers, 2), perToken: sums.cachePerToken(layers, 2),
            weights: Object.fromEntries(["released", "float32", "4-bit"].map(name =>
              [name, weightBytes(part, formOf(model, name))])),
            ceiling: contexts.flatMap(context => batches.map(batch =>
              ceiling(part, context, batch, form, 2, device))),
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
    assert (found["fixed"], found["perToken"]) == (spec.kv_growth()[0], pytest.approx(spec.kv_growth()[1]))
    forms = {"released": model.released_form, "float32": PLAIN[torch.float32], "4-bit": FOUR_BIT}
    assert found["weights"] == {name: form.model_bytes(spec) for name, form in forms.items()}
    configs = ((context, kv.InferenceConfig(batch, model.released_form)) for context, batch in grid)
    decoded = [roofline.forward_pass(spec, "decode", *each).tokens_per_s(device) for each in configs]
    assert found["ceiling"] == pytest.approx(decoded, rel=1e-12)


def test_numbers_are_formatted_as_in_python(page: Any) -> None:
    numbers = [0, 1, 1.125, 1.375, 1.145, 2.675, 12.25, 9.994, 12.34, 999, 1125, 1375, 1145, 12_250, 1000, 1536]
    numbers += [4.19e9, 6.71e11, 2**20, 3 * 2**30, 1.5 * 2**40, 5.2e15]
    assert page.evaluate("numbers => numbers.map(formatCount)", numbers) == [format_count(number) for number in numbers]
    whole = [int(number) for number in numbers] + [1152, 1408, 12_544]
    assert page.evaluate("numbers => numbers.map(formatBytes)", whole) == [format_bytes(number) for number in whole]
    decimal = [format_decimal_bytes(number) for number in whole]
    assert page.evaluate("numbers => numbers.map(formatDecimalBytes)", whole) == decimal


def test_ceilings_of_several_cards_equal_python(page: Any) -> None:
    """With cards whose link is known, and with cards whose link is not."""
    wanted = [(name, context, batch) for name in ("h100", "m3-max") for context in (4096, 131_072) for batch in (1, 16)]
    script = """([name, cards, wanted]) => {
      const part = onCards(MODELS.get(name), cards), form = formOf(MODELS.get(name), "released");
      return [weightBytes(part, form), wanted.map(([device, context, batch]) =>
        ceiling(part, context, batch, form, 2, DATA.devices[device]))];
    }"""
    divided = [(model, *card_part(model.spec, cards)) for model in SHOWN for cards in (2, 8)]
    for model, config, part in ((model, config, part) for model, config, part in divided if part):
        weights, found = page.evaluate(script, [model.name, config.tp, wanted])
        assert weights == model.released_form.model_bytes(part)
        for (name, context, batch), ceiling in zip(wanted, found, strict=True):
            serving = replace(config, batch=batch, weights=model.released_form)
            expected = forward_pass(model.spec, "decode", context, serving).tokens_per_s(device(name))
            assert ceiling == pytest.approx(expected, rel=1e-9), (model.name, config.tp, name, context, batch)


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
    for name in (SHOWN[0].name, SHOWN[-1].name):
        page.evaluate("name => choose(name)", name)
        assert page.locator("#chosen").get_by_role("img", name=title(name)).count() == 1


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_page_is_accessible_and_fits_its_width(open_page: Open, width: int, scheme: str) -> None:
    """axe-core finds no serious violation and the page does not scroll sideways. Saves a screenshot of each section."""
    page = open_page(width, scheme)
    draw_charts(page)
    package = find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("pip install -e '.[test]'")
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


@pytest.mark.slow
def test_page_of_every_size(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its size has a limit; its painting time is only reported."""
    index, *_ = files.write_gallery(tmp_path, chosen(zoo.names()), None, images=False)
    assert index.stat().st_size < LIMIT
    paints, starts = [], []
    for _ in range(RUNS):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.goto(index.as_uri())
        page.locator("html[data-started]").wait_for(state="attached")
        starts.append(page.evaluate("performance.now()"))
        page.wait_for_function(f"{PAINTED}.length > 0")
        paints.append(page.evaluate(f"{PAINTED}[0].startTime"))
        context.close()
    with capsys.disabled():
        size, paint, start = index.stat().st_size / 1e6, statistics.median(paints), statistics.median(starts)
        print(f"\n{len(zoo.names())} sizes: {size:.2f} MB, first paint {paint:.0f} ms, started {start:.0f} ms")
