"""Descriptions and differences are made of the facts that blocks state, also for a block that nobody has seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

import zoo
from tests.presets import over
from tests.unseen import Unseen
from zoo import GLU, GQA, RMSNorm
from zoo.blocks.positions import LogTemperature
from zoo.facts import Fact
from zoo.registry import Spec, options, stated
from zoo.swaps.differences import structure_differences


@dataclass(frozen=True)
class _Described(Unseen, zoo.blocks.FeedForward):
    """A feed-forward with a description and no facts of its own."""

    hidden: int
    sharp: bool = False
    slope: float = 1.0

    def describe(self) -> str:
        return f"odd, of {self.hidden} things"


def test_a_block_with_a_description_alone_has_its_sentences() -> None:
    spec = zoo.spec("llama3.2-1b")
    odd = zoo.swap(spec, GLU, _Described(64, sharp=True, slope=0.5))
    assert [found.sentence for found in structure_differences(odd, spec)] == [
        "_Described instead of SwiGLU",
        "sharp",
        "slope 0.5",
    ]
    assert structure_differences(zoo.swap(odd, _Described, _Described(32, sharp=True, slope=0.25)), odd) == []


def test_a_kind_without_words_is_refused() -> None:
    with pytest.raises(TypeError, match="_Silent must define describe or facts"):
        type("_Silent", (Spec,), {})


@over(zoo.names())
def test_facts_of_every_block_are_its_description(name: str) -> None:
    """No fact is stated twice, and the description of a mixer or a norm contains the text of every fact."""
    for node in set(zoo.spec(name).walk()):
        keys = [fact.key for fact in node.facts()]
        assert len(set(keys)) == len(keys)
        assert all(fact.name.isprintable() and "{" not in fact.name for fact in stated(node).values())
        if node.role in ("attn", "norm", "rope", "act"):
            assert all(str(fact) in node.describe() for fact in node.facts())


def test_numbers_are_no_structure() -> None:
    attn = GQA(8, 2, 64, rope=zoo.RoPE(1e4), qk_norm=RMSNorm(1e-6), cap=50.0, temperature=LogTemperature(0.1, 8))
    resized = replace(attn, cap=30.0, temperature=LogTemperature(0.2, 16))
    other = replace(attn, qk_norm_over="projection")

    def structures(spec: Spec) -> set[object]:
        return {fact.structure for fact in options(spec).values()}

    assert structures(attn) == structures(resized) != structures(other)


def test_a_fact_in_words() -> None:
    assert str(Fact("streams", 4, "residual streams")) == "4 residual streams"
    cap = Fact("cap", 50.0, phrase="scores capped at {:g}", noun="score cap")
    assert (str(cap), cap.name) == ("scores capped at 50", "score cap")
    assert Fact("min_step", 0.5, phrase="steps of {:g}").name == "min step"


FILTERS = {
    "NoPE": ("smollm3-3b", "gpt2-small"),
    "sinks": ("deepseek-v4-pro-1.6t", "deepseek-v3.2-671b"),
    "output gate": ("qwen3-next-80b-a3b", "qwen3-30b-a3b"),
}


@pytest.mark.parametrize("feature", FILTERS)
def test_filters_find_those_that_have_a_feature(feature: str) -> None:
    from benchmarks.gallery.timeline import features

    has, lacks = FILTERS[feature]
    assert feature in features(zoo.spec(has))
    assert feature not in features(zoo.spec(lacks))
