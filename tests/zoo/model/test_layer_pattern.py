"""Layer lists as text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.presets import over
from zoo import GLU, GQA, Layer, NoPE, RMSNorm, RoPE, names, post, pre, spec
from zoo.model.layer_pattern import fold, labels


def unfold(text: str) -> list[str]:
    """A folded list of names, unfolded."""
    whole = re.sub(r"(\d+) x \[(\w+)\]", lambda m: " ".join([m[2]] * int(m[1])), text)
    whole = re.sub(r"(\d+) x \(([^)]*)\)", lambda m: " ".join([m[2]] * int(m[1])), whole)
    return whole.replace("+", " ").split()


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_a_folded_list_names_every_layer(names_of_layers) -> None:
    assert unfold(fold(names_of_layers)) == names_of_layers


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(1, 50))
def test_repeats_are_folded(cycle, times) -> None:
    assert fold(cycle * times).count("[") <= 3 * len(cycle)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ("a" * 28, "28 x [a]"),
        ("aab", "2 x [a] + 1 x [b]"),
        ("aaaaab" * 10 + "aa", "10 x (5 x [a] + 1 x [b]) + 2 x [a]"),
        ("cc" + "ab" * 12, "2 x [c] + 12 x (1 x [a] + 1 x [b])"),
        ("abababcbcbc", "3 x (1 x [a] + 1 x [b]) + 2 x (1 x [c] + 1 x [b]) + 1 x [c]"),
    ],
)
def test_it_folds(layers, text) -> None:
    assert fold(layers) == text


@over(names())
def test_every_kind_of_layer_has_its_own_name(name) -> None:
    whole = spec(name)
    found = labels(whole.layers)
    assert len(set(found)) == len(found) == len(set(whole.layers))


def test_a_name_holds_what_differs_and_no_more() -> None:
    norm = RMSNorm(1e-6)

    def layer(rope=RoPE(1e4), window=None, kv_heads=2, hidden=8, place=pre) -> Layer:
        return Layer(place(norm, GQA(4, kv_heads, 8, rope, window=window)), pre(norm, GLU(hidden)))

    def labels_of(*layers: Layer) -> list[str]:
        return labels(layers)

    assert labels_of(layer()) == ["full"]
    assert labels_of(layer(), layer(window=4), layer()) == ["full", "window 4"]
    assert labels_of(layer(), layer(NoPE())) == ["RoPE", "NoPE"]
    assert labels_of(layer(window=4), layer(NoPE()), layer()) == ["window 4, RoPE", "full, NoPE", "full, RoPE"]
    assert labels_of(layer(), layer(kv_heads=1), layer(kv_heads=4)) == ["GQA", "MQA", "MHA"]
    assert labels_of(layer(), layer(place=post)) == ["pre", "post"]
    assert labels_of(layer(hidden=8), layer(hidden=16)) == ["feed-forward 8 wide", "feed-forward 16 wide"]
    assert labels_of(layer(), layer(RoPE(1e6))) == ["RoPE 10k", "RoPE 1M"]
    assert labels_of(layer(), layer(RoPE(1e6)), layer(NoPE())) == ["RoPE 10k", "RoPE 1M", "NoPE"]
    assert labels_of(layer(), replace(layer(), ffn=pre(norm, GLU(8, bias=True)))) == ["kind 1", "kind 2"]


def test_an_aspect_that_tells_no_more_apart_is_left_out() -> None:
    assert labels(spec("kimi-linear-48b-a3b").layers) == ["KDA, GLU", "KDA, MoE", "full, MoE"]
