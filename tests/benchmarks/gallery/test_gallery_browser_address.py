"""Links in a real browser: they scroll to the exact place and share the settings, and "back" undoes settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gallery.overview import groups
from tests.benchmarks.gallery.conftest import CHARTS, SHOWN, Open, draw_charts

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]
PLACES = ("fit", "block-mixture-of-experts", groups(SHOWN)[-1].name)
OTHERS = ("architectures", "compare", "charts", "learning", "swap", "blocks", groups(SHOWN)[0].name)
TOLERANCE, HEADER = 10, 64  # pixels
SCREENS: list[Any] = [(390, PLACES)]
SLOW = [(390, OTHERS), (1440, PLACES + OTHERS), (1920, PLACES + OTHERS)]
SCREENS += [pytest.param(*each, marks=pytest.mark.slow) for each in SLOW]


def top(page: Any, place: str) -> float:
    found: float = page.evaluate("id => document.getElementById(id).getBoundingClientRect().top", place)
    return found


@pytest.mark.parametrize(("width", "places"), SCREENS)
def test_links_into_the_page_land_exactly(open_page: Open, width: int, places: tuple[str, ...]) -> None:
    """The place is checked when the page opens, once the charts near it are drawn, and after all charts are drawn."""
    for place in places:
        page = open_page(width, place=place)
        page.wait_for_timeout(300)
        at_bottom = page.evaluate("innerHeight + scrollY >= document.documentElement.scrollHeight - 1")
        assert at_bottom or abs(top(page, place) - HEADER) < TOLERANCE, place
    before = page.evaluate("document.documentElement.scrollHeight")
    draw_charts(page)
    assert abs(page.evaluate("document.documentElement.scrollHeight") - before) < TOLERANCE


def test_charts_have_the_height_that_was_reserved(page: Any) -> None:
    draw_charts(page)
    for name in CHARTS:
        plot, svg = (
            page.locator(f'[data-chart="{name}"] {each}').bounding_box()["height"] for each in (".plot", ".plot svg")
        )
        assert plot - 20 <= svg <= plot, name


LINK = (
    "fit?compare=llama3.1-8b%2Cgpt-oss-20b&context=8192&memory=48&cards=2&weights=4-bit&features=experts"
    "&scale=time&swap.model=gpt-oss-20b&swap.experts=8&models=llama3.1-8b%2Cgpt-oss-20b&chart.device=rtx4090"
)


def test_a_link_sets_everything(open_page: Open) -> None:
    page = open_page(place=LINK)
    assert page.locator("#first").input_value() == "llama3.1-8b"
    assert page.locator("#second").input_value() == "gpt-oss-20b"
    assert page.locator("#fit-context-shown").inner_text() == "8k tokens"
    assert page.locator("#fit-device option:checked").inner_text() == "custom, 48 GB"
    assert page.locator("#fit-cards").input_value() == "2"
    assert page.locator("#fit-weights").input_value() == "4-bit"
    assert page.locator("#features [aria-pressed=true]").count() == 1
    assert page.locator("#to-scale").is_checked()
    assert page.locator("#swap-model").input_value() == "gpt-oss-20b"
    assert page.locator("#swap-experts option:checked").inner_text() == "8"
    assert page.evaluate("selectedModels()") == ["llama3.1-8b", "gpt-oss-20b"]
    assert page.locator("#chart-device").input_value() == "rtx4090"
    assert abs(top(page, "fit") - HEADER) < TOLERANCE
    again = page.evaluate("settingsText()")
    assert open_page(place=f"fit?{again}").evaluate("settingsText()") == again


UNKNOWN = "compare=a,b&memory=7&cards=x&weights=int3&features=none&swap.kv=?&model=%E2%82%AC&scale=1&card=none&=&&"


def test_what_a_link_does_not_know_is_left_as_it_is(open_page: Open) -> None:
    """There must be no message: the fixture sees everything on the console."""
    page = open_page(place=f"nowhere?{UNKNOWN}")
    fresh = open_page()
    for name in ("first", "second", "fit-memory", "fit-cards", "fit-weights", "swap-model", "swap-kv", "chosen-size"):
        assert page.locator(f"#{name}").input_value() == fresh.locator(f"#{name}").input_value()
    assert page.locator("#features [aria-pressed=true]").count() == 0


def test_back_undoes_a_setting(open_page: Open) -> None:
    page = open_page()
    first, context = page.locator("#first").input_value(), page.locator("#fit-context-shown").inner_text()
    page.locator("#pairs button").first.click()
    assert page.locator("#first").input_value() != first
    page.locator("#fit-context").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")  # one step, however often
    assert "context=" in page.url
    page.locator("#swap-kv").select_option(index=1)
    assert "swap.kv=" in page.url
    page.go_back()
    assert page.locator("#swap-kv").evaluate("select => select.selectedIndex") == 0
    page.go_back()
    assert page.locator("#fit-context-shown").inner_text() == context
    page.go_back()
    assert page.locator("#first").input_value() == first
    page.go_forward()
    assert page.locator("#first").input_value() != first


@pytest.mark.parametrize("width", [1280, 390])
def test_a_link_to_an_architecture_chooses_it(open_page: Open, width: int) -> None:
    page = open_page(width, place="llama3")
    assert page.locator("#chosen-title").inner_text() == page.locator("#llama3 .open").inner_text()
    page.evaluate("location.hash = '#gpt-oss'")  # as typed
    page.wait_for_function("document.getElementById('chosen-size').value === 'gpt-oss-20b'")
    page.locator('#blocks a[href="#llama3"]').first.click()
    assert page.locator("#chosen-size").input_value().startswith("llama3")
    assert page.url.split("#")[1].startswith("llama3")
    page.go_back()
    page.wait_for_function("document.getElementById('chosen-size').value === 'gpt-oss-20b'")


def test_links_within_the_page_keep_the_settings(open_page: Open, folder: Path) -> None:
    page = open_page()
    page.locator("#fit-cards").select_option("4")
    page.locator('nav a[href="#blocks"]').click()
    assert page.url.endswith("#blocks?cards=4")
    assert page.locator("#fit-cards").input_value() == "4"
    page.evaluate("location.hash = '#fit?cards=8'")  # as typed
    page.wait_for_function("document.getElementById('fit-cards').value === '8'")
    page.wait_for_function(
        f"Math.abs(document.getElementById('fit').getBoundingClientRect().top - {HEADER}) < {TOLERANCE}"
    )
