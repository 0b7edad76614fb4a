"""A token's path: norms, blocks and sums in order, blocks blown up once, costs that add up."""

from __future__ import annotations

import re
from collections import Counter

import pytest

import zoo
from tests.presets import over, representatives
from tests.zoo.diagram.drawing import BASE, MODELS, SHOWN, SVG, classes, drawn, parts, rects, texts
from zoo import Decoder, names, spec, swap
from zoo.blocks import HyperBranch, PostNorm
from zoo.registry import Block
from zoo.swaps.grammar import apply_swap


def branches(model: Decoder) -> list[str]:
    """Norms, blocks and sums in the order of the frames, from the spec."""
    met = []
    for layer in dict.fromkeys(model.layers):
        for role, branch in layer.branches():
            before = (getattr(branch, "pre", None) is not None) + isinstance(branch, HyperBranch)
            after = getattr(branch, "post", None) is not None
            met += ["norm"] * before + [role] + ["norm"] * after + ["plus"] + ["norm"] * isinstance(branch, PostNorm)
    return [*met, "norm"]  # the final one


@pytest.mark.parametrize("layout", ["wide", "narrow"])
@pytest.mark.parametrize("place", [None, "pre", "olmo", "sandwich", "post"])
@over(names(), representatives())
def test_norms_are_drawn_at_their_placement(name: str, place: str | None, layout: str) -> None:
    model = apply_swap(spec(name), f"norm={place}")[0] if place else spec(name)
    at = []
    for top, part in parts(drawn(model, layout=layout)):
        for element in part.iter():
            left = float(element.get("x") or 0)
            for css_class in {"norm", "attn", "ffn", "inputs", "plus"} & {*classes(element)}:
                if left < 300:  # a blow-up stands beside it
                    at.append((top + float(element.get("y") or element.get("cy")), css_class))
    assert [css_class for _, css_class in at] == branches(model)
    assert at == sorted(at, key=lambda place: place[0])


@over(names(), representatives())
def test_a_block_is_blown_up_where_most_layers_use_it(name: str) -> None:
    """It is drawn once, beside the kind with the most layers; the other kinds say where."""
    model = spec(name)
    counts = Counter(model.layers)
    used: dict[tuple[str, Block], list[int]] = {}
    for position, (layer, number) in enumerate(counts.items()):
        for role, branch in layer.branches():
            used.setdefault((role, branch.block), [0] * len(counts))[position] = number
    rows = (row for _, row in parts(drawn(model)) if rects(row, "attn", "ffn", "inputs"))
    places = ((position, role) for position, layer in enumerate(counts) for role, _ in layer.branches())
    by_place = dict(zip(places, rows, strict=True))
    for (role, _), numbers in used.items():
        main = numbers.index(max(numbers))
        for position, number in enumerate(numbers):
            if number:
                row = by_place[position, role]
                said = [text for text in texts(row) if text.startswith("drawn ")]
                assert said == ["drawn below"] * (position < main) + ["drawn above"] * (position > main)
                assert any("guide" in classes(each) for each in row.iter()) == (position == main)


@over(MODELS, SHOWN)
def test_the_figures_add_up_to_the_model(name: str) -> None:
    """Tooltips have the exact figures."""
    model = MODELS[name]
    tips = [group.findtext(f"{SVG}title") or "" for group in drawn(model, context=777).iter(f"{SVG}g")]

    def total(unit: str) -> int:
        found = (re.search(rf"([\d,]+) {unit}", tip) for tip in tips)
        return sum(int(each[1].replace(",", "")) for each in found if each)

    assert total("parameters") == model.params()
    assert total("FLOPs") == model.flops(776, 1)
    caches = [layer.cache_spec() for layer in model.layers]
    assert total("cache bytes per token") == 2 * sum(cache.elements() for cache in caches)
    assert total("entry bytes per token") == sum(cache.entry_growth(2) for cache in caches)


def test_the_cache_is_said_fixed_and_per_token() -> None:
    """The bytes of windows and states are fixed."""
    assert "416 MiB fixed + 80 KiB per token" in texts(drawn(spec("gemma3-27b")))
    assert "128 KiB per token" in texts(drawn(spec("llama3.1-8b")))
    windows = swap(BASE, zoo.GQA, lambda attn: zoo.GQA(attn.heads, attn.kv_heads, attn.head_dim, attn.rope, window=16))
    assert "8 KiB fixed" in texts(drawn(windows))
