"""The metadata that describes a model in a .gguf file, by GGUF's keys, and how it is compared with a spec."""

from collections.abc import Mapping
from math import isclose
from typing import Any

import torch
from torch import Tensor

from zoo.blocks import GLU, GQA, LinearScaling, Llama3Scaling, MoE, RoPE, YarnScaling
from zoo.model.decoder import Decoder

Metadata = Mapping[str, Any]
# A file must have these: they tell one preset from another.
REQUIRED = frozenset(
    "block_count embedding_length feed_forward_length attention.head_count expert_count expert_used_count".split()
)
# Where a file leaves these out, they follow from others, by the definition of GGUF.
IMPLIED = frozenset("attention.head_count_kv attention.key_length attention.value_length rope.dimension_count".split())


def metadata_of(spec: Decoder) -> dict[str, Any]:
    """The metadata of a file of this model. Layers differ in windows and positions only."""
    windowed = next((layer.mixer for layer in spec.layers if layer.cache_spec().window), None)
    mixers = (layer.mixer for layer in spec.layers)
    full = next((m for m in mixers if isinstance(m, GQA) and m.window is None and isinstance(m.rope, RoPE)), windowed)
    assert isinstance(full, GQA)
    assert isinstance(full.rope, RoPE)
    metadata: dict[str, Any] = {
        "block_count": len(spec.layers),
        "embedding_length": spec.dim,
        **_ffn(spec),
        "attention.head_count": full.heads,
        "attention.head_count_kv": full.kv_heads,
        "attention.key_length": full.head_dim,
        "attention.value_length": full.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm.eps,
        "rope.dimension_count": full.head_dim,
        "rope.freq_base": full.rope.theta,
        **_scaling(full.rope),
    }
    if isinstance(windowed, GQA):
        metadata["attention.sliding_window"] = windowed.window
        if isinstance(windowed.rope, RoPE) and windowed.rope != full.rope:
            metadata["rope.freq_base_swa"] = windowed.rope.theta
    return metadata


def unused_keys(spec: Decoder) -> set[str]:
    """Keys that no value of this model depends on: with experts, the width of dense layers is one."""
    experts = isinstance(spec.layers[0].ffn.block, MoE)
    return {"context_length", "vocab_size"} | ({"feed_forward_length"} if experts else set())


def differences(metadata: Metadata, spec: Decoder) -> list[str]:
    """Where a file and a spec differ: in a required key, or in another key that the file has."""
    found = []
    for key, expected in metadata_of(spec).items():
        value = metadata.get(key, _implied(metadata, key, None if key in REQUIRED else expected))
        # Files hold float32.
        numbers = isinstance(expected, float) and isinstance(value, int | float)
        if not (isclose(value, expected, rel_tol=1e-6) if numbers else value == expected):
            found.append(f"{key} {value} instead of {expected}")
    return found


def missing_keys(metadata: Metadata, spec: Decoder) -> list[str]:
    """What a file leaves to the spec."""
    return ["the layer pattern", *(key for key in metadata_of(spec) if key not in metadata and key not in IMPLIED)]


def rope_factors(spec: Decoder) -> Tensor | None:
    """(head_dim / 2,) what llama.cpp divides each rotary frequency by; None where it computes the scaling itself."""
    for mixer in (layer.mixer for layer in spec.layers):
        if isinstance(mixer, GQA) and isinstance(mixer.rope, RoPE) and isinstance(mixer.rope.scaling, Llama3Scaling):
            plain = mixer.rope.theta ** -(torch.arange(0, mixer.head_dim, 2) / mixer.head_dim)
            return plain / mixer.rope.scaling.scale(plain, mixer.rope.theta)
    return None


def _ffn(spec: Decoder) -> dict[str, Any]:
    ffn = spec.layers[0].ffn.block
    if isinstance(ffn, MoE):
        counts = {"expert_count": ffn.experts, "expert_used_count": ffn.router.k}
        return counts | {"expert_feed_forward_length": ffn.expert.hidden}
    assert isinstance(ffn, GLU)
    return {"feed_forward_length": ffn.hidden}


def _scaling(rope: RoPE) -> dict[str, Any]:
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, YarnScaling):
        ramp = {"rope.scaling.yarn_beta_fast": scaling.fast, "rope.scaling.yarn_beta_slow": scaling.slow}
        kind = {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        return kind | {"rope.scaling.original_context_length": scaling.original} | ramp
    return {}


def _implied(metadata: Metadata, key: str, default: Any) -> Any:
    """The value of an absent key."""
    heads, dim = metadata.get("attention.head_count"), metadata.get("embedding_length")
    if key == "attention.head_count_kv":
        return heads
    if key == "attention.key_length" and isinstance(heads, int) and isinstance(dim, int) and heads > 0:
        return dim // heads
    return default
