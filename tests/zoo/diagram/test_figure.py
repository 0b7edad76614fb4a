"""Diagrams of any model are well-formed, with everything in its place; they are stacks of parts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
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
    SHOWN,
    SVG,
    classes,
    drawn,
    misplaced,
    part,
    parts,
    rects,
    texts,
)
from zoo import Decoder, names, spec
from zoo.catalog import counterpart
from zoo.diagram import callouts, svg
from zoo.diagram.canvas import SMALL
from zoo.diagram.figure import (
    STRIP,
    STRIP_ABOVE,
    STRIP_BELOW,
    after_layers,
    before_layers,
    branch_fragment,
    folded,
    fragments,
)
from zoo.diagram.looks import look
from zoo.errors import UsageError
from zoo.model.layer_pattern import labels
from zoo.swaps.differences import structure_differences


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
    roots = [drawn(spec(names()[0]), prefix=prefix) for prefix in ("a", "b")]
    ids = [element.get("id") for root in roots for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) == 4
    assert [word for root in roots for word in root.get("aria-labelledby").split()] == ids
    page = ElementTree.tostring(roots[0], encoding="unicode")
    assert "url(" not in page
    assert "href" not in page


# Numbered call-outs, in the figure and below it.


@pytest.mark.parametrize("layout", ["wide", "narrow"])
def test_callouts_are_numbered_in_the_figure_and_below_it(layout: str) -> None:
    root = drawn(spec("deepseek-v3"), callouts=CALLOUTS, heading="New", layout=layout)
    numbers = Counter(texts(root, "badge-text"))
    assert numbers == {"1": 2, "2": 2, "3": 2, "4": 1, "5": 1}  # 4 is about nothing that is drawn, 5 about no part
    assert "New" in texts(root, "strong")
    listed = " ".join(texts(parts(root)[-2][1]))
    assert all(sentence in listed for _, sentence in CALLOUTS[1:])
    plain = drawn(spec("deepseek-v3"), layout=layout)
    assert not texts(plain, "badge-text")
    assert len(parts(root)) == len(parts(plain)) + 1  # the list
    rows = [part for _, part in parts(root) if "1" in texts(part, "badge-text")]
    assert [bool(rects(part, "attn")) for part in rows] == [True, False]  # the branch, the list


def test_callouts_stand_at_what_is_inside_a_block_or_at_the_block() -> None:
    """Numbers stand in the most frequent kind of layer, at the block if the part inside it is not drawn."""
    about = ("attn.rope", "Inside."), ("attn.keys", "Not drawn inside."), ("ffn.router", "No router here.")
    rows = [row for _, row in parts(drawn(spec("gemma3-27b"), callouts=about))]
    (first, second), (ffn, other_ffn) = ([row for row in rows if rects(row, role)] for role in ("attn", "ffn"))
    assert [texts(row, "badge-text") for row in (first, ffn, second, other_ffn)] == [["1", "2"], ["3"], [], []]
    rope, block = (float(each.get("cx")) for each in first.iter() if classes(each) == ["badge"])
    assert rope > 300 > block


@over(names(), representatives())
def test_differences_from_the_ancestor_are_callouts(name: str) -> None:
    """Every sentence is listed, and no number stands in the figure twice."""
    known = counterpart(name)
    if known is None:
        return
    found = structure_differences(spec(name), spec(known))
    root = drawn(spec(name), callouts=callouts(found, spec(name)))
    assert list(misplaced(root)) == []
    listed = " ".join(texts(parts(root)[-2][1]))
    assert all(each.sentence[1:] in listed for each in found)
    numbers = Counter(texts(root, "badge-text"))
    assert set(numbers) == {str(number) for number in range(1, len(found) + 1)}
    assert set(numbers.values()) <= {2}


@pytest.mark.parametrize("layout", ["wide", "narrow"])
@over(names(), representatives())
def test_a_callout_about_some_layers_stands_in_one_of_them(name: str, layout: str) -> None:
    model, known = spec(name), counterpart(name)
    if known is None:
        return
    about = callouts(structure_differences(model, spec(known)), model)
    kinds, position, homes = list(dict.fromkeys(model.layers)), -1, dict[int, int]()
    for _, row in parts(drawn(model, callouts=about, layout=layout))[:-2]:
        position += any(re.fullmatch(r"[\d,]+ × layer", text) for text in texts(row, "strong"))
        homes |= {int(number): position for number in texts(row, "badge-text")}
    for number, (place, sentence, layers) in enumerate(about, 1):
        if (place or "").split(".")[0] in ("attn", "ffn", "norm"):
            assert kinds[homes[number]] in (layers or kinds), sentence


# Parts that a drawing is stacked from, drawn one by one.

TOOLTIP = re.compile("<title>.*?</title>")


def without_tooltips(part: str) -> str:
    return TOOLTIP.sub("", part)


@pytest.mark.parametrize("layout", ["wide", "narrow"])
@over(MODELS, SHOWN)
def test_a_drawing_is_its_parts_one_below_the_other(name: str, layout: str) -> None:
    """A model of one kind of layer draws every block in full."""
    model = MODELS[name]
    for layer in dict.fromkeys(each for each in model.layers if not each.takes()):
        alone = replace(model, layers=(layer,) * 3)
        made = partial(part, alone, layout=layout)
        branches = [branch_fragment(alone, role, branch, layout=layout) for role, branch in layer.branches()]
        frame = [made("top", 3, "", look(layer, alone)), *branches, made("bottom", layer.output_scale, 1)]
        before, after = (fragments(alone, draw, layout) for draw in (before_layers, after_layers))
        stack = [*before, *frame, *after]
        whole = svg(alone, "a title", layout=layout)
        groups = re.findall(r"<g transform.*?(?=<g transform|</svg>)", whole, re.DOTALL)[1:-1]  # the title, the notes
        moved = [re.sub(r'<g transform="[^"]*">', "<g>", without_tooltips(group), count=1) for group in groups[1:]]
        assert moved == [without_tooltips(each.svg) for each in stack]
        starts = [y for y, _ in parts(drawn(alone, layout=layout))][2:]
        assert [each.height for each in stack] == [b - a for a, b in pairwise(starts)]


@pytest.mark.parametrize("name", ["gemma3-27b", "deepseek-v3-671b", "nemotron3-nano-30b-a3b"])
def test_the_pattern_stands_below_the_strip_of_layers(name: str) -> None:
    model = spec(name)
    names = dict(zip(dict.fromkeys(model.layers), labels(model.layers), strict=True))
    looks = [look(layer, model) for layer in names]
    pattern = part(model, "pattern", looks, folded([names[layer] for layer in model.layers]))
    (start, strip), (end, _) = parts(drawn(model))[1:3]
    assert texts(strip) == [each.text for each in ElementTree.fromstring(pattern.svg).iter("text")]
    assert end - start == STRIP_ABOVE + STRIP + STRIP_BELOW + pattern.height


def test_a_block_that_is_drawn_elsewhere() -> None:
    """DeepSeek's dense layers come first, with the attention of the more frequent sparse layers."""
    model = spec("deepseek-v3")
    dense, sparse = dict.fromkeys(model.layers)
    assert dense.attn == sparse.attn
    whole = without_tooltips(svg(model, "a title"))
    branches = {shown: branch_fragment(model, "attn", dense.attn, shown) for shown in ("here", "above", "below")}
    inside = {shown: without_tooltips(branch.svg).removeprefix("<g>") for shown, branch in branches.items()}
    assert [shown for shown, text in inside.items() if text in whole] == ["here", "below"]
    assert "drawn below" in inside["below"]
    assert inside["above"] == inside["below"].replace("drawn below", "drawn above")


def test_tooltips_are_of_one_layer() -> None:
    model = spec("llama3.1-8b")
    attention = model.layers[0].attn
    params = attention.block.params(model.dim)
    assert f"attention: {params:,} parameters" in branch_fragment(model, "attn", attention).svg
    assert "in 1 layer</title>" in branch_fragment(model, "attn", attention).svg
    assert f"attention: {32 * params:,} parameters" in svg(model, "a title")
    assert "in 32 layers</title>" in svg(model, "a title")
