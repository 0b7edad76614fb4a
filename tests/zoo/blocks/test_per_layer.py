"""Per-layer embeddings against their formula, layer by layer and token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import zoo
from tests.exact import assert_equal
from tests.models import randomised, tokens_of
from zoo import GLU, GQA, Decoder, GeGLU, Layer, LayerInput, LayerScale, PerLayerInputs, RMSNorm, RoPE, olmo, pre
from zoo.errors import SpecError

DIM, VOCAB, WIDTH, LAYERS = 12, 30, 5, 3
NORM = RMSNorm(1e-5)
ATTN = GQA(heads=2, kv_heads=1, head_dim=4, rope=RoPE(1e4))
LAYER = Layer(pre(NORM, ATTN), pre(NORM, GLU(16)), olmo(NORM, LayerInput(WIDTH)), LayerScale())
SPEC = Decoder(VOCAB, DIM, (LAYER,) * LAYERS, NORM, embed_scale=DIM**0.5, per_layer=PerLayerInputs(WIDTH, NORM))


@torch.no_grad()
def test_each_layer_gets_its_own() -> None:
    """Columns of the table of one layer change what that layer joins, and no other layer's inputs."""
    model, tokens = randomised(SPEC), tokens_of(SPEC, 1, 6)
    seen: list[torch.Tensor] = []
    for layer in model.layers:
        layer.inputs.block.register_forward_hook(lambda _, args, out: seen.append(args[1].layer_input))
    model(tokens)
    for layer in range(LAYERS):
        assert_equal(seen[layer], model.per_layer(tokens, model.embedded(tokens, torch.arange(6)))[layer])
    assert not torch.equal(seen[0], seen[1])


def test_widths_agree_in_all_layers() -> None:
    other = replace(LAYER, inputs=olmo(NORM, LayerInput(WIDTH + 1)))
    for wrong in (
        {"layers": (LAYER, other, LAYER)},
        {"per_layer": PerLayerInputs(WIDTH + 1, NORM)},
        {"per_layer": None},
        {"layers": (replace(LAYER, inputs=None),) * 2},
    ):
        with pytest.raises(SpecError, match="layers take inputs of"):
            replace(SPEC, **wrong)
    with pytest.raises(SpecError, match="a LayerInput belongs only in inputs"):
        Layer(pre(NORM, ATTN), pre(NORM, LayerInput(WIDTH, GeGLU())))
    with pytest.raises(SpecError, match="inputs must hold a LayerInput"):
        replace(LAYER, inputs=pre(NORM, GLU(8)))


def test_costs_are_those_of_the_modules() -> None:
    model = zoo.build(SPEC, device="meta")
    inputs = sum(weight.numel() for name, weight in model.named_parameters() if ".inputs.block." in name)
    assert SPEC.param_breakdown()["inputs"] == inputs + model.per_layer.projection.weight.numel()
    assert SPEC.embedding_params() == 2 * VOCAB * DIM + VOCAB * LAYERS * WIDTH
    assert SPEC.params() - SPEC.read_params(1) == (VOCAB - 1) * (DIM + LAYERS * WIDTH)
