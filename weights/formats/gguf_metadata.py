"""What a .gguf file says of a model, in its own words, and how far that is what a spec says."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

import torch
from torch import Tensor

from zoo.blocks import GLU, GQA, LinearScaling, Llama3Scaling, MoE, RoPE, YarnScaling
from zoo.model.decoder import Decoder

Said = Mapping[str, Any]
# A file must say these: they tell one preset from another.
REQUIRED = frozenset(
    "block_count embedding_length feed_forward_length attention.head_count expert_count expert_used_count".split()
)
# These follow from others where a file leaves them out, by the definition of GGUF.
IMPLIED = frozenset("attention.head_count_kv attention.key_length attention.value_length rope.dimension_count".split())


def words_of(spec: Decoder) -> dict[str, Any]:
    """What a file of this model says of it. Layers differ in windows and positions only."""
    windowed = next((layer.mixer for layer in spec.layers if layer.cache_spec().window), None)
    whole = next((layer.mixer for layer in spec.layers if _sees_all(layer.mixer)), windowed)
    assert isinstance(whole, GQA)
    assert isinstance(whole.rope, RoPE)
    says: dict[str, Any] = {
        "block_count": len(spec.layers),
        "embedding_length": spec.dim,
        **_ffn(spec),
        "attention.head_count": whole.heads,
        "attention.head_count_kv": whole.kv_heads,
        "attention.key_length": whole.head_dim,
        "attention.value_length": whole.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm.eps,
        "rope.dimension_count": whole.head_dim,
        "rope.freq_base": whole.rope.theta,
        **_scaling(whole.rope),
    }
    if isinstance(windowed, GQA):
        says["attention.sliding_window"] = windowed.window
        if isinstance(windowed.rope, RoPE) and windowed.rope != whole.rope:
            says["rope.freq_base_swa"] = windowed.rope.theta
    return says


def unused_words(spec: Decoder) -> set[str]:
    """What a file may say that no number of this model depends on: among them the width of dense layers it has not."""
    return {"context_length", "vocab_size"} | ({"feed_forward_length"} if "expert_count" in words_of(spec) else set())


def differences(said: Said, spec: Decoder) -> list[str]:
    """Where a file and a spec differ, in words: both must say what is required, other things where both say any."""
    found = []
    for key, ours in words_of(spec).items():
        theirs = said.get(key, _implied(said, key, None if key in REQUIRED else ours))
        if not _equal(theirs, ours):
            found.append(f"{key} {theirs} instead of {ours}")
    return found


def unsaid(said: Said, spec: Decoder) -> list[str]:
    """What a spec says and a file leaves to it."""
    return ["the plan of layers", *(key for key in words_of(spec) if key not in said and key not in IMPLIED)]


def rope_factors(spec: Decoder) -> Tensor | None:
    """(head_dim / 2,) what llama.cpp divides each rotary frequency by; None where it computes the scaling itself."""
    for mixer in (layer.mixer for layer in spec.layers):
        if isinstance(mixer, GQA) and isinstance(mixer.rope, RoPE) and isinstance(mixer.rope.scaling, Llama3Scaling):
            plain = mixer.rope.theta ** -(torch.arange(0, mixer.head_dim, 2) / mixer.head_dim)
            return plain / mixer.rope.scaling.scale(plain, mixer.rope.theta)
    return None


def _sees_all(mixer: Any) -> bool:
    return isinstance(mixer, GQA) and mixer.window is None and isinstance(mixer.rope, RoPE)


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


def _implied(said: Said, key: str, default: Any) -> Any:
    """What an absent key stands for."""
    heads, dim = said.get("attention.head_count"), said.get("embedding_length")
    if key == "attention.head_count_kv":
        return heads
    if key == "attention.key_length" and isinstance(heads, int) and isinstance(dim, int) and heads > 0:
        return dim // heads
    return default


def _equal(theirs: Any, ours: Any) -> bool:
    """Equal as far as the float32 of a file can say."""
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return isclose(theirs, ours, rel_tol=1e-6)
    return bool(theirs == ours)
