"""The reference side of the parity tests: released implementations at toy widths, every parameter randomised.

Nothing here reads the zoo's specs: published configs are cut to toy widths field by field, under their own names.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

DATA = Path(__file__).parent / "data"
TOY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 96,
    "max_position_embeddings": 1024,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "experts_per_token": 3,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "initial_context_length": 64,
    "swiglu_limit": 1.0,
}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


@cache
def published() -> dict[str, dict[str, Any]]:
    """Preset name -> the published facts: hub id, config, parameters."""
    return json.loads((DATA / "published.json").read_text(encoding="utf-8"))


def toy_config(name: str, layers: int) -> dict[str, Any]:
    """The published config of a preset at toy widths, with its first `layers` layers."""
    full = published()[name]["config"]
    config = {
        field: value if field not in TOY or value is None else min(value, TOY[field]) for field, value in full.items()
    }
    config |= TOKENS | {"num_hidden_layers": layers}
    for unread in ("quantization_config", "auto_map"):
        config.pop(unread, None)
    heads, kv_heads = full["num_attention_heads"], full["num_key_value_heads"]
    config["num_key_value_heads"] = 4 if kv_heads == heads else min(kv_heads, 2)
    if full.get("shared_expert_intermediate_size"):  # as many times as wide as the routed ones
        times = full["shared_expert_intermediate_size"] / full["moe_intermediate_size"]
        config["shared_expert_intermediate_size"] = round(times * config["moe_intermediate_size"])
    if "head_dim" in full:
        config["head_dim"] = 16 if full["head_dim"] * heads == full["hidden_size"] else 24
    if full.get("sliding_window") is not None:
        config["sliding_window"] = 16
    if "original_max_position_embeddings" in (full.get("rope_scaling") or {}):
        config["rope_scaling"] = full["rope_scaling"] | {"original_max_position_embeddings": 64}
    for plan in ("layer_types", "no_rope_layers"):
        if plan in full:
            config[plan] = full[plan][:layers]
    return config


def toy_reference(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """The reference implementation of a config, in float32 with eager attention, every parameter randomised.

    Matrices are N(0, (1.2 / sqrt(fan_in))^2), so that logits reach 1 and mistakes show. A fresh model's norms of one,
    zero biases and zero sinks would hide every mistake in them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="eager", dtype=torch.float32
    )
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter and every persistent buffer anew."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2 and not name.endswith("bias"):
            # gpt-oss multiplies x @ W: its fan-in is the next to last side, everyone else's the last.
            transposed = tensor.ndim == 3 and "gate_up_proj_bias" in " ".join(model.state_dict())
            fan_in = tensor.shape[-2] if transposed else tensor.shape[-1]
            tensor.copy_(noise * 1.2 / fan_in**0.5)
        elif "norm" in name:
            tensor.add_(noise * 0.3)
        else:
            tensor.copy_(noise * 0.3)
