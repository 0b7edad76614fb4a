"""The colours of both themes, as a style sheet and as attributes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.zoo.diagram.drawing import BASE, MODELS, SVG, classes, drawn
from zoo import spec
from zoo.diagram import colours, svg
from zoo.diagram.palette import MARKS, attributes, css, palette, rules


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1) of #rrggbb."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "faint", "differs", "resized"])
@pytest.mark.parametrize(
    "behind", ["paper", "card", "attn", "ffn", "inputs", "norm", "table", "rope", "window", "kept-fill"]
)
def test_text_has_enough_contrast(theme: int, text: str, behind: str) -> None:
    """WCAG 2.1 requires 4.5 to 1 for small text (criterion 1.4.3)."""
    assert contrast(palette()[text][theme], palette()[behind][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_kinds_of_layer_have_colours_that_differ(theme: int) -> None:
    """The two kinds of feed-forward differ in grey, too."""
    reaches = [pair[theme] for name, pair in palette().items() if name.startswith("reach-")]
    assert len(set(reaches)) == len(reaches) == 7
    assert contrast(palette()["ffn-dense"][theme], palette()["ffn-experts"][theme]) >= 2


def test_every_class_has_a_rule_and_every_rule_its_colours() -> None:
    styled = {css_class for rule in rules() for css_class in rule.split()} | {"differs", "resized"}
    used = {css_class for model in MODELS.values() for each in drawn(model).iter() for css_class in classes(each)}
    assert used - {"zoo-diagram", "part"} <= styled
    for name in re.findall(r"@([\w-]+)", " ".join([*rules().values(), *MARKS.values()])):
        assert f"var(--zoo-{name})" in css()
        assert all(f"--zoo-{name}:{palette()[name][dark]}" in colours(dark=bool(dark)) for dark in (0, 1))


def test_a_page_has_one_style_sheet_with_variables() -> None:
    root = drawn(BASE)
    assert root.findtext(f"{SVG}style") == css()
    assert {each.get("fill") for each in root.iter()} == {None}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["gpt-oss-20b", "deepseek-v4-flash-284b", "gemma4-e2b"])
def test_a_file_has_literal_colours_and_no_style_sheet(name: str, theme: str) -> None:
    """Every shape and text has the theme's colours in attributes that every program reads."""
    text = svg(spec(name), name, theme=theme, against=BASE, costs=True, callouts=(("attn", "One."),))
    root = ElementTree.fromstring(text)
    assert not any(word in text for word in ("<style", "class=", "var(", "--zoo", "@", "currentColor"))
    allowed = {pair[theme == "dark"] for pair in palette().values()} | {"none"}
    for element in root.iter():
        if element.tag.removeprefix(SVG) in ("rect", "path", "circle", "text"):
            assert element.get("fill") in allowed
            assert element.get("stroke", "none") in allowed
    assert "sans-serif" in root.get("font-family", "")
    assert root.find(f"{SVG}rect").get("fill") == palette()["paper"][theme == "dark"]


def test_attributes_say_what_the_style_sheet_says() -> None:
    assert attributes("rect", "norm", dark=False) == {"fill": "#fdf0cc", "stroke": "#b98200"}
    assert attributes("text", "ink differs", dark=True) == {"fill": "#ff6fae", "text-decoration": "underline"}
    assert attributes("rect", "norm differs", dark=False)["stroke-width"] == "2"
    assert attributes("g", "part", dark=False) == {}
