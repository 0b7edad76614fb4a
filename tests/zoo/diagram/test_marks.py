"""Differences from another model are marked: structure strongly, sizes weakly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import zoo
from tests.presets import over, representatives
from tests.zoo.diagram.drawing import BASE, SVG, classes, drawn, texts
from zoo import GLU, GQA, Decoder, MoE, NoPE, RMSNorm, RoPE, SoftmaxTopK, names, spec, swap
from zoo.diagram import marked_elements
from zoo.swaps.grammar import apply_swap


def marked(model: Decoder, against: Decoder, css_class: str = "differs") -> set[str]:
    """The marked texts, and the classes of the other marked elements."""
    found = [element for element in drawn(model, against=against).iter() if css_class in classes(element)]
    return {element.text or "" if element.tag == f"{SVG}text" else classes(element)[0] for element in found}


@over(names(), representatives())
def test_a_model_does_not_differ_from_itself(name: str) -> None:
    for layout in ("wide", "narrow"):
        root = drawn(spec(name), against=spec(name), layout=layout)
        assert not [each for each in root.iter() if {"differs", "resized"} & {*classes(each)}]


def changed(kind: type, **values: Any) -> Decoder:
    return swap(BASE, kind, lambda part: replace(part, **values))


STRUCTURE: dict[str, tuple[Decoder, set[str]]] = {
    "one KV head": (changed(GQA, kv_heads=1), {"MQA", "8 heads on one KV head"}),
    "a window": (changed(GQA, window=7), {"unseen", "window 7"}),
    "a norm in attention": (changed(GQA, qk_norm=RMSNorm(1e-6)), {"chip-norm", "QK-norm per head"}),
    "sinks": (changed(GQA, sinks=True), {"sinks"}),
    "biases": (changed(GQA, bias=True), {"chip", "biases"}),
    "a gate": (changed(GQA, gate="head"), {"chip", "output gate by head"}),
    "no position": (swap(BASE, RoPE, NoPE()), {"chip-nope", "NoPE"}),
    "what is not drawn": (swap(BASE, GQA, lambda attn: replace(attn, qk_norm_over="projection")), {"attn"}),
    "an activation": (changed(GLU, act=zoo.GeGLU()), {"GeGLU", "chip", "GELU(gate) × up"}),
    "another placement": (apply_swap(BASE, "norm=olmo")[0], {"norm"}),
    "another norm": (replace(BASE, norm=zoo.LayerNorm(1e-5)), {"norm"}),
    "a tied head": (replace(BASE, tied=True), {"table", "tied: the embedding's matrix"}),
    "a scale": (replace(BASE, embed_scale=2.0), {"table", "1,000 × 64, × 2"}),
}
SIZES: dict[str, tuple[Decoder, set[str]]] = {
    "heads": (changed(GQA, heads=4), {"4 heads on 2 KV heads", "inner", "output 64 → 64"}),
    "a base": (changed(RoPE, theta=1e6), {"chip-rope", "RoPE 1M"}),
    "a width": (changed(GLU, hidden=128), {"64 → 128 → 64"}),
    "depth": (replace(BASE, layers=BASE.layers[:3]), {"3"}),
    "a vocabulary": (replace(BASE, vocab=10), {"table", "10 × 64", "64 × 10"}),
    "a context": (replace(BASE, context=8192), {"8k"}),
    "a norm's fields": (replace(BASE, norm=RMSNorm(1e-5)), {"RMSNorm"}),
    "how a norm multiplies": (replace(BASE, norm=RMSNorm(1e-6, unit_offset=True)), {"RMSNorm"}),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_structure_is_marked_strongly(case: str) -> None:
    model, expected = STRUCTURE[case]
    assert marked(model, BASE) == expected
    assert "Red: absent" in " ".join(texts(drawn(model, against=BASE)))


@pytest.mark.parametrize("case", SIZES)
def test_sizes_are_marked_weakly(case: str) -> None:
    model, expected = SIZES[case]
    assert marked(model, BASE) == set()
    assert marked(model, BASE, "resized") == expected


def test_experts_are_marked() -> None:
    mixed = swap(BASE, GLU, lambda ffn: MoE(8, ffn, SoftmaxTopK(2)))
    assert {"MoE", "2 of 8 experts active", "softmax top-2 router"} <= marked(mixed, BASE)
    assert "64 → 96 → 64" in marked(BASE, mixed)


def test_a_pair_of_one_structure_has_no_strong_mark() -> None:
    """Two sizes of a family differ in numbers alone."""
    assert marked(spec("llama3.1-70b"), spec("llama3.1-8b")) == set()
    assert marked(spec("llama3.1-70b"), spec("llama3.1-8b"), "resized")


@pytest.mark.parametrize("layout", ["wide", "narrow"])
def test_marks_of_many_comparisons_are_those_of_each(layout: str) -> None:
    others = [spec(name) for name in ("gpt2-small", "deepseek-v3-671b", "gpt-oss-20b", "nemotron3-nano-30b-a3b")]
    for model in others:
        plain = drawn(model, layout=layout)
        elements = [element for element in plain.iter() if element is not plain and element.tag != f"{SVG}style"]
        found = marked_elements(model, "a title", others, layout=layout)
        for other, indices in zip(others, found, strict=True):
            compared = drawn(model, against=other, layout=layout)
            both = [element for element in compared.iter() if element is not compared and element.tag != f"{SVG}style"]
            for mark, listed in zip(("differs", "resized"), indices, strict=True):
                assert [i for i, element in enumerate(both) if mark in classes(element)] == listed
                assert [elements[i].text for i in listed] == [both[i].text for i in listed]
        assert found[others.index(model)] == ([], [])
