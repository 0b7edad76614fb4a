"""The parts that a drawing is stacked from, drawn one by one."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from tests.presets import over, representatives
from tests.zoo.diagram.drawing import MODELS, drawn, part, parts, texts
from zoo import spec
from zoo.diagram import svg
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
from zoo.model.layer_pattern import labels
from zoo.swaps.grammar import apply_swap

SHOWN = [*representatives(), *(f"tiny {name}" for name in representatives()), "extreme"]
TOOLTIP = re.compile("<title>.*?</title>")


def without_tooltips(part: str) -> str:
    return TOOLTIP.sub("", part)


@pytest.mark.parametrize("layout", ["wide", "narrow"])
@over(MODELS, SHOWN)
def test_a_drawing_is_its_parts_one_below_the_other(name: str, layout: str) -> None:
    """Of each kind of layer in a model of that kind alone, where every block is drawn in full."""
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
    """DeepSeek's dense layers have the attention of its many others, and come before them."""
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


def test_a_branch_depends_on_its_own_block() -> None:
    """Swapping the feed-forward leaves the attention's part as it was, and the other way round."""
    experts = apply_swap(spec("llama3.1-8b"), "ffn=MoE(experts=8, k=2)")[0]
    latent = apply_swap(experts, "attn=MLA(kv_rank=512, q_rank=none, nope_dim=128, rope_dim=64, v_dim=128)")[0]
    made = [
        {role: branch_fragment(model, role, branch) for role, branch in model.layers[0].branches()}
        for model in (spec("llama3.1-8b"), experts, latent)
    ]
    assert made[0]["attn"] == made[1]["attn"] != made[2]["attn"]
    assert made[0]["ffn"] != made[1]["ffn"] == made[2]["ffn"]
