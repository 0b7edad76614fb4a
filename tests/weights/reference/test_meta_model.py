"""The reference's tensors are converted from the stored ones as transformers converts them."""

from __future__ import annotations

from collections.abc import Iterator
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


# Modules renamed and experts stacked; experts stacked; a fused matrix in two; names as they are stored.
@pytest.fixture(params=["mixtral", "qwen3_moe", "olmoe", "phi3", "llama"])
def reference(request: pytest.FixtureRequest) -> Iterator[Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SMALL), dtype=torch.float32)
    randomise(model, 0)
    return model


def test_every_tensor_of_the_reference_is_made_of_its_own_file(reference: Any, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    made = conversions(reference, stored)
    wanted = reference.state_dict()
    assert made.keys() == wanted.keys()
    for name, like in wanted.items():
        found = made[name].make(name, torch.empty_like(like), stored.__getitem__, reference.config)
        assert torch.equal(found, like), name


def test_experts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """With ten or more experts, 10 comes after 9."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mixtral", **SMALL | {"num_local_experts": 12, "num_experts": 12})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    place = "model.layers.0.block_sparse_moe.experts"
    conversion = conversions(model, reversed(stored))["model.layers.0.mlp.experts.down_proj"]
    assert list(conversion.stored.values()) == [[f"{place}.{e}.w2.weight" for e in range(12)]]


def test_experts_are_converted_one_by_one(tmp_path: Path) -> None:
    """So that a layer's experts are not in memory twice: each is read once, none while another is held."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SMALL), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stored, read = load_file(tmp_path / "model.safetensors"), list[str]()

    def get(name: str) -> torch.Tensor:
        read.append(name.split("experts.")[1])
        return stored[name]

    name = "model.layers.1.mlp.experts.gate_up_proj"
    conversions(model, stored)[name].make(name, model.state_dict()[name], get, model.config)
    assert read == [f"{e}.{part}.weight" for e in range(4) for part in ("w1", "w3")]
