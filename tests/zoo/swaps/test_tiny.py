"""A tiny model has the composition of the full one: every distinct kind of layer, at toy widths."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

import zoo
from tests.presets import over
from zoo import GLU, GQA, GroupedSigmoidTopK, Layer, MoE, RMSNorm, RoPE, pre
from zoo.swaps.tiny import MAX_LAYERS, tiny


def composition(spec: zoo.Spec, dim: int) -> Any:
    """A spec's composition without its sizes: for a number only its type, for several each type once; for attention
    whether it is MHA, MQA or GQA, and whether heads * head_dim is dim."""

    def kept(value: Any) -> Any:
        if isinstance(value, zoo.Spec):
            return composition(value, dim)
        if isinstance(value, tuple):
            return tuple(dict.fromkeys(map(kept, value)))
        return type(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    parts = {field.name: kept(getattr(spec, field.name)) for field in fields(spec)}
    if isinstance(spec, GQA):
        parts["kind"] = "MHA" if spec.kv_heads == spec.heads else "MQA" if spec.kv_heads == 1 else "GQA"
        parts["fills"] = spec.heads * spec.head_dim == dim
    return type(spec), tuple(parts.items())


def mixed(part: zoo.Spec) -> bool:
    return isinstance(part, MoE)


@over(zoo.names())
def test_every_distinct_kind_of_layer_is_there_in_the_full_models_order(name: str) -> None:
    """The tiny model starts at the first layer, unless that takes too many layers."""
    full, small = zoo.spec(name), zoo.spec(name, tiny=True)
    kinds, toys = ([composition(layer, spec.dim) for layer in spec.layers] for spec in (full, small))
    assert len(set(full.layers)) == len(set(kinds)), "two kinds of layer differ in sizes alone: compare those too"
    assert set(toys) == set(kinds)
    needed = max(map(kinds.index, toys)) + 1
    start = 0 if needed <= MAX_LAYERS else needed - len(toys)
    assert toys == kinds[start : start + len(toys)]
    assert len(toys) <= MAX_LAYERS
    toy_of = dict(zip(full.layers[start:], small.layers, strict=False))
    assert toy_of.keys() == set(full.layers)
    assert len(set(toy_of.values())) == len(toy_of)


@over(zoo.names())
def test_everything_but_sizes_stays(name: str) -> None:
    full, small = zoo.spec(name), zoo.spec(name, tiny=True)
    assert (small.norm, small.tied) == (full.norm, full.tied)
    assert (small.embed_scale == small.dim**0.5) == (full.embed_scale == full.dim**0.5)
    assert (small.embed_scale == 1) == (full.embed_scale == 1)
    for kind in (zoo.RMSNorm, zoo.LinearScaling, zoo.NoPE, zoo.SwiGLU, zoo.GeGLU):
        of_small, of_full = ({part for part in spec.walk() if isinstance(part, kind)} for spec in (small, full))
        assert of_small == of_full
    assert tiny(small) == small == zoo.spec(name, tiny=True)


@over(zoo.names())
def test_it_is_small_and_runs_past_its_windows_and_scalings(name: str) -> None:
    small = zoo.spec(name, tiny=True)
    assert small.params() < 1_500_000
    sizes = [getattr(part, "window", None) or getattr(part, "original", 0) for part in small.walk()]
    assert max(sizes) < 80 < (small.context or 0)
    logits = zoo.build(small)(torch.zeros(1, 80, dtype=torch.long))
    assert logits.isfinite().all()
    assert logits.abs().max() > 0.1


@pytest.mark.parametrize("shared", [1, 2, 4, 0.5, 1.5])
@over(name for name in zoo.names() if any(map(mixed, zoo.spec(name).walk())))
def test_a_shared_expert_stays_as_many_times_as_wide(name: str, shared: float) -> None:
    """A config gives its width as a number of routed experts, and reads back the same model."""
    spec = zoo.spec(name)
    width = next(part.expert.hidden for part in spec.walk() if mixed(part))
    spec = zoo.swap(spec, MoE, lambda moe: replace(moe, shared=GLU(int(width * shared))))
    small = tiny(spec)
    found = {(part.shared.hidden / part.expert.hidden, part.expert.hidden) for part in small.walk() if mixed(part)}
    assert found == {(shared, 96)}
    assert tiny(small) == small
    if name == "deepseek-v3-671b" and shared >= 1 and shared == int(shared):
        assert zoo.to_hf(small)["n_shared_experts"] == zoo.to_hf(spec)["n_shared_experts"] == shared
        assert zoo.from_hf(zoo.to_hf(small)) == small


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 12])
def test_any_number_of_heads_has_a_tiny_form(heads: int) -> None:
    norm = RMSNorm(1e-5)
    for kv_heads in {n for n in range(1, heads + 1) if heads % n == 0}:
        attn = GQA(heads, kv_heads, head_dim=16, rope=RoPE(1e4))
        for dim in (16 * heads, 100):
            layer = Layer(pre(norm, attn), pre(norm, GLU(10)))
            small = tiny(zoo.Decoder(vocab=10, dim=dim, layers=(layer,) * 9, norm=norm))
            assert len(small.layers) == 2
            assert small.layers[0].mixer.heads <= 4


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
def test_any_grouped_router_has_a_tiny_form(groups: int) -> None:
    spec = zoo.spec("deepseek-v3")
    for keep in (1, 2, groups):
        if keep <= groups:
            router = GroupedSigmoidTopK(k=2, groups=groups, keep=keep, scale=1.0)
            moe = MoE(experts=64, expert=GLU(10), router=router)
            small = tiny(zoo.swap(spec, MoE, replace(moe, router=replace(router, k=min(8, 64 * keep // groups)))))
            assert small.params() < 1_000_000
