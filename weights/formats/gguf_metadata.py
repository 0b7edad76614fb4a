"""The metadata that llama.cpp's converter writes for a model, for comparison with a .gguf file.

FIELDS maps GGUF's keys to fields of specs. Keys in SHAPES are not compared, since the shapes of tensors show their
values. An architecture's exceptions are in `gguf_fields` of its file in zoo/architectures. The value `...` marks a key
that is not compared: a file may hold any value for it.
"""

from collections.abc import Mapping
from math import isclose, log, sqrt
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from weights.formats.gguf_layout import ARCHITECTURES
from zoo.architectures import families
from zoo.blocks import GQA, MLA, Indexer, LinearScaling, LogTemperature, LongRoPE, MoE, YarnScaling
from zoo.blocks.delta_rule import GatedDeltaNet
from zoo.blocks.mamba2 import Mamba2
from zoo.blocks.positions import ProportionalRoPE
from zoo.blocks.rope_scaling import Llama3Scaling
from zoo.blocks.routers import GroupedTopK
from zoo.hf.write_config import first
from zoo.model.decoder import Decoder
from zoo.registry import Spec

Metadata = dict[str, Any]
WINDOW = "attention.sliding_window"
# Keys that a file must have, since they distinguish presets.
REQUIRED = frozenset("block_count embedding_length attention.head_count expert_count expert_used_count".split())
# Keys that a file may lack: the preset's value is then used, with a note in the log.
NOTED = frozenset(
    "attn_logit_softcapping final_logit_softcapping residual_scale rope.freq_base rope.freq_base_swa rope.scaling.type "
    "rope.scaling.factor rope.scaling.original_context_length rope.scaling.attn_factor "
    "rope.scaling.yarn_log_multiplier".split()
)
# Keys whose values follow from the shapes and names of tensors: a tensor that does not fit is refused anyway.
SHAPES = frozenset(
    """
    attention.head_count_kv attention.indexer.head_count attention.indexer.key_length attention.indexer.types
    attention.key_length attention.key_length_mla attention.key_length_swa attention.kv_lora_rank attention.q_lora_rank
    attention.value_length attention.value_length_mla attention.value_length_swa embedding_length_per_layer_input
    expert_feed_forward_length expert_shared_count expert_shared_feed_forward_length feed_forward_length
    full_attention_interval interleave_moe_layer_step kda.head_dim leading_dense_block_count moe_latent_size
    shortconv.l_cache ssm.conv_kernel ssm.inner_size ssm.state_size ssm.time_step_rank
    """.split()
)
PREDICTED = "nextn_predict_layers"  # layers for multi-token prediction; block_count includes them
GATING = {"softmax": 1, "sigmoid": 2}  # GGUF's ids of router functions
# Kind of spec -> GGUF's keys -> fields or properties of the model's first spec of that kind. None writes no key.
FIELDS: dict[type[Spec], dict[str, str]] = {
    MoE: {"expert_count": "experts", "expert_used_count": "router.k"},
    GroupedTopK: {
        "expert_group_count": "groups",
        "expert_group_used_count": "keep",
        "expert_weights_norm": "renormalises",
        "expert_weights_scale": "scale",
    },
    MLA: {"attention.head_count": "heads"},
    Indexer: {"attention.indexer.top_k": "k"},
    LogTemperature: {"attention.temperature_scale": "scale", "attention.temperature_length": "step"},
    LinearScaling: {"rope.scaling.factor": "factor"},
    YarnScaling: {
        "rope.scaling.factor": "factor",
        "rope.scaling.original_context_length": "original",
        "rope.scaling.yarn_beta_fast": "fast",
        "rope.scaling.yarn_beta_slow": "slow",
        "rope.scaling.yarn_attn_factor": "gain",
    },
    LongRoPE: {"rope.scaling.original_context_length": "original", "rope.scaling.attn_factor": "gain"},
    Mamba2: {"ssm.group_count": "groups"},
    GatedDeltaNet: {"ssm.group_count": "key_heads"},
}
SCALING_TYPES: dict[type[Spec], str] = {LinearScaling: "linear", YarnScaling: "yarn"}
ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (f"rope_{name}.weight" for name in ("freqs", "factors_short", "factors_long"))
ROPE_TABLES = frozenset((ROPE_FREQS, ROPE_SHORT, ROPE_LONG))
UNROTATED = 1e30  # divides the frequencies of pairs that do not rotate


