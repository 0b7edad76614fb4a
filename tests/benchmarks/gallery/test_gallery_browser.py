"""The page in a real browser: its figures equal Python's, it uses no network, and it is accessible."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from benchmarks.analytic import compare, kv, roofline
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import one
from benchmarks.analytic.roofline import device, forward_pass
from benchmarks.gallery import swap_grid
from benchmarks.gallery.cost_terms import outside_terms
from benchmarks.gallery.overview import groups
from benchmarks.options import DTYPES
from tests.benchmarks.gallery.conftest import CHARTS, PAIRS_SHOWN, SHOWN, Open, draw_charts
from zoo.errors import SpecError
from zoo.units import format_bytes, format_count

pytestmark = pytest.mark.xdist_group("gallery")
SECTIONS = ("architectures", "compare", "charts", "learning", "fit", "swap", "blocks")
OTHERS = ((390, "dark"), (1920, "light"), (1920, "dark"))
SCREENS = [(390, "light"), *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)]
ARTEFACTS = Path(__file__).resolve().parents[3] / ".artifacts" / "gallery"


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


@pytest.mark.parametrize("pair", PAIRS_SHOWN, ids=" ".join)
def test_button_of_a_pair_shows_its_differences(page: Any, pair: tuple[str, str]) -> None:
    first, second = map(one, pair)
    page.locator(f'[data-pair="{pair[0]} {pair[1]}"]').click()
    fields, figures = page.locator("#differences table").all()
    rows = compare.difference_rows(first, second)
    shown = fields.locator("tbody tr").all()
    cells = [[row.locator("th").inner_text(), *row.locator("td").all_inner_texts()] for row in shown]
    # The page has them once, in the order of the model that it lists first.
    assert sorted(cells) == sorted([row["field"], row["value"] or "", row["other"] or ""] for row in rows)
    costs = compare.figure_rows(first, second, 4096, compare.InferenceConfig(), roofline.device("h100"))
    names = [row.locator("th").inner_text() for row in figures.locator("tbody tr").all()]
    assert names == [row["figure"] for row in costs]
    marked = page.evaluate(
        "[...document.querySelectorAll('#diagrams svg')].map(s => s.querySelectorAll('.differs').length)"
    )
    assert min(marked) > 0


def test_two_models_in_either_order(page: Any) -> None:
    """The page stores the differences of two models once, and swaps the columns."""
    first, second = PAIRS_SHOWN[0]
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


def on_each(spec: zoo.Decoder, cards: int) -> zoo.Decoder | None:
    """What one of so many cards holds: whole experts, or else a part of each."""
    for ep in (cards, 1):
        with suppress(SpecError):
            return InferenceConfig(tp=cards, ep=ep).part(spec)
    return None


def test_ceilings_of_several_cards_equal_python(page: Any) -> None:
    """Where the cards have a link, and where it is not known."""
    wanted = [(name, context, batch) for name in ("h100", "m3-max") for context in (4096, 131_072) for batch in (1, 16)]
    for model in SHOWN:
        for cards in (2, 8):
            if on_each(model.spec, cards) is None:
                continue
            script = """([name, cards, wanted]) => {
              const {layers, sent} = onCards(MODELS.get(name), cards);
              return wanted.map(([device, context, batch]) =>
                ceiling(layers, context, batch, 2, 2, DATA.devices[device], sent));
            }"""
            found = page.evaluate(script, [model.name, cards, wanted])
            whole = on_each(model.spec, cards) == InferenceConfig(tp=cards, ep=cards).part(model.spec)
            for (name, context, batch), ceiling in zip(wanted, found, strict=True):
                config = InferenceConfig(batch=batch, tp=cards, ep=cards if whole else 1)
                expected = forward_pass(model.spec, "decode", context, config).tokens_per_s(device(name))
                assert ceiling == pytest.approx(expected, rel=1e-9), (model.name, cards, name, context, batch)


def test_sliders_update_what_fits(page: Any) -> None:
    values = page.evaluate("[CONTEXTS, DATA.batches, MEMORIES]")
    for context, batch, memory, weights, cache, cards in (
        (131_072, 1, 24, "bfloat16", "bfloat16", 1),
        (8192, 16, 141, "float8", "bfloat16", 8),
        (1_048_576, 4, 80, "float32", "float8", 2),
        (4096, 1, 80, "bfloat16", "bfloat16", 16),
        (131_072, 1, 24, "bfloat16", "bfloat16", 1),
    ):
        for name, chosen, held in zip(("context", "batch", "memory"), (context, batch, memory), values, strict=True):
            page.locator(f"#fit-{name}").fill(str(held.index(chosen)))
        page.locator("#fit-weights").select_option(weights)
        page.locator("#fit-cache").select_option(cache)
        page.locator("#fit-cards").select_option(str(cards))
        assert page.locator("#fit-memory-shown").inner_text() == f"{memory} GB"
        for row, model in zip(page.locator("#fit-table tbody tr").all(), SHOWN, strict=True):
            cells = row.locator("td").all_inner_texts()
            assert row.locator("th").inner_text() == model.name
            if (spec := on_each(model.spec, cards)) is None:
                assert cells == [f"{cards} cards cannot divide it"]
                continue
            weights_bytes = spec.params() * DTYPES[weights].itemsize
            cache_bytes = spec.kv_bytes(context, batch, DTYPES[cache])
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
        "kv": sum(n * (2 * each.elements(context) + each.state_float32_bytes) for n, each in terms),
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


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
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
