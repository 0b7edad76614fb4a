"""The spec of a whole model: its figures are sums over its layers; changes of some of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import zoo
from tests.presets import over
from zoo import GQA, NoPE, RoPE
from zoo.errors import SpecError


@over(zoo.names())
def test_figures_are_sums_over_the_layers(name: str) -> None:
    spec = zoo.spec(name)
    layers = spec.layers
    outside = spec.params() - sum(layer.params(spec.dim) for layer in layers)
    width = spec.per_layer.width * len(layers) if spec.per_layer else 0  # of all layers' own inputs
    inputs = width * spec.dim + spec.per_layer.width if spec.per_layer else 0  # a projection and a norm
    streams = spec.streams.count if spec.streams else 0  # added up: a weight of each, from all of them
    contraction = streams * (streams * spec.dim + 1) + 1 if streams else 0
    assert outside == spec.embedding_params() + spec.norm.params(spec.dim) + inputs + contraction
    positions = spec.positions.count if spec.positions else 0
    tables = spec.dim * (spec.vocab * (1 if spec.tied else 2) + positions) + spec.vocab * width
    assert spec.embedding_params() == tables
    assert spec.active_params() == outside + sum(layer.active_params(spec.dim) for layer in layers)
    head = 2 * spec.dim * spec.vocab + 2 * streams * (streams + 1) * spec.dim
    body = sum(layer.flops(spec.dim, 100, 7) for layer in layers)
    assert spec.flops(100, 7, logits=0) == body + 7 * 2 * spec.dim * width
    assert spec.flops(100, 7) - spec.flops(100, 7, logits=0) == 7 * head
    assert spec.flops(100, 7, logits=1) - spec.flops(100, 7, logits=0) == head
    states = [state for layer in layers for state in layer.cache_spec().state if state.in_float32]
    in_float32 = sum(state.nbytes(2) for state in states)  # in any dtype
    assert spec.kv_bytes(100, batch=3, dtype=torch.float32) == 3 * (2 * spec.kv_bytes(100) - in_float32)


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
