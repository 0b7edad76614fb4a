"""The spec of a whole model: changes of some of its layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

import zoo
from tests.presets import over
from zoo import GQA, NoPE, RoPE
from zoo.errors import SpecError


@over(zoo.names())
def test_swap_layers_changes_the_chosen_and_no_other(name: str) -> None:
    spec = zoo.spec(name)
    kind = type(spec.norm)
    changed = zoo.swap_layers(spec, lambda i: i % 3 == 1, kind, lambda norm: replace(norm, eps=0.5))
    for i, (layer, old) in enumerate(zip(changed.layers, spec.layers, strict=True)):
        assert (layer != old) == (i % 3 == 1)
        assert layer.mixer == old.mixer or i % 3 == 1
    assert replace(changed, layers=spec.layers) == spec
    assert zoo.swap_layers(spec, lambda i: True, kind, lambda norm: norm) == spec


def test_a_function_of_two_arguments_gets_the_index_of_the_layer() -> None:
    spec = zoo.spec("qwen3")

    def windows(change) -> list[int | None]:
        return [layer.mixer.window for layer in zoo.swap_layers(spec, lambda i: i < 3, GQA, change).layers[:4]]

    assert windows(lambda attn, i: replace(attn, window=i + 1)) == [1, 2, 3, None]
    assert windows(lambda attn, window=9: replace(attn, window=window)) == [9, 9, 9, None]  # has its own default
    assert windows(partial(replace, window=9)) == [9, 9, 9, None]
    assert windows(replace(spec.layers[0].mixer, window=9)) == [9, 9, 9, None]


def test_swap_layers_raises_where_nothing_is_chosen_or_held() -> None:
    spec = zoo.spec("qwen3")
    with pytest.raises(SpecError, match=f"none of the {len(spec.layers)} layers was chosen"):
        zoo.swap_layers(spec, lambda i: False, GQA, lambda attn: attn)
    with pytest.raises(SpecError, match="no MLA here, only Branch, GLU, GQA"):
        zoo.swap_layers(spec, lambda i: i == 0, zoo.MLA, lambda attn: attn)
    assert zoo.swap_layers(spec, lambda i: i % 4 == 3, RoPE, NoPE()).layers[3].mixer.rope == NoPE()