def metadata_of(kind: str, spec: Decoder) -> Metadata:
    """Returns the metadata that a file of this model should have, by key. `kind` is GGUF's name of the architecture."""
    found: Metadata = dict.fromkeys((*SHAPES, "context_length", "vocab_size", PREDICTED), ...)
    found |= {"block_count": len(spec.layers), "embedding_length": spec.dim, "embedding_scale": spec.embed_scale}
    found |= {"final_logit_softcapping": spec.logit_cap, "logit_scale": spec.logits_scaling}
    found |= dict.fromkeys(("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"), spec.norm.eps)
    for part_kind, keys in FIELDS.items():
        if part := first(spec, part_kind):
            found |= {key: attrgetter(name)(part) for key, name in keys.items()}
            found |= {"rope.scaling.type": SCALING_TYPES[part_kind]} if part_kind in SCALING_TYPES else {}
    mixture = next((layer.mixture for layer in spec.layers if layer.mixture), None)
    found["expert_gating_func"] = GATING.get(getattr(mixture and mixture.router, "function", ""))
    found |= _latent_attention(latent) if (latent := first(spec, MLA)) else _attention(spec)
    for family in ARCHITECTURES[kind].families:
        found |= getattr(families()[family], "gguf_fields", lambda spec: {})(spec)
    return {key: value for key, value in found.items() if value is not None}


def spec_differences(kind: str, metadata: Mapping[str, Any], spec: Decoder) -> list[str]:
    """Returns a line for each difference between a file and a spec, in the required keys and in the keys of the
    file."""
    found = []
    for key, expected in metadata_of(kind, spec).items():
        value = metadata.get(key, 0 if key == WINDOW else None if key in REQUIRED else expected)
        if key == WINDOW and isinstance(value, int) and value >= (spec.context or value + 1):
            value = 0  # the window hides no token of the context
        in_float32 = isinstance(value, float) and isinstance(expected, int | float)  # files hold float32 numbers
        if expected not in (..., value) and not (in_float32 and isclose(value, expected, rel_tol=1e-6)):
            found.append(f"{key} {value} instead of {expected}")
    return found


def rope_factors(spec: Decoder) -> dict[str, Tensor]:
    """Returns {tensor name: divisors (rotated / 2,) of the rotary frequencies} for llama.cpp. The result is empty if
    llama.cpp computes the scaling itself."""
    if scaling := first(spec, LongRoPE):
        return {ROPE_SHORT: torch.tensor(scaling.short), ROPE_LONG: torch.tensor(scaling.long)}
    for attn in _attentions(spec):
        pairs = torch.arange(attn.head_dim // 2)
        if rope := first(attn, ProportionalRoPE):
            return {ROPE_FREQS: torch.where(pairs < rope.fraction * attn.head_dim / 2, 1.0, UNROTATED)}
        if stretched := first(attn, Llama3Scaling):
            theta: float = attn.rope.theta  # type: ignore[attr-defined]
            periods = theta ** (torch.arange(0, attn.head_dim, 2) / attn.head_dim)
            return {ROPE_FREQS: 1.0 / periods / stretched.scale(periods, theta)}
    return {}


def _attentions(spec: Decoder) -> list[GQA]:
    """Returns the distinct grouped-query attention specs, in layer order."""
    return list(dict.fromkeys(layer.mixer for layer in spec.layers if isinstance(layer.mixer, GQA)))


def _attention(spec: Decoder) -> Metadata:
    """Returns the fields of full attention, and the fields of sliding-window attention that differ."""
    if not (attns := _attentions(spec)):
        return {}
    local = next((attn for attn in attns if attn.window), None)
    full = next((attn for attn in attns if not attn.window and attn.rope.encodes), local or attns[0])
    found: Metadata = {"attention.head_count": full.heads, "attention.scale": full.scale}
    found |= {"attn_logit_softcapping": full.cap, WINDOW: local.window if local else 0}
    found |= _rotation(full.rope, full.head_dim)
    if local:
        found["attention.sliding_window_pattern"] = [bool(layer.cache_spec().reach.limit) for layer in spec.layers]
        swa = {f"{key}_swa": value for key, value in _rotation(local.rope, local.head_dim).items()}
        found |= swa if local.rope != full.rope else {}
    return found


def _latent_attention(attn: MLA) -> Metadata:
    """Returns the fields of latent attention. DeepSeek's gain on the scores is the square of 1 + multiplier *
    ln(factor)."""
    found = _rotation(attn.rope, attn.rope_dim)
    if attn.scale and (scaling := first(attn, YarnScaling)):
        gain = attn.scale * sqrt(attn.nope_dim + attn.rope_dim)
        found["rope.scaling.yarn_log_multiplier"] = (sqrt(gain) - 1) / log(scaling.factor)
    return found


def _rotation(rope: Any, width: int) -> Metadata:
    """Returns the fields of the position encoding for heads of this width."""
    count, base = (rope.rotated(width), rope.theta) if rope.encodes else (..., ...)
    return {"rope.dimension_count": count, "rope.freq_base": base}
