"""Gated DeltaNet against the released layers, whose projections are packed in two ways."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from tests.zoo.blocks.recurrent import (
    DIM,
    check_costs,
    check_gradients,
    check_narrow_dtypes,
    check_pieces,
    check_reference,
    reference,
)
from tests.zoo.blocks.recurrent import built as built_with
from zoo import GatedDeltaNet, RMSNorm
from zoo.errors import SpecError

SPEC = GatedDeltaNet(key_heads=2, value_heads=6, key_dim=8, value_dim=10, conv=4, norm=RMSNorm(1e-6))


def config(kind: str):
    from transformers import AutoConfig

    return AutoConfig.for_model(
        kind,
        hidden_size=DIM,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=SPEC.key_heads,
        linear_num_value_heads=SPEC.value_heads,
        linear_key_head_dim=SPEC.key_dim,
        linear_value_head_dim=SPEC.value_dim,
        linear_conv_kernel_dim=SPEC.conv,
        rms_norm_eps=SPEC.norm.eps,
    )


def weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released layer's weights under the module's names."""
    shared = {
        "conv.weight": stored["conv1d.weight"],
        "norm.weight": stored["norm.weight"],
        "o.weight": stored["out_proj.weight"],
        "A_log": stored["A_log"],
        "dt_bias": stored["dt_bias"],
    }
    if "in_proj_qkv.weight" in stored:
        names = {"qkv": "qkv", "gate": "z", "beta": "b", "decay": "a"}
        return shared | {f"{ours}.weight": stored[f"in_proj_{theirs}.weight"] for ours, theirs in names.items()}
    share = (
        SPEC.value_heads // SPEC.key_heads
    )  # for each key head: its query, key, values and gates; its beta and decay
    widths = [SPEC.key_dim, SPEC.key_dim, share * SPEC.value_dim, share * SPEC.value_dim]
    packed = rearrange(stored["in_proj_qkvz.weight"], "(g rows) dim -> g rows dim", g=SPEC.key_heads)
    q, k, v, gate = (part.flatten(0, 1) for part in packed.split(widths, dim=1))
    packed = rearrange(stored["in_proj_ba.weight"], "(g two r) dim -> two (g r) dim", g=SPEC.key_heads, two=2)
    return shared | {
        "qkv.weight": torch.cat([q, k, v]),
        "gate.weight": gate,
        "beta.weight": packed[0],
        "decay.weight": packed[1],
    }


def released(kind: str) -> nn.Module:
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    return reference({"qwen3_next": Qwen3NextGatedDeltaNet, "qwen3_5_text": Qwen3_5GatedDeltaNet}[kind], config(kind))


def built() -> nn.Module:
    return built_with(SPEC, weights(released("qwen3_next").state_dict()))


@pytest.mark.parametrize("kind", ["qwen3_next", "qwen3_5_text"])
def test_it_is_the_released_layer(kind: str) -> None:
    layer = released(kind)
    module = built_with(SPEC, weights(layer.state_dict()))
    check_reference(module, SPEC, layer, config(kind))
    check_narrow_dtypes(module, SPEC, layer, config(kind))


def test_pieces_costs_and_gradients() -> None:
    check_pieces(built(), SPEC)
    check_costs(built(), SPEC)
    check_gradients(built(), SPEC)


def test_its_shapes_are_checked() -> None:
    with pytest.raises(SpecError, match="key_heads=4 must divide value_heads=6"):
        GatedDeltaNet(4, 6, 8, 8, 4, RMSNorm(1e-6))
    with pytest.raises(SpecError, match="at least 2 tokens"):
        GatedDeltaNet(2, 6, 8, 8, 1, RMSNorm(1e-6))
    assert SPEC.describe() == "Gated DeltaNet, 6 heads of 10 on 2 key heads of 8, convolution over 4"
