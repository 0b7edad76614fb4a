"""Mamba-2 against the released layers of Nemotron-H, whose prefill has a shortest time step, and of Granite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.exact import differs
from tests.zoo.blocks.recurrent import (
    DIM,
    check_costs,
    check_gradients,
    check_narrow_dtypes,
    check_pieces,
    check_reference,
    hidden_states,
    reference,
    run,
)
from tests.zoo.blocks.recurrent import built as built_with
from zoo import Mamba2
from zoo.errors import SpecError

GRANITE = Mamba2(heads=6, head_dim=16, groups=1, state=10, conv=4, eps=1e-5)
NEMOTRON = replace(GRANITE, groups=2, min_step=0.5)  # most time steps are shorter
SPECS = {"granitemoehybrid": GRANITE, "nemotron_h": NEMOTRON}


def config(kind: str):
    from transformers import AutoConfig

    spec = SPECS[kind]
    if kind == "granitemoehybrid":
        return AutoConfig.for_model(
            kind,
            hidden_size=DIM,
            num_hidden_layers=1,
            layer_types=["linear_attention"],
            mamba_n_heads=spec.heads,
            mamba_d_head=spec.head_dim,
            mamba_n_groups=spec.groups,
            mamba_d_state=spec.state,
            mamba_d_conv=spec.conv,
            mamba_expand=2,
            rms_norm_eps=spec.eps,
        )
    return AutoConfig.for_model(
        kind,
        hidden_size=DIM,
        layers_block_type=["linear_attention"],
        mamba_num_heads=spec.heads,
        mamba_head_dim=spec.head_dim,
        n_groups=spec.groups,
        ssm_state_size=spec.state,
        conv_kernel=spec.conv,
        time_step_min=spec.min_step,
        layer_norm_epsilon=spec.eps,
    )


def weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released layer's weights under the module's names."""
    names = {"in_proj": "input", "out_proj": "o", "conv1d": "conv", "norm": "norm"}
    return {
        ".".join([names.get(first, first), *rest]): value
        for (first, *rest), value in ((name.split("."), value) for name, value in stored.items())
    }


def released(kind: str) -> nn.Module:
    from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

    return reference(
        {"granitemoehybrid": GraniteMoeHybridMambaLayer, "nemotron_h": NemotronHMamba2Mixer}[kind], config(kind)
    )


def built(spec: Mamba2, kind: str) -> nn.Module:
    return built_with(spec, weights(released(kind).state_dict()))


@pytest.mark.parametrize("kind", SPECS)
def test_it_is_the_released_layer(kind: str) -> None:
    layer, spec = released(kind), SPECS[kind]
    module = built_with(spec, weights(layer.state_dict()))
    check_reference(module, spec, layer, config(kind))
    check_narrow_dtypes(module, spec, layer, config(kind))


def test_the_shortest_time_step_is_one_of_prefill_alone() -> None:
    free = replace(NEMOTRON, min_step=None)
    x, module, unclamped = hidden_states(), built(NEMOTRON, "nemotron_h"), built(free, "nemotron_h")
    assert differs(run(module, NEMOTRON, x), run(unclamped, free, x))
    singles = [1] * x.shape[1]
    assert torch.equal(run(module, NEMOTRON, x, singles), run(unclamped, free, x, singles))


@pytest.mark.parametrize("kind", SPECS)
def test_pieces_costs_and_gradients(kind: str) -> None:
    spec = replace(SPECS[kind], min_step=None)
    check_pieces(built(spec, kind), spec)
    check_costs(built(spec, kind), spec)
    check_gradients(built(spec, kind), spec)


def test_its_shapes_are_checked() -> None:
    with pytest.raises(SpecError, match="groups=4 must divide heads=6"):
        replace(GRANITE, groups=4)
    with pytest.raises(SpecError, match="at least 2 tokens"):
        replace(GRANITE, conv=1)
    assert GRANITE.describe() == "Mamba-2, 6 heads of 16, state 10, convolution over 4"
    assert NEMOTRON.describe().endswith("state 10, 2 groups, convolution over 4, time steps of at least 0.5")
