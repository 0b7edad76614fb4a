"""Diagrams of models: everything is there, in order, and in its place."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
from hypothesis import given
from torch import nn

import zoo
from tests.presets import representatives, split
from tests.test_properties import decoders
from tests.zoo.diagram.drawing import (
    BASE,
    EXTREME,
    LAYOUTS,
    MODELS,
    SVG,
    classes,
    drawn,
    misplaced,
    parts,
    rects,
    small_boxes,
    texts,
)
from zoo import GLU, Decoder, names, spec, swap
from zoo.blocks import HyperBranch, Indexer, MoE, PostNorm
from zoo.catalog import ancestor
from zoo.diagram import callouts, fragments, svg
from zoo.diagram.canvas import FONT_SIZE
from zoo.diagram.layout import WIDE
from zoo.diagram.looks import FEED_FORWARDS, NONE, REACHES
from zoo.errors import UsageError
from zoo.registry import Block
from zoo.swaps.differences import structure_differences
from zoo.swaps.grammar import apply_swap

SHOWN = [*representatives(), *(f"tiny {name}" for name in representatives()), "extreme"]
LOOKS = (*REACHES, *FEED_FORWARDS, NONE)
CALLOUTS = (
    ("attn", "A sentence that is so long that it takes more than one line of the list, even where the page is wide."),
    ("rope", "Short."),
    ("rope", "Two about one part."),
    ("nowhere", "About a part that no model has."),
    (None, "About the whole."),
)


@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_it_is_well_formed_with_a_title_and_a_description(name: str) -> None:
    root = ElementTree.fromstring(svg(MODELS[name], f"{name} <&>", prefix="a-"))
    title, described = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title.text == f"{name} <&>"
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [title.get("id"), described.get("id")] == ["a-title", "a-desc"]
    for layer in dict.fromkeys(MODELS[name].layers):
        assert all(branch.block.describe() in described.text for _, branch in layer.branches())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_every_text_fits_its_box(name: str, layout: str) -> None:
    assert list(misplaced(drawn(MODELS[name], subtitle="below", callouts=CALLOUTS, **LAYOUTS[layout]))) == []


@pytest.mark.parametrize("layout", ["wide", "narrow"])
@pytest.mark.parametrize("name", split(names(), representatives()))
def test_nothing_of_a_released_model_is_cut_short(name: str, layout: str) -> None:
    root = ElementTree.fromstring(svg(spec(name), name, layout=layout, costs=True))
    assert not [text for text in texts(root) if "…" in text]


@pytest.mark.parametrize("name", representatives())
def test_text_can_be_read_on_a_phone(name: str) -> None:
    """At 390 pixels with a margin of 16 on each side, the smallest text takes 11."""
    root = drawn(spec(name), layout="narrow", costs=True, callouts=CALLOUTS)
    assert float(root.get("width")) == 360
    smallest = min(float(text.get("font-size", FONT_SIZE)) for text in root.iter(f"{SVG}text"))
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


# Layers across the depth.


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_the_strip_holds_every_layer_in_order(name: str) -> None:
    """Above what each layer's attention reaches, below its feed-forward."""
    model = spec(name)
    strip = parts(drawn(model))[1][1]
    found = [(box, name) for name in LOOKS for box in small_boxes(strip, name)]
    pitch = (WIDE.panel_end - WIDE.left) / len(model.layers)
    found.sort(key=lambda bar: (int(((bar[0].left + bar[0].right) / 2 - WIDE.left) / pitch), bar[0].top))
    shown = [(above, below) for (_, above), (_, below) in zip(found[::2], found[1::2], strict=True)]
    assert all(above.bottom <= below.top for (above, _), (below, _) in zip(found[::2], found[1::2], strict=True))
    assert len(shown) == len(model.layers)
    for (reach, ffn), layer in zip(shown, model.layers, strict=True):
        kept = layer.cache_spec()
        assert (reach == "reach-state") == bool(kept.state and not kept.per_token)
        assert (reach == "reach-entries") == bool(kept.entries)
        assert (reach in ("reach-window", "reach-chunk")) == bool(kept.reach.limit and not kept.entries)
        assert (reach == "none") == (layer.attn is None)
        chosen = any(isinstance(part, Indexer) for part in layer.walk()) and not kept.entries
        assert (reach == "reach-sparse") == chosen
        experts = layer.ffn is not None and any(isinstance(part, MoE) for part in layer.ffn.walk())
        assert ffn == ("none" if layer.ffn is None else "ffn-experts" if experts else "ffn-dense")


