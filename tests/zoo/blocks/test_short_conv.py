"""The gated short convolution against LFM2's released layer."""

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
    hidden_states,
    reference,
    run,
)
from tests.zoo.blocks.recurrent import built as built_with
from zoo import ShortConv
from zoo.errors import SpecError

SPEC = ShortConv(channels=DIM, conv=3)


def config():
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "lfm2", hidden_size=DIM, num_hidden_layers=1, layer_types=["conv"], conv_L_cache=SPEC.conv, conv_bias=False
    )


def weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released layer's weights under the module's names."""
    names = {"input": "in_proj", "conv": "conv", "o": "out_proj"}
    return {f"{ours}.weight": stored[f"{theirs}.weight"] for ours, theirs in names.items()}


def released() -> nn.Module:
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    return reference(Lfm2ShortConv, config())


def test_it_is_the_released_layer() -> None:
    layer = released()
    module = built_with(SPEC, weights(layer.state_dict()))
    check_reference(module, SPEC, layer, config())
    check_narrow_dtypes(module, SPEC, layer, config())


def test_pieces_costs_and_gradients() -> None:
    for check in (check_pieces, check_costs, check_gradients):
        check(built_with(SPEC, weights(released().state_dict())), SPEC)


def test_a_token_sees_the_last_few_alone() -> None:
    module, x = built_with(SPEC, weights(released().state_dict())), hidden_states()
    changed = x.clone()
    changed[:, 10] += 1.0
    differs = (run(module, SPEC, changed) != run(module, SPEC, x)).any(-1).any(0)
    assert differs.nonzero().flatten().tolist() == [10, 11, 12]


def test_its_shapes_are_checked() -> None:
    with pytest.raises(SpecError, match="at least 2 tokens"):
        ShortConv(DIM, 1)
    assert SPEC.describe() == "short convolution of 48 channels over 3"
