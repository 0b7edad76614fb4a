"""The text on blocks: its code prints what it shows, and who uses a block is what the specs say."""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import zoo
from benchmarks.analytic.models import Model, one
from benchmarks.gallery import blocks, drawings
from benchmarks.gallery.data import data
from benchmarks.gallery.overview import overview
from zoo.blocks.gqa import ALIASES
from zoo.blocks.layer import PLACEMENTS
from zoo.costs import CacheSpec, linear_flops
from zoo.diagram import svg
from zoo.registry import Block, Mixer

CODE = re.findall(r"```pycon\n(.*?)```", blocks.markdown(), re.DOTALL)
SPACE = "{http://www.w3.org/2000/svg}"


def test_the_code_prints_what_is_shown() -> None:
    """From top to bottom, as a reader would paste it."""
    assert len(CODE) > 10
    grad = torch.is_grad_enabled()
    scope: dict[str, object] = {}
    told: list[str] = []
    try:
        for i, text in enumerate(CODE):
            test = doctest.DocTestParser().get_doctest(text, scope, f"example {i + 1}", "docs/blocks.md", 0)
            runner = doctest.DocTestRunner(verbose=False)
            runner.run(test, out=told.append, clear_globs=False)
            scope = test.globs
    finally:
        torch.set_grad_enabled(grad)
    assert not told, "".join(told)


def test_every_kind_of_block_is_in_the_text() -> None:
    """A new block in the registry has to be told of."""
    text = blocks.SOURCE.read_text(encoding="utf-8")
    kinds = {name for name, kind in zoo.Spec.kinds.items() if kind.role}
    for word in {*kinds, *ALIASES, *PLACEMENTS}:
        assert re.search(rf"\b{word}\b", text), word


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("MHA", "olmo2 (olmo2-1b, olmo2-7b, olmo2-13b)"),
        ("MLA", "deepseek-v3"),
        ("SWA", "gemma3, gpt-oss"),
        ("sandwich", "gemma3"),
        ("post", "none of these"),
        ("NoPE", "smollm3"),
    ],
)
def test_who_uses_a_block(word: str, told: str) -> None:
    assert blocks.used(word) == f"*Who uses {word}:* {told}."


def test_the_table_of_costs_holds_every_layer() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in blocks.costs().splitlines()[2:]]
    layers: dict[str, int] = {}
    for model, number, *_ in rows:
        layers[model] = layers.get(model, 0) + int(number)
    assert layers == {name: len(zoo.spec(name).layers) for name in layers}
    assert len(layers) == len(zoo.architectures.families())


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_drawing_stays_in_its_frame_and_says_what_it_shows(name: str) -> None:
    root = ElementTree.fromstring(drawings.draw(name, "What it shows.", "here-"))
    assert [root.findtext(f"{SPACE}{tag}") for tag in ("title", "desc")][1] == "What it shows."
    assert {element.get("id") for element in root.iter() if element.get("id")} == {"here-title", "here-desc"}
    inside(root)


def inside(root: ElementTree.Element) -> None:
    """Every box and the beginning of every text is in the picture."""
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter():
        if element.tag in (f"{SPACE}rect", f"{SPACE}text"):
            x, y, wide, tall = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + wide <= width, ElementTree.tostring(element)
            assert 0 <= y <= y + tall <= height, ElementTree.tostring(element)


def test_every_drawing_is_named_in_the_text() -> None:
    assert {f"{name}.svg" for name in drawings.DRAWINGS} == set(blocks.pictures())


def test_the_overview_has_a_box_for_each_layer_of_each_model() -> None:
    models = [one(name) for name in zoo.names()]
    root = ElementTree.fromstring(overview(models))
    inside(root)
    looks = [element.get("class", "") for element in root.iter(f"{SPACE}rect")]
    key = 3
    assert sum(look.startswith("kind-") for look in looks) == key + sum(len(model.spec.layers) for model in models)
    windowed = sum(bool(layer.cache_spec().window) for model in models for layer in model.spec.layers)
    assert looks.count("kind-window-0") == 1 + windowed
    words = [element.text for element in root.iter(f"{SPACE}text")]
    assert {model.name for model in models} <= set(words)


@dataclass(frozen=True)
class _Mean(Mixer):
    """A mixer that has no heads, no positions and keeps one number."""

    def build(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def params(self, dim: int) -> int:
        return dim

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return 0

    def cache_spec(self) -> CacheSpec:
        return CacheSpec((("sum", (1, 1)),))


@dataclass(frozen=True)
class _Plain(Block):
    """A feed-forward without an activation that is a spec, or a width."""

    role = "ffn"

    def build(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def params(self, dim: int) -> int:
        return dim * dim

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return linear_flops(new, dim, dim)


UNSEEN = {
    "_Mean": lambda spec: zoo.swap(spec, zoo.GQA, _Mean()),
    "_Plain": lambda spec: zoo.swap(spec, zoo.GLU, _Plain()),
    "_Mean and _Plain": lambda spec: zoo.swap(zoo.swap(spec, zoo.GQA, _Mean()), zoo.GLU, _Plain()),
    "NoPE": lambda spec: zoo.swap(spec, zoo.RoPE, zoo.NoPE()),
}


@pytest.mark.parametrize("change", UNSEEN)
def test_blocks_that_nobody_has_seen_are_on_the_page(change: str) -> None:
    """They are told by what every block must have: drawn, compared, swapped as far as a swap applies, and counted."""
    spec = UNSEEN[change](zoo.spec("qwen3-0.6b"))
    models = [Model("unseen", spec), one("qwen3-0.6b")]
    root = ElementTree.fromstring(overview(models))
    inside(root)
    words = [element.text or "" for element in root.iter(f"{SPACE}text")]
    assert all(any(word in text for text in words) for word in change.split(" and ") if word != "NoPE")
    assert not any(text.endswith(" ") or text == "RoPE " for text in words)
    told = data(models, {}, None)
    assert len(told["models"]) == 2
    for model in models:
        inside(ElementTree.fromstring(svg(model.spec, model.name, against=models[0].spec)))


def test_the_section_of_the_page_is_one_level_lower() -> None:
    html = blocks.html()
    assert "<h1" not in html
    assert html.count("<h2") == 1
    assert html.count("<svg") == len(drawings.DRAWINGS)
    assert "<style" not in html
    ids = re.findall(r'id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
