"""Kimi Delta Attention against the released layer."""

from __future__ import annotations

import pytest
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
from zoo import KDA, RMSNorm
from zoo.errors import SpecError

SPEC = KDA(heads=3, head_dim=8, conv=4, norm=RMSNorm(1e-5, scale_in_fp32=True))


def config():
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "kimi_linear",
        hidden_size=DIM,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_heads=SPEC.heads,
        linear_head_dim=SPEC.head_dim,
        linear_conv_kernel_dim=SPEC.conv,
        rms_norm_eps=SPEC.norm.eps,
    )


def weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released layer's weights under the module's names."""
    names = {
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "decay.down": "forget_gate.f_a_proj",
        "decay.up": "forget_gate.f_b_proj",
        "gate.down": "g_a_proj",
        "gate.up": "g_b_proj",
        "beta": "b_proj",
        "norm": "o_norm",
        "o": "o_proj",
    }
    convs = dict(zip(("q", "k", "v"), stored["conv1d.weight"].chunk(3), strict=True))
    return {
        **{f"{ours}.weight": stored[f"{theirs}.weight"] for ours, theirs in names.items()},
        **{f"{name}_conv.weight": part for name, part in convs.items()},
        "A_log": stored["forget_gate.A_log"].flatten(),
        "dt_bias": stored["forget_gate.dt_bias"],
    }


def released() -> nn.Module:
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    return reference(KimiLinearDeltaAttention, config())


def built() -> nn.Module:
    return built_with(SPEC, weights(released().state_dict()))


def test_it_is_the_released_layer() -> None:
    layer = released()
    module = built_with(SPEC, weights(layer.state_dict()))
    check_reference(module, SPEC, layer, config())
    check_narrow_dtypes(module, SPEC, layer, config())


def test_pieces_costs_and_gradients() -> None:
    check_pieces(built(), SPEC)
    check_costs(built(), SPEC)
    check_gradients(built(), SPEC)


def test_its_shapes_are_checked() -> None:
    with pytest.raises(SpecError, match="at least 2 tokens"):
        KDA(3, 8, 1, RMSNorm(1e-6))
    assert SPEC.describe() == "KDA, 3 heads of 8, convolution over 4"
