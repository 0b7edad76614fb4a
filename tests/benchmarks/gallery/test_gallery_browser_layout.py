"""The layout in a real browser, checked by boxes: nothing overflows and no texts overlap, at every width."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.benchmarks.gallery.conftest import Open, draw_charts

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]
WIDTHS = [390, 1440, pytest.param(1920, marks=pytest.mark.slow), pytest.param(820, marks=pytest.mark.slow)]

# The boxes of all texts outside drawings, line by line: those of inline elements in a paragraph belong together.
BOXES = """() => {
  const SCROLLS = '.scroll, pre, nav, .pills, .pairs, .drawing, .drawings, .plot, #beside';
  const OTHERS = 'script, style, template, svg, select, option, .visually-hidden, .skip, header, noscript';
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest(OTHERS)) continue;
    if (!element.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    if (element.closest('table.stack thead') && innerWidth <= 720) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1) found.push({
        text: node.data.trim().slice(0, 60), scrolls: element.closest(SCROLLS) !== null,
        left: box.left, right: box.right, top: box.top + scrollY, bottom: box.bottom + scrollY,
      });
  }
  return found;
}"""
MOST_OVERLAP = 3  # pixels, of boxes of lines, which are higher than their letters


def overlapping(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    boxes, found, open_boxes = sorted(boxes, key=lambda box: box["top"]), [], []
    for box in boxes:
        open_boxes = [other for other in open_boxes if other["bottom"] - MOST_OVERLAP > box["top"]]
        for other in open_boxes:
            across = min(box["right"], other["right"]) - max(box["left"], other["left"])
            down = min(box["bottom"], other["bottom"]) - box["top"]
            if across > MOST_OVERLAP and down > MOST_OVERLAP:
                found.append((other["text"], box["text"]))
        open_boxes.append(box)
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_texts_neither_overflow_nor_overlap(open_page: Open, width: int) -> None:
    page = open_page(width)
    draw_charts(page)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate("choose(DATA.models[0].name)")
    boxes = page.evaluate(BOXES)
    assert len(boxes) > 500
    fixed = [box for box in boxes if not box["scrolls"]]
    assert [box["text"] for box in fixed if not -1 <= box["left"] <= box["right"] <= width + 1] == []
    assert overlapping(fixed) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_tables_are_stacked_on_a_phone(open_page: Open) -> None:
    """Every cell is on the screen, under its own head."""
    page = open_page(390)
    page.locator("#differences summary").click()
    for table in ("#fit-table", "#swap-table", "#differences table"):
        row = page.locator(table).first.locator("tbody tr").first
        for cell in row.locator("td").all():
            box = cell.bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= 390, table
        heads = row.locator("td[data-head]").evaluate_all(
            "all => all.map(cell => getComputedStyle(cell, '::before').content)"
        )
        assert len(heads) > 1
        assert all(head not in ("none", '""') for head in heads)


@pytest.mark.parametrize(("width", "beside"), [(390, False), (820, True), (1440, True)])
def test_results_and_drawings_stand_where_there_is_room(open_page: Open, width: int, beside: bool) -> None:
    """On a phone results come before settings, and the swapped drawing, below the settings, before the original."""
    page = open_page(width)
    if width != 820:
        for section, result in (("fit", "#fit-table"), ("swap", "#swap-table")):
            tops = [page.locator(each).bounding_box()["y"] for each in (result, f"#{section} .settings")]
            assert (tops[0] < tops[1]) == (width == 390)
    page.locator("#swap-window").select_option(label="512, all layers")
    own, swapped = (page.locator("#swap-drawings figure").nth(i).bounding_box() for i in range(2))
    assert (own["y"] == swapped["y"]) == beside
    assert own["x"] <= swapped["x"]
    assert page.locator("#swap .settings").bounding_box()["y"] < swapped["y"] <= own["y"]


def test_names_beside_lines_do_not_overlap(page: Any) -> None:
    draw_charts(page)
    page.evaluate("for (const box of document.querySelectorAll('#picker input')) box.checked = true")
    page.evaluate("() => { draw(document.querySelector('[data-chart=flops]')); }")
    names = page.locator("[data-chart=flops] .line-names text")
    page.wait_for_function("document.querySelectorAll('[data-chart=flops] .line-names text').length === MODELS.size")
    tops = names.evaluate_all("all => all.map(each => Number(each.getAttribute('y')))")
    assert tops == sorted(tops)
    assert min(b - a for a, b in pairwise(tops)) > 9
    plot = page.locator("[data-chart=flops] .plot").bounding_box()
    for name in names.all():
        box = name.bounding_box()
        assert box["x"] + box["width"] <= plot["x"] + plot["width"] + 1
    page.locator("#pick-typical").evaluate("button => button.click()")
