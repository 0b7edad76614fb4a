"""The reference side of the parity tests: released implementations at toy widths, every parameter randomised.

Nothing here reads the zoo's specs: published configs are cut to toy widths field by field, under their own names.
"""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.exact import in_float64
from tests.families import FAMILIES, Family

DATA = Path(__file__).parent / "data"
# Config field -> its largest toy value. Fields of a single family are in tests/families.py.
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
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
}
USUAL = ("num_hidden_layers", "num_key_value_heads")  # read below by these names too
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


@cache
def facts(folder: str) -> dict[str, dict[str, Any]]:
    """Returns {family: {preset: its entry in tests/data/FOLDER/FAMILY.json}}."""
    files = sorted((DATA / folder).glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def merged(folder: str) -> dict[str, Any]:
    """Returns {preset: its entry in the files of a folder}."""
    return {name: said for presets in facts(folder).values() for name, said in presets.items()}


@cache
def published() -> dict[str, dict[str, Any]]:
    """Returns {preset: its published facts: hub id, config, parameters}."""
    return merged("published")


@cache
def kv_reference() -> dict[str, dict[str, Any]]:
    """Returns {preset: the bytes of its cache, derived without the zoo's code}."""
    return merged("kv_reference")


def family_of(name: str) -> Family:
    """The tests' facts about the family of a preset."""
    stem = next(stem for stem, presets in facts("published").items() if name in presets)
    return FAMILIES.get(stem, Family())


def toy_config(name: str, layers: int) -> dict[str, Any]:
    """The published config of a preset at toy widths, with its first `layers` layers."""
    full, known = deepcopy(published()[name]["config"]), family_of(name)  # transformers writes into nested fields
    named = {usual: known.names.get(usual, usual) for usual in (*TOY, *USUAL)}
    widths = {named[usual]: width for usual, width in TOY.items()} | known.widths
    config = {
        field: value if field not in widths or value is None else min(value, widths[field])
        for field, value in full.items()
    }
    config |= TOKENS | {named["num_hidden_layers"]: layers}
    for unread in ("quantization_config", "auto_map"):
        config.pop(unread, None)
    heads, kv_heads = full[named["num_attention_heads"]], full.get(named["num_key_value_heads"])
    if kv_heads is not None:
        config[named["num_key_value_heads"]] = 4 if kv_heads == heads else min(kv_heads, 2)
    if full.get("shared_expert_intermediate_size"):  # as many times as wide as the routed ones
        times = full["shared_expert_intermediate_size"] / full["moe_intermediate_size"]
        config["shared_expert_intermediate_size"] = round(times * config["moe_intermediate_size"])
    if full.get("head_dim") is not None:
        config["head_dim"] = 16 if full["head_dim"] * heads == full[named["hidden_size"]] else 24
    if full.get("sliding_window") is not None:
        config["sliding_window"] = 16
    if "original_max_position_embeddings" in (full.get("rope_scaling") or {}):
        config["rope_scaling"] = full["rope_scaling"] | {"original_max_position_embeddings": 64}
    for plan, value in full.items():
        if isinstance(value, list) and len(value) == full.get(named["num_hidden_layers"]):  # an entry for each layer
            config[plan] = value[:layers]
    return config | known.toy(config, full, layers)


def toy_reference(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """The reference implementation of a config in float32, inside `in_float64` in float64, every parameter randomised.

    Matrices are N(0, (1.2 / sqrt(fan_in))^2), so that logits reach 1 and mistakes show. A fresh model's norms of one,
    zero biases and zero sinks would hide every mistake in them.
    """
    from transformers import AutoConfig

    from weights.reference.model import PLAIN_KERNELS, causal_class

    known = AutoConfig.for_model(**config)
    model: nn.Module = causal_class(known)._from_config(known, dtype=torch.get_default_dtype(), **PLAIN_KERNELS)
    randomise(model, seed)
    return model.eval()


def exact_twin(config: dict[str, Any], reference: nn.Module) -> nn.Module:
    """The reference of a config in float64, with the weights of another, for use inside `in_float64`."""
    with in_float64():
        exact = toy_reference(config)
        exact.load_state_dict(reference.state_dict())
    assert all(x.dtype == torch.float64 for x in (*exact.parameters(), *exact.buffers()) if x.is_floating_point())
    return exact


@torch.no_grad()
def exact_logits(config: dict[str, Any], reference: nn.Module, tokens: Tensor) -> Tensor:
    """The logits in float64 of the reference of a config with the weights of another."""
    exact = exact_twin(config, reference)
    with in_float64():
        return exact(tokens).logits


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Fills every parameter and every persistent buffer with new random values."""
    generator = torch.Generator().manual_seed(seed)
    known = family_of_type(getattr(getattr(model, "config", None), "model_type", None))
    state = model.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():  # ids of experts, different ones in a row
            experts = len(state[f"{name.rpartition('.')[0]}.weight"])
            tensor.copy_(torch.rand(len(tensor), experts, generator=generator).topk(tensor.shape[1]).indices)
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2 and not name.endswith("bias"):
            fan_in = tensor.shape[-2] if name.endswith(known.transposed) else tensor.shape[-1]
            tensor.copy_(noise * 1.2 / fan_in**0.5)
        elif "norm" in name or bool((tensor == 1).all()):  # what multiplies stays near one
            tensor.add_(noise * 0.3)
        else:
            tensor.copy_(noise * 0.3)
        tensor.mul_(next((factor for end, factor in known.factors.items() if name.endswith(end)), 1.0))


@torch.no_grad()
def token_by_token(reference: nn.Module, tokens: Tensor) -> Tensor:
    """The reference's logits of tokens (b, t), one after the other over its own cache."""
    from transformers import DynamicCache

    cache = DynamicCache(config=reference.config)
    name = "cache" if "cache" in signature(reference.forward).parameters else "past_key_values"
    return torch.cat([reference(token, use_cache=True, **{name: cache}).logits for token in tokens.split(1, 1)], dim=1)


def family_of_type(model_type: str | None) -> Family:
    """The tests' facts about the family that has this model_type."""
    for stem, presets in facts("published").items():
        if any(said["config"]["model_type"] == model_type for said in presets.values()):
            return FAMILIES.get(stem, Family())
    return Family()
