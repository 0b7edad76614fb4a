"""The list of architectures, in a real browser: order, filters, facts, and the chosen one at every width."""

from __future__ import annotations

import re
from typing import Any

import pytest

import zoo
from benchmarks.gallery import timeline
from benchmarks.gallery.overview import groups, title_of
from tests.benchmarks.gallery.conftest import SHOWN, Open
from zoo.catalog import counterpart
from zoo.units import format_bytes, format_count

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]
ENTRIES = timeline.entries(SHOWN)


def test_architectures_are_listed_by_release_with_the_differences_from_their_counterparts(page: Any) -> None:
    assert page.locator("#timeline h3 .open").all_inner_texts() == [entry.group.title for entry in ENTRIES]
    months = page.locator("#timeline .when").all_inner_texts()
    assert months == sorted(months)
    assert len(months) == len(groups(SHOWN))
    for entry in ENTRIES:
        text = page.locator(f'[id="{entry.group.name}"] .new').inner_text()
        if entry.compared_with is None:
            assert text == entry.group.new
            continue
        assert text.startswith(f"compared with {entry.compared_with.title}")
        assert all(sentence in text for sentence in entry.added)
        assert entry.compared_with.typical.name == counterpart(entry.group.typical.name)
    shown = {entry.group.name for entry in ENTRIES}
    arcs = sum(1 for entry in ENTRIES if entry.compared_with and entry.compared_with.name in shown)
    assert page.locator("#arcs path").count() == arcs > 2


def test_filters_are_those_of_the_specs(page: Any) -> None:
    for feature in ("experts", "windows"):
        page.locator(f'#features button[value="{feature}"]').click()
        has = [entry.group.name for entry in ENTRIES if feature in timeline.features(entry.group.typical.spec)]
        shown = page.locator("#timeline .entry:visible").evaluate_all("all => all.map(each => each.dataset.family)")
        assert shown == has
        assert 0 < len(has) < len(ENTRIES)
        assert page.locator("#timeline-count").inner_text() == f"{len(has)} of {len(ENTRIES)} have {feature}"
        page.locator(f'#features button[value="{feature}"]').click()
    assert page.locator("#timeline .entry:visible").count() == len(ENTRIES)


def test_true_scale_is_in_proportion_to_months(page: Any) -> None:
    tops = "all => all.map(each => each.getBoundingClientRect().top)"
    even = page.locator("#timeline .entry").evaluate_all(tops)
    page.locator("#to-scale").check()
    scaled = page.locator("#timeline .entry").evaluate_all(tops)
    moved = [b - a - (scaled[0] - even[0]) for a, b in zip(even, scaled, strict=True)]
    months = [sum(entry.months for entry in ENTRIES[: i + 1]) for i in range(len(ENTRIES))]
    assert months[-1] > 12
    assert moved == pytest.approx([moved[-1] * month / months[-1] for month in months], abs=1)
    page.locator("#to-scale").uncheck()


@pytest.mark.parametrize("width", [390, 1280])
def test_chosen_architecture_has_its_diagram_and_facts(open_page: Open, width: int) -> None:
    """They are beside the list or, on a phone, below its entry, where they can be closed again."""
    page = open_page(width)
    entry = max(ENTRIES, key=lambda each: len(each.group.models))
    button = page.locator(f'[id="{entry.group.name}"] .open')
    button.click()
    assert page.locator("#chosen-title").inner_text() == entry.group.title
    inside = page.locator(f'[id="{entry.group.name}"] #chosen').count()
    assert inside == (width < 1080)
    for model in entry.group.models:
        page.locator("#chosen-size").select_option(model.name)
        assert page.locator("#chosen svg > title").text_content() == title_of(model)
        names, values = (page.locator(f"#chosen {each}").all_inner_texts() for each in ("dt", "dd"))
        facts = dict(zip(names, values, strict=True))
        assert facts["parameters"] == format_count(model.spec.params())
        assert facts["vocabulary"] == f"{model.spec.vocab:,} tokens"
        assert facts["released"] == model.size.released
        assert facts["licence"] == zoo.architectures.families()[entry.group.name].ABOUT.licence
        assert model.size.hub in facts["files"]
        fixed, per_token = model.spec.kv_growth()
        assert f"{format_bytes(per_token)} per token" in facts["KV cache"]
        assert (f"{format_bytes(fixed)} fixed" in facts["KV cache"]) is bool(fixed)
    if inside:
        button.click()
        assert not page.locator("#chosen").is_visible()
        assert button.get_attribute("aria-expanded") == "false"


def test_reasons_open_by_key(page: Any) -> None:
    deepseek = next(model for model in SHOWN if model.name == "deepseek-v3-671b")
    page.evaluate("name => choose(name)", deepseek.name)
    reason = page.locator("#chosen dt", has_text="FLOPs").locator("+ dd .why")
    assert not reason.locator("span").is_visible()
    reason.locator("summary").focus()
    page.keyboard.press("Enter")
    assert reason.locator("span").is_visible()
    assert "latents" in reason.inner_text()
    weights, attention = (float(number) for number in re.findall(r"([\d.]+) GFLOPs", reason.inner_text()))
    assert weights + attention == pytest.approx(deepseek.spec.flops(4095, 1) / 1e9, abs=0.11)
    assert weights == pytest.approx(deepseek.spec.flops(0, 1) / 1e9, abs=0.1)


def test_compare_with_the_ancestor(page: Any) -> None:
    shown = {entry.group.name: entry.group for entry in ENTRIES}
    entry = next(each for each in reversed(ENTRIES) if each.compared_with and each.compared_with.name in shown)
    page.evaluate("name => choose(name)", entry.group.typical.name)
    page.locator("#chosen-compare").click()
    assert page.locator("#second").input_value() == entry.group.typical.name
    assert page.locator("#first").input_value() == shown[entry.compared_with.name].typical.name


def test_chips_lead_to_the_text_on_blocks_and_back(page: Any) -> None:
    chip = page.locator("#timeline .kind", has_text="experts").first
    chip.click()
    assert "#block-mixture-of-experts" in page.url
    assert abs(page.locator("#block-mixture-of-experts").bounding_box()["y"] - 64) < 10
    page.locator(".used a:visible").first.click()
    assert page.url.split("#")[1].split("?")[0] in {entry.group.name for entry in ENTRIES}