def test_a_strip_of_too_many_layers_is_drawn_as_runs() -> None:
    strip = parts(drawn(EXTREME))[1][1]
    assert len(small_boxes(strip, "reach-window")) == len(small_boxes(strip, "ffn-experts")) == 1


def test_positions_of_the_embedding_are_positions() -> None:
    """Layers without rotation have no position encoding only where the model has none."""
    assert not small_boxes(drawn(spec("gpt2")), "reach-nope")
    assert small_boxes(drawn(swap(BASE, zoo.RoPE, zoo.NoPE())), "reach-nope")


# A token's path.


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
@pytest.mark.parametrize("name", split(names(), representatives()))
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


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_a_block_is_blown_up_where_most_layers_use_it(name: str) -> None:
    """Once, beside the kind of layer with the most layers; the others say where."""
    model = spec(name)
    counts = Counter(model.layers)
    used: dict[tuple[str, Block], list[int]] = {}
    for position, (layer, number) in enumerate(counts.items()):
        for role, branch in layer.branches():
            used.setdefault((role, branch.block), [0] * len(counts))[position] = number
    rows = {part.key: part.svg for part in fragments(model, name)}
    for (role, _), numbers in used.items():
        main = numbers.index(max(numbers))
        for position, number in enumerate(numbers):
            if number:
                row = rows[f"layer {position}.{role}"]
                assert ("drawn below" in row) == (position < main)
                assert ("drawn above" in row) == (position > main)
                assert ('class="guide"' in row) == (position == main)


@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_the_figures_add_up_to_the_model(name: str) -> None:
    """The exact figures, which are in the tooltips."""
    model = MODELS[name]
    tips = [group.findtext(f"{SVG}title") or "" for group in drawn(model, context=777).iter(f"{SVG}g")]

    def total(unit: str) -> int:
        found = (re.search(rf"([\d,]+) {unit}", tip) for tip in tips)
        return sum(int(each[1].replace(",", "")) for each in found if each)

    assert total("parameters") == model.params()
    assert total("FLOPs") == model.flops(776, 1)
    caches = [layer.cache_spec() for layer in model.layers]
    assert total("bytes of cache a token") == 2 * sum(cache.elements() for cache in caches)
    assert total("bytes of entries a token") == sum(cache.entry_growth(2) for cache in caches)


def test_the_cache_is_said_fixed_and_per_token() -> None:
    """A window's share is fixed, a state's too; one figure says both."""
    assert "416 MiB fixed + 80 KiB per token" in texts(drawn(spec("gemma3-27b")))
    assert "128 KiB per token" in texts(drawn(spec("llama3.1-8b")))
    windows = swap(BASE, zoo.GQA, lambda attn: zoo.GQA(attn.heads, attn.kv_heads, attn.head_dim, attn.rope, window=16))
    assert "8 KiB fixed" in texts(drawn(windows))


