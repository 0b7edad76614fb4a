"""Sentences state every difference between two structures, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

import zoo
from tests.presets import over, representatives
from zoo.swaps.differences import structure, structure_differences
from zoo.swaps.grammar import apply_swaps


def sentences(name: str, other: str | zoo.Decoder) -> list[str]:
    theirs = zoo.spec(other) if isinstance(other, str) else other
    return [found.sentence for found in structure_differences(zoo.spec(name), theirs)]


@over(zoo.names())
def test_a_model_does_not_differ_from_itself_nor_from_its_toy_form_in_kind(name: str) -> None:
    spec = zoo.spec(name)
    assert structure_differences(spec, spec) == []
    tiny = structure(zoo.spec(name, tiny=True))
    assert structure(spec).keys() == tiny.keys()


def test_what_one_model_has_the_other_has_not() -> None:
    """Differences exist in both directions, unless a model only lacks a part that its blocks have no field for."""
    for a, b in combinations(map(zoo.spec, representatives()), 2):
        there, back = structure_differences(a, b), structure_differences(b, a)
        assert there or back or structure(a).keys() == structure(b).keys()
        assert all(found.sentence for found in there + back)
        assert {found.part for found in there} <= {"attn", "ffn", "norm", "layers", "embedding", "head"}


EXAMPLES = {
    ("olmo2-7b", "llama3-8b"): [
        "norms after each block instead of before each block",
        "MHA instead of GQA",
        "QK-norm per projection",
    ],
    ("gemma3-27b", "gemma2-27b"): [
        "5 of 6 layers see the last 1,024 tokens instead of 1 of 2 layers the last 4,096 tokens",
        "linear scaling of RoPE in 1 of 6 layers",
        "QK-norm per head",
        "no score cap",
        "no logit cap",
    ],
    ("qwen3-next-80b-a3b", "qwen3-30b-a3b"): [
        "3 of 4 layers use Gated DeltaNet (a state of fixed size)",
        "RoPE on 0.25 of the width instead of RoPE",
        "output gate by element",
        "shared expert",
    ],
    ("llama3-8b", "gpt2-small"): [
        "RMSNorm instead of LayerNorm",
        "GQA instead of MHA",
        "RoPE instead of learned positions",
        "SwiGLU instead of MLP with GELU",
        "no biases",
        "no tied head",
    ],
    ("smollm3-3b", "llama3-8b"): ["1 of 4 layers has no position encoding (NoPE)", "tied head"],
    ("kimi-k2-1t", "deepseek-v3-671b"): ["sigmoid top-k router instead of sigmoid top-k router in 4 of 8 groups"],
    ("llama3-8b", "smollm3-3b"): ["no layers that have no position encoding (NoPE)", "no tied head"],
    ("mistral-small-4-119b", "deepseek-v3-671b"): [
        "queries x(1 + 0.1 ln(1 + position/8,192))",
        "no layers that have a dense feed-forward",
        "softmax top-k router instead of sigmoid top-k router in 4 of 8 groups",
    ],
}


@pytest.mark.parametrize(("name", "other"), EXAMPLES)
def test_sentences(name: str, other: str) -> None:
    assert sentences(name, other) == EXAMPLES[name, other]


SAID = {  # a sentence that is there, and the beginnings of others that are not
    ("nemotron3-nano-30b-a3b", "llama3-8b"): (
        "23 of 52 layers have Mamba-2 alone, 23 of 52 layers have a feed-forward alone, "
        "6 of 52 layers have attention alone instead of attention and a feed-forward",
        "29 of 52",
    ),
    ("gemma4-e2b", "llama3-8b"): ("norms before and after each block instead of before each block", "norms after"),
    ("gpt2-small", "smollm3-3b"): (
        "learned positions instead of 3 of 4 layers RoPE or 1 of 4 layers no position encoding (NoPE)",
        "no position",
    ),
    ("deepseek-v4-pro-1.6t", "deepseek-v3.2-671b"): ("sinks", "no layers that see"),
    ("gemma4-e2b", "gemma3-27b"): ("keys and values of an earlier layer in 20 of 35 layers", "no RoPE"),
    # Gemma 4 26B's feed-forward of two branches normalises its input itself: no norm is missing before it.
    ("gemma4-26b-a4b", "gemma3-27b"): ("layer outputs scaled by a learned scalar", "norms", "no norms"),
    # DeepSeek-V3 has no QK-norm and no sinks to leave out: MLA has no such fields.
    ("deepseek-v3-671b", "gpt-oss-120b"): ("MLA instead of GQA", "no sinks", "no QK-norm"),
    ("kimi-k2-1t", "mixtral-8x7b"): (
        "sigmoid top-k router instead of softmax top-k router",
        "sigmoid top-k router in ",
    ),
}


@pytest.mark.parametrize(("name", "other"), SAID)
def test_a_sentence_is_true(name: str, other: str) -> None:
    said, *wrong = SAID[name, other]
    found = sentences(name, other)
    assert said in found
    assert not [sentence for sentence in found if sentence.startswith(tuple(wrong))]


def test_norms_that_differ_within_a_layer_are_told_apart() -> None:
    spec = zoo.spec("llama3.2-1b")
    mixed, _ = apply_swaps(spec, ["norm=sandwich"])
    layer = replace(spec.layers[0], ffn=mixed.layers[0].ffn)
    found = structure_differences(replace(spec, layers=(layer,) * len(spec.layers)), spec)
    assert [each.sentence for each in found] == [
        "norms before attention and before and after the feed-forward instead of before each block"
    ]


SWAPS = {
    "GQA(window=64)": "every layer sees the last 64 tokens instead of all tokens",
    "rope=NoPE": "no position encoding (NoPE) instead of RoPE",
    "act=GeGLU": "GeGLU instead of SwiGLU",
    "norm=sandwich": "norms before and after each block instead of after each block",
}


@pytest.mark.parametrize("text", SWAPS)
def test_a_swap_is_said(text: str) -> None:
    spec = zoo.spec("olmo2-1b")
    swapped, _ = apply_swaps(spec, [text])
    assert SWAPS[text] in [found.sentence for found in structure_differences(swapped, spec)]


def test_layers_that_repeat_are_counted_by_period() -> None:
    spec = zoo.spec("olmo2-1b")
    sparse, _ = apply_swaps(spec, ["ffn=MoE(experts=8, expert=GLU(hidden=1024), router=SoftmaxTopK(k=2))"])
    every_third = tuple((sparse if i % 3 == 2 else spec).layers[i] for i in range(len(spec.layers)))
    found = [each.sentence for each in structure_differences(replace(spec, layers=every_third), spec)]
    assert found == ["1 of 3 layers has 8 experts (2 active)", "softmax top-k router"]


def test_sizes_are_not_structure() -> None:
    spec = zoo.spec("qwen3-8b")
    assert structure_differences(replace(spec, layers=spec.layers[:8]), spec) == []
    assert sentences("qwen3-8b", "qwen3-0.6b") == ["no tied head"]
    wider, _ = apply_swaps(spec, ["GLU(hidden=4096)", "GQA(kv_heads=4)"])
    assert structure_differences(wider, spec) == []
