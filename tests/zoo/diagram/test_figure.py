"""Diagrams of models: well-formed, with everything in its place, whatever they are made of."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given

from tests.presets import over, representatives
from tests.test_properties import decoders
from tests.zoo.diagram.drawing import (
    BASE,
    CALLOUTS,
    LAYOUTS,
    MODELS,
    SVG,
    drawn,
    misplaced,
    rects,
    texts,
)
from zoo import Decoder, names, spec
from zoo.diagram import svg
from zoo.diagram.canvas import SMALL
from zoo.errors import UsageError

SHOWN = [*representatives(), *(f"tiny {name}" for name in representatives()), "extreme"]


@over(MODELS, SHOWN)
def test_it_is_well_formed_with_a_title_and_a_description(name: str) -> None:
    root = ElementTree.fromstring(svg(MODELS[name], f"{name} <&>", prefix="a-"))
    title, described = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title.text == f"{name} <&>"
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [title.get("id"), described.get("id")] == ["a-title", "a-desc"]
    for layer in dict.fromkeys(MODELS[name].layers):
        assert all(branch.block.describe() in described.text for _, branch in layer.branches())


@pytest.mark.parametrize("layout", LAYOUTS)
@over(MODELS, SHOWN)
def test_every_text_fits_its_box(name: str, layout: str) -> None:
    assert list(misplaced(drawn(MODELS[name], subtitle="below", callouts=CALLOUTS, **LAYOUTS[layout]))) == []


@pytest.mark.parametrize("layout", ["wide", "narrow"])
@over(names(), representatives())
def test_nothing_of_a_released_model_is_cut_short(name: str, layout: str) -> None:
    root = ElementTree.fromstring(svg(spec(name), name, layout=layout, costs=True))
    assert not [text for text in texts(root) if "…" in text]


@over(representatives())
def test_text_can_be_read_on_a_phone(name: str) -> None:
    """At 390 pixels with a margin of 16 on each side, the smallest text takes 11."""
    root = drawn(spec(name), layout="narrow", costs=True, callouts=CALLOUTS)
    assert float(root.get("width")) == 360
    smallest = min(float(text.get("font-size", SMALL)) for text in root.iter(f"{SVG}text"))
    assert smallest * (390 - 2 * 16) / 360 >= 11


def test_misplaced_text_is_detected() -> None:
    """`misplaced` finds each of its errors."""
    root = drawn(BASE)
    rope = next(text for text in root.iter(f"{SVG}text") if text.text.startswith("RoPE"))
    rope.text *= 20
    assert any("leaves its box" in found for found in misplaced(root))
    queries = next(text for text in root.iter(f"{SVG}text") if text.text == "queries")
    queries.set("y", str(float(queries.get("y")) + 10))
    assert any("is over a head" in found for found in misplaced(root))
    rope.set("y", "-90")
    assert any("is off the paper" in found for found in misplaced(root))
    rope.text, rope.attrib = "x", next(t for t in root.iter(f"{SVG}text") if t.text == "RMSNorm").attrib
    assert any("cover each other" in found for found in misplaced(root))
    rects(root, "attn")[0].set("height", "2000")
    found = list(misplaced(root))
    assert any("leaves its part" in each for each in found)
    rects(root, "norm")[0].set("width", "400")
    assert any("cross" in each for each in misplaced(root))


@given(decoders(), decoders())
def test_any_composition_is_drawn(model: Decoder, other: Decoder) -> None:
    for layout in ("wide", "narrow"):
        root = drawn(model, against=other, layout=layout)
        assert list(misplaced(root)) == []
    assert svg(model, "a title", against=other) == svg(model, "a title", against=other)


def test_a_title_with_control_characters_is_well_formed() -> None:
    title = ElementTree.fromstring(svg(BASE, "a\x0cb\n\udc80]]><script>")).find(f"{SVG}title").text
    assert title == "a b  ]]><script>"


def test_a_context_below_one_is_an_error() -> None:
    with pytest.raises(UsageError, match="context=0 is below 1"):
        svg(BASE, "a title", context=0)


def test_two_diagrams_in_one_page_share_no_id() -> None:
    one, other = (drawn(spec(names()[0]), prefix=prefix) for prefix in ("a", "b"))
    ids = [element.get("id") for root in (one, other) for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) == 4
    referred = [word for root in (one, other) for word in root.get("aria-labelledby").split()]
    assert referred == ids
    page = ElementTree.tostring(one, encoding="unicode")
    assert "url(" not in page
    assert "href" not in page
