"""The reference's tensors are converted from the stored ones as transformers converts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.reference import randomise
from weights.reference.model import conversions

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
}


def made(model_type: str, folder: Path, **sizes: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """Returns a reference with random parameters, and the tensors that it stores."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **SMALL | sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, 0)
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


# Modules renamed and experts stacked; experts stacked; a fused matrix in two; names as they are stored.
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "phi3", "llama"])
def test_every_tensor_of_the_reference_is_made_of_its_own_file(model_type: str, tmp_path: Path) -> None:
    reference, stored = made(model_type, tmp_path)
    converted = conversions(reference, stored)
    wanted = reference.state_dict()
    assert converted.keys() == wanted.keys()
    for name, like in wanted.items():
        found = converted[name].make(name, torch.empty_like(like), stored.__getitem__, reference.config)
        assert torch.equal(found, like), name


def test_experts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """With ten or more experts, 10 comes after 9."""
    model, stored = made("mixtral", tmp_path, num_local_experts=12, num_experts=12)
    place = "model.layers.0.block_sparse_moe.experts"
    conversion = conversions(model, reversed(stored))["model.layers.0.mlp.experts.down_proj"]
    assert list(conversion.stored.values()) == [[f"{place}.{e}.w2.weight" for e in range(12)]]


def test_experts_are_converted_one_by_one(tmp_path: Path) -> None:
    """Each expert is read once, and only when no other is held: a layer's experts are never in memory twice."""
    (model, stored), read = made("mixtral", tmp_path), list[str]()

    def get(name: str) -> torch.Tensor:
        read.append(name.split("experts.")[1])
        return stored[name]

    name = "model.layers.1.mlp.experts.gate_up_proj"
    conversions(model, stored)[name].make(name, model.state_dict()[name], get, model.config)
    assert read == [f"{e}.{part}.weight" for e in range(4) for part in ("w1", "w3")]
