"""The tutorial on blocks: its code prints the output shown, and the users of a block follow from the specs."""

from __future__ import annotations

import doctest
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import zoo
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.gallery import blocks_page
from benchmarks.gallery.files import data
from benchmarks.gallery.overview import overview
from tests.zoo.diagram.drawing import SVG, texts
from zoo.blocks.layer import PLACEMENTS
from zoo.catalog import title
from zoo.costs import CacheSpec
from zoo.diagram import svg
from zoo.registry import Block, Mixer

CODE = re.findall(r"```pycon\n(.*?)```", blocks_page.markdown(), re.DOTALL)


def test_code_prints_the_output_shown() -> None:
    """All examples in one namespace, from top to bottom."""
    assert len(CODE) > 10
    failures: list[str] = []
    examples = doctest.DocTestParser().get_doctest("\n".join(CODE), {}, "blocks", "docs/blocks.md", 0)
    with torch.enable_grad():  # at its end gradients are as before, whatever the examples set
        doctest.DocTestRunner(verbose=False).run(examples, out=failures.append)
    assert not failures, "".join(failures)


def test_text_mentions_every_kind_of_block() -> None:
    """This includes a kind that is new in the zoo's registry. A user's own block needs no text."""
    text = blocks_page.SOURCE.read_text(encoding="utf-8")
    kinds = {name for name, kind in zoo.Spec.kinds.items() if kind.role and kind.__module__.startswith("zoo.")}
    for word in {*kinds, *zoo.GQA.aliases, *PLACEMENTS}:
        assert re.search(rf"\b{word}\b", text), word


@pytest.mark.usefixtures("_eight_families")
@pytest.mark.parametrize(
    ("word", "users"),
    [
        ("MHA", "olmo2 (olmo2-1b, olmo2-7b, olmo2-13b)"),
        ("MLA", "deepseek-v3"),
        ("SWA", "gemma3, gpt-oss"),
        ("sandwich", "gemma3"),
        ("post", "none of these"),
        ("NoPE", "smollm3"),
    ],
)
def test_users_of_a_block(word: str, users: str) -> None:
    assert blocks_page.users(word) == users


def test_cost_table_counts_every_layer_with_a_mixer() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in blocks_page.costs().splitlines()[2:]]
    layers: dict[str, int] = {}
    for model, number, *_ in rows:
        layers[model] = layers.get(model, 0) + int(number)
    assert layers == {name: sum(layer.mixer is not None for layer in zoo.spec(name).layers) for name in layers}
    assert len(layers) == len(zoo.architectures.families())


@pytest.mark.parametrize("name", blocks_page.DRAWINGS)
def test_drawing_fits_its_frame_and_has_a_description(name: str) -> None:
    root = ElementTree.fromstring(blocks_page.draw(name, "A description.", "here-"))
    assert [root.findtext(f"{SVG}{tag}") for tag in ("title", "desc")][1] == "A description."
    assert {element.get("id") for element in root.iter() if element.get("id")} == {"here-title", "here-desc"}
    assert_inside(root)


def assert_inside(root: ElementTree.Element) -> None:
    """Every box, and the start of every text, is inside the picture."""
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter():
        if element.tag in (f"{SVG}rect", f"{SVG}text"):
            x, y, w, h = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width, ElementTree.tostring(element)
            assert 0 <= y <= y + h <= height, ElementTree.tostring(element)


def test_text_names_every_drawing() -> None:
    assert {f"{name}.svg" for name in blocks_page.DRAWINGS} == set(blocks_page.pictures())


def test_overview_has_a_box_for_each_layer_of_each_model() -> None:
    models = [one(name) for name in zoo.names()]
    root = ElementTree.fromstring(overview(models))
    assert_inside(root)
    # The bars of strips: above what attention reaches, below the feed-forward. The legend is small rectangles.
    bars = [(path.get("class"), path.get("d", "").count("M")) for path in root.iter(f"{SVG}path")]
    looks = Counter({look: sum(n for css_class, n in bars if css_class == look) for look in dict(bars)})
    layers = [layer for model in models for layer in model.spec.layers]
    reaches = {look: n for look, n in looks.items() if str(look).startswith("reach-")}
    ffns = {look: n for look, n in looks.items() if str(look).startswith("ffn-")}
    assert sum(reaches.values()) == sum(layer.attn is not None for layer in layers)
    assert sum(ffns.values()) == sum(layer.ffn is not None for layer in layers)
    assert looks["none"] == 2 * len(layers) - sum(reaches.values()) - sum(ffns.values())
    windowed = [kept for kept in (layer.cache_spec() for layer in layers) if kept.reach.limit]
    assert looks["reach-entries"] == sum(bool(kept.entries) for kept in windowed)
    assert looks["reach-window"] + looks["reach-chunk"] == sum(not kept.entries for kept in windowed)
    with_state = sum(bool(kept.state and not kept.per_token) for kept in (layer.cache_spec() for layer in layers))
    assert looks["reach-state"] == with_state
    assert looks["ffn-experts"] == sum(any(isinstance(p, zoo.MoE) for p in layer.walk()) for layer in layers)
    shown = [text.rstrip("…") for text in texts(root)]  # a long name is cut short
    assert all(any(text and title(model.name).startswith(text) for text in shown) for model in models)


class _Unbuilt:
    """The members that a block needs beside its description."""

    def build(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def params(self, dim: int) -> int:
        return dim

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return dim * new


@dataclass(frozen=True)
class _Mean(_Unbuilt, Mixer):
    """A mixer without heads and positions that caches one element per token."""

    def resized(self, to: Any) -> dict[str, Any]:
        return {}

    def cache_spec(self) -> CacheSpec:
        return CacheSpec((("sum", (1, 1)),))

    def describe(self) -> str:
        return "the mean"


@dataclass(frozen=True)
class _Plain(_Unbuilt, Block):
    """A feed-forward without an activation spec and without a hidden width."""

    role = "ffn"

    def describe(self) -> str:
        return "one matrix"


@pytest.mark.parametrize("swapped", [{zoo.GQA: _Mean(), zoo.GLU: _Plain()}, {zoo.RoPE: zoo.NoPE()}], ids=str)
def test_page_shows_unknown_kinds_of_block(swapped: dict[type[zoo.Spec], zoo.Spec]) -> None:
    """Drawings, comparisons, swaps and costs rely only on what every block must have."""
    spec = zoo.spec("qwen3-0.6b")
    for kind, new in swapped.items():
        spec = zoo.swap(spec, kind, new)
    models = [NamedSpec("unknown", spec), one("qwen3-0.6b")]
    root = ElementTree.fromstring(overview(models))
    assert_inside(root)
    names = [type(new).__name__ for new in swapped.values() if new != zoo.NoPE()]
    assert all(any(name in text for text in texts(root)) for name in names)
    assert not any(text.endswith(" ") or text == "RoPE " for text in texts(root))
    assert len(data(models, {})["models"]) == 2
    for model in models:
        assert_inside(ElementTree.fromstring(svg(model.spec, model.name, against=models[0].spec)))


def test_section_of_the_page_has_lower_headings_and_inline_drawings() -> None:
    html = blocks_page.html(frozenset({"qwen3"}))
    assert '<a href="#qwen3">qwen3</a> (' in html
    assert "</a>.5" not in html, "a size such as qwen3.5-27b is no link to another family"
    assert "<h1" not in html
    assert html.count("<h2") == 1
    assert html.count("<svg") == len(blocks_page.DRAWINGS)
    assert "<style" not in html
    ids = re.findall(r'id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
