"""Keys and values that later layers attend to: against the source's own, in every kind of pass, compiled and not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.exact import assert_equal, differs
from tests.models import has_compiler, randomised, tokens_of
from zoo import GLU, GQA, Decoder, KVSource, Layer, RMSNorm, RoPE, SharedKV, pre
from zoo.errors import SpecError

DIM, LENGTH, WINDOW = 20, 11, 7
NORM, ROPE = RMSNorm(1e-5), RoPE(1e4)
OWN = KVSource(heads=4, kv_heads=2, head_dim=6, rope=ROPE, qk_norm=NORM)
SHARED = SharedKV(heads=4, kv_heads=2, head_dim=6, rope=ROPE, qk_norm=NORM)


def layer(attn: GQA) -> Layer:
    return Layer(pre(NORM, attn), pre(NORM, GLU(24)))


def model_of(*mixers: GQA) -> Decoder:
    return Decoder(vocab=40, dim=DIM, layers=tuple(map(layer, mixers)), norm=NORM, tied=True)


def both(kv_heads: int = 2) -> Decoder:
    """Two kinds of keys and values, each with two sources before it."""
    full, shared = (replace(spec, kv_heads=kv_heads) for spec in (OWN, SHARED))
    local, narrow = (replace(spec, window=WINDOW) for spec in (full, shared))
    return model_of(local, full, local, full, narrow, shared, narrow, shared)


@torch.no_grad()
def test_the_nearest_earlier_source_of_equal_heads_and_reach_counts() -> None:
    """A source of other values, whose own output is zero: only what it hands on reaches the last layers."""
    spec = both()
    tokens = tokens_of(spec, 1, 20)
    shared = [i for i, each in enumerate(spec.layers) if each.takes()]
    for source, first_to_change in ((0, []), (1, []), (2, [4]), (3, [5])):
        inputs: list[list[Tensor]] = []
        for scale in (1.0, 2.0):
            model = randomised(spec)
            model.layers[source].attn.block.v.weight.mul_(scale)
            model.layers[source].attn.block.o.weight.zero_()
            outs: list[Tensor] = []
            for i in shared:
                model.layers[i].attn.block.register_forward_hook(lambda _, args, out, outs=outs: outs.append(out))
                model.layers[i].attn.block.o.weight.normal_(generator=torch.Generator().manual_seed(i))
            model(tokens)
            inputs.append(outs)
        moved = [i for i, one, other in zip(shared, *inputs, strict=True) if differs(one, other)]
        assert moved[:1] == first_to_change


def test_what_no_layer_hands_on_is_no_model() -> None:
    for mixers in ((SHARED, OWN), (replace(OWN, window=3), SHARED), (replace(OWN, kv_heads=4), SHARED)):
        with pytest.raises(SpecError, match="which no earlier layer hands on"):
            model_of(*mixers)
    with pytest.raises(SpecError, match="are of the layer that hands keys and values on"):
        replace(SHARED, keys_as_values=True)


@torch.no_grad()
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it traces
@pytest.mark.usefixtures("_strict_compiler")
@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_three_graphs_a_layer_serve_every_length(kv_heads: int) -> None:
    """Rings that are full at the first decoded token and rings that are not, caches with and without room."""
    spec = both(kv_heads)
    plain, fast = randomised(spec), randomised(spec)
    fast.compile(backend="aot_eager")
    for sizes, room in (
        ([40, 1, 1, 23, 1], 5),
        ([5, 1, 1, 30, 1], 3),
        ([9, 1], 0),
    ):
        tokens = tokens_of(spec, 1, sum(sizes), seed=room)
        caches = [model.new_cache(1, sum(sizes) + room) for model in (plain, fast)]
        for part in tokens.split(sizes, dim=1):
            expected, got = (model(part, cache) for model, cache in zip((plain, fast), caches, strict=True))
            assert_equal(got, expected)
    assert counters["stats"]["unique_graphs"] <= 3 * len(set(spec.layers)) + 2
