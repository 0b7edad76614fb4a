"""Keys and values that later layers reuse: the source that is used, and refused models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.exact import differs
from tests.models import randomised, tokens_of
from zoo import GLU, GQA, Decoder, KVSource, Layer, RMSNorm, RoPE, SharedKV, pre
from zoo.errors import SpecError

DIM, WINDOW = 20, 7
NORM, ROPE = RMSNorm(1e-5), RoPE(1e4)
OWN = KVSource(heads=4, kv_heads=2, head_dim=6, rope=ROPE, qk_norm=NORM)
SHARED = SharedKV(heads=4, kv_heads=2, head_dim=6, rope=ROPE, qk_norm=NORM)


def layer(attn: GQA) -> Layer:
    return Layer(pre(NORM, attn), pre(NORM, GLU(24)))


def model_of(*mixers: GQA) -> Decoder:
    return Decoder(vocab=40, dim=DIM, layers=tuple(map(layer, mixers)), norm=NORM, tied=True)


@torch.no_grad()
def test_the_nearest_earlier_source_of_equal_heads_and_reach_counts() -> None:
    """The output of a source with other values is zero, so only the keys and values that it hands on reach the last
    layers."""
    local, narrow = (replace(spec, window=WINDOW) for spec in (OWN, SHARED))
    spec = model_of(local, OWN, local, OWN, narrow, SHARED, narrow, SHARED)
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
    with pytest.raises(SpecError, match="belong to the layer that hands keys and values on"):
        replace(SHARED, keys_as_values=True)
