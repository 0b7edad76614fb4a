"""Drawings to play with and charts to point at, in a real browser: what they say equals Python's figures."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from benchmarks.gallery.overview import groups
from tests.benchmarks.gallery.conftest import SHOWN, Open, draw_charts
from zoo.blocks import GQA, RoPE
from zoo.core.forward_context import visible
from zoo.costs import Window
from zoo.units import format_bytes

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]


def play(page: Any, title: str, **values: int) -> str:
    """Sets the sliders of a drawing. Returns its caption."""
    figure = page.locator(".playground", has_text=title)
    for name, value in values.items():
        label = figure.locator("label", has_text=re.compile(f"^{name.replace('_', ' ')}"))
        while int(label.locator("output").inner_text()) < value:
            label.locator("input").press("ArrowRight")
        while int(label.locator("output").inner_text()) > value:
            label.locator("input").press("ArrowLeft")
    assert figure.locator("svg").get_attribute("aria-label") == figure.locator("figcaption").inner_text()
    caption: str = figure.locator("figcaption").inner_text()
    return caption


def test_heads_in_groups(page: Any) -> None:
    for kv_heads in (1, 4, 8):
        attn = GQA(8, kv_heads, 128, RoPE(1e4))
        caption = play(page, "Heads that share keys", KV_heads=kv_heads)
        assert caption.startswith(f"{attn.names()[0]}: {8 // kv_heads} query heads")
        assert format_bytes(attn.cache_spec().elements() * 2) in caption
        assert page.locator(".playground .kept").count() >= kv_heads


def test_window(page: Any) -> None:
    caption = play(page, "A window in most layers", window=3)
    positions = torch.arange(16)
    assert f"{int(visible(positions, positions, Window(3)).sum())} pairs instead of 136" in caption
    assert page.locator(".playground .seen-window").count() == int(visible(positions, positions, Window(3)).sum())


def test_rotation_depends_on_the_distance_alone(page: Any) -> None:
    scores = set()
    for query, key in ((12, 8), (40, 36), (9, 5)):
        caption = play(page, "Rotation by position", query_at=query, key_at=key)
        scores.add(re.search(r"is (-?[\d.]+) of its most at a distance of 4", caption)[1])
    table = RoPE(100.0).table(torch.tensor([4]), 12)
    assert scores == {f"{float(table[0][0, :6].mean()):.2f}"}


def test_routing_has_weights_that_add_up(page: Any) -> None:
    caption = play(page, "Top-k routing", experts_per_token=4, token=3)
    figure = page.locator(".playground", has_text="Top-k routing")
    weights = [float(text) for text in figure.locator("text").all_text_contents() if "." in text]
    assert len(weights) == figure.locator(".chosen").count() == 4
    assert sum(weights) == pytest.approx(1, abs=0.03)
    assert "4 of 16 experts" in caption


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_nearest_line_is_shown(open_page: Open, touch: bool) -> None:
    """The tooltip has its model, its context and the bytes of its cache."""
    page = open_page(1280, touch=touch)
    draw_charts(page)
    plot = page.locator('[data-chart="kv"] .plot')
    plot.scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    area, box = page.evaluate("plotArea(document.querySelector('[data-chart=kv] .plot'))"), plot.bounding_box()
    at = box["x"] + area["left"] + area["width"] / 2, box["y"] + area["top"] + area["height"] / 3
    (page.touchscreen.tap if touch else page.mouse.move)(*at)
    tip = page.locator(".tooltip")
    tip.wait_for()
    name, context, size = re.fullmatch(r"(\S+)\n(\S+) tokens: (.+)", tip.inner_text()).groups()
    spec = next(model.spec for model in SHOWN if model.name == name)
    tokens = page.evaluate("text => CONTEXTS.find(each => formatTokens(each) === text)", context)
    assert size == format_bytes(spec.kv_bytes(tokens))
    assert page.locator(".crosshair circle").count() == 1


def test_lines_are_followed_by_keys(page: Any) -> None:
    draw_charts(page)
    plot = page.locator('[data-chart="flops"] .plot')
    plot.scroll_into_view_if_needed()
    plot.focus()
    page.wait_for_timeout(200)  # a scroll closes what is shown
    status = page.locator('[data-chart="flops"] [role=status]')
    names = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
        page.locator(".tooltip").wait_for()
        names.append(status.inner_text())
    assert len(set(names)) == 4
    assert names[0].split(",")[0] == names[1].split(",")[0] in [group.typical.name for group in groups(SHOWN)]
    assert names[1].split(",")[0] != names[2].split(",")[0]
    page.keyboard.press("Escape")
    page.locator(".tooltip").wait_for(state="detached")


def test_measured_speeds_share_one_axis(page: Any) -> None:
    draw_charts(page)
    ticks, texts = set(), set()
    for option in page.locator("#workload option").all_inner_texts():
        page.locator("#workload").select_option(option)
        page.wait_for_timeout(150)
        ticks.add(str(page.evaluate("async () => (await drawn.get('measured')).view.scale('x').domain()")))
        texts.add(option)
    assert len(ticks) == 1
    decode, prefill = "decode of 128 tokens after 4,096", "prefill of 512 tokens"
    assert texts == {f"{test}, batch 1, bfloat16 on cpu" for test in (decode, prefill)}