@dataclass(frozen=True)
class _Mystery(Block):
    """A kind for which `inside` has no function."""

    role = "ffn"

    def build(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def params(self, dim: int) -> int:
        return 3 * dim

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return 6 * dim * new

    def describe(self) -> str:
        return "three times nothing, said at such length that it takes more than a single line of the block"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_kind_of_block_shows_its_description(layout: str) -> None:
    root = drawn(swap(BASE, GLU, _Mystery()), **LAYOUTS[layout])
    assert list(misplaced(root)) == []
    assert _Mystery().describe() in " ".join(texts(root))
    assert "_Mystery" in texts(root, "strong")


# Call-outs.


@pytest.mark.parametrize("layout", ["wide", "narrow"])
def test_callouts_are_numbered_in_the_figure_and_below_it(layout: str) -> None:
    root = drawn(spec("deepseek-v3"), callouts=CALLOUTS, heading="New", layout=layout)
    numbers = Counter(texts(root, "badge-text"))
    assert numbers == {"1": 2, "2": 2, "3": 2, "4": 1, "5": 1}  # 4 is about nothing that is drawn, 5 about no part
    assert "New" in texts(root, "strong")
    listed = " ".join(texts(parts(root)[-2][1]))
    assert all(sentence in listed for _, sentence in CALLOUTS[1:])
    main = next(part for part in fragments(spec("deepseek-v3"), "") if part.key == "layer 1.attn")
    assert "badge" not in main.svg
    rows = [part for _, part in parts(root) if "1" in texts(part, "badge-text")]
    assert [bool(rects(part, "attn")) for part in rows] == [True, False]  # the branch, the list


def test_callouts_stand_at_what_is_inside_a_block_or_at_the_block() -> None:
    """Of the layers that most are of; what is not drawn inside is said at the block."""
    about = ("attn.rope", "Inside."), ("attn.keys", "Not drawn inside."), ("ffn.router", "No router here.")
    rows = {key: ElementTree.fromstring(part) for key, part in parts_of(spec("gemma3-27b"), about).items()}
    badges = {key: [each for each in row.iter() if classes(each) == ["badge"]] for key, row in rows.items()}
    words = {key: [each.text for each in row.iter() if "badge-text" in classes(each)] for key, row in rows.items()}
    assert words["layer 0.attn"] == ["1", "2"]
    assert words["layer 0.ffn"] == ["3"]
    assert not words["layer 1.attn"]
    rope, block = (float(circle.get("cx")) for circle in badges["layer 0.attn"])
    assert rope > 300 > block


def parts_of(model: Decoder, about: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Key -> the text of each part of a drawing with call-outs."""
    keys = [part.key for part in fragments(model, "a title")]
    groups = re.findall(r"<g transform.*?(?=<g transform|</svg>)", svg(model, "a title", callouts=about), re.DOTALL)
    return dict(zip([*keys[:-1], "callouts", keys[-1]], groups, strict=True))


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_differences_from_the_ancestor_are_callouts(name: str) -> None:
    """Every sentence is listed, and nearly all have a place in the figure."""
    known = ancestor(name)
    if known is None:
        return
    found = structure_differences(spec(name), spec(known))
    root = drawn(spec(name), callouts=callouts(found))
    assert list(misplaced(root)) == []
    listed = " ".join(texts(parts(root)[-2][1]))
    assert all(each.sentence[1:] in listed for each in found)
    numbers = Counter(texts(root, "badge-text"))
    assert set(numbers) == {str(number) for number in range(1, len(found) + 1)}
    assert set(numbers.values()) <= {2}


def test_without_callouts_there_is_no_list() -> None:
    assert not texts(drawn(BASE), "badge-text")
    assert len(parts(drawn(BASE, callouts=CALLOUTS))) == len(parts(drawn(BASE))) + 1


# Fragments.


@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_a_drawing_is_its_fragments_one_below_the_other(name: str) -> None:
    model = MODELS[name]
    made = fragments(model, "a title")
    assert len({part.key for part in made}) == len(made)
    whole, y = svg(model, "a title"), 0.0
    for part in made:
        moved = part.svg.replace("<g", f'<g transform="translate(0 {y:g})"', 1)
        assert moved in whole
        y += part.height
    assert float(drawn(model).get("height")) == y


def test_a_branch_depends_on_its_own_block() -> None:
    """Swapping the feed-forward leaves the attention's part as it was, and the other way round."""
    experts = apply_swap(spec("llama3.1-8b"), "ffn=MoE(experts=8, k=2)")[0]
    latent = apply_swap(experts, "attn=MLA(kv_rank=512, q_rank=none, nope_dim=128, rope_dim=64, v_dim=128)")[0]
    models = (spec("llama3.1-8b"), experts, latent)
    models = (spec("llama3.1-8b"), experts, latent)
    before, other, third = ({part.key: part for part in fragments(model, "")} for model in models)
    assert before["layer 0.attn"] == other["layer 0.attn"] != third["layer 0.attn"]
    assert before["layer 0.ffn"] != other["layer 0.ffn"] == third["layer 0.ffn"]


@pytest.mark.parametrize("attention", ["GQA(kv_heads=1)", "GQA(bias=true, sinks=false)"])
@pytest.mark.parametrize("name", ["llama3.1-8b", "gpt-oss-20b", "gemma3-27b", "glm4.5-355b", "qwen3-next-80b-a3b"])
def test_two_swaps_are_put_together_from_their_parts(name: str, attention: str) -> None:
    """As a page does it: of each part the one that a swap has changed."""
    released = spec(name)
    experts = "MoE(experts=64)" if any(isinstance(part, MoE) for part in released.walk()) else "ffn=MoE(experts=8, k=2)"
    one, other = (apply_swap(released, swap)[0] for swap in (attention, experts))
    both = apply_swap(one, experts)[0]
    before, first, second, wanted = (
        {part.key: part.svg for part in fragments(model, "")} for model in (released, one, other, both)
    )
    assert list(before) == list(first) == list(second) == list(wanted)
    merged = {key: first[key] if first[key] != before[key] else second[key] for key in before}
    whole = ("title", "layers")
    assert {key: merged[key] for key in wanted if key not in whole} == {
        k: v for k, v in wanted.items() if k not in whole
    }
    assert merged != first
    assert merged != second
