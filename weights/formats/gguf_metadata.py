"""The metadata that llama.cpp's converter writes for a model, for comparison with a .gguf file.

FIELDS maps GGUF's keys to fields of specs. An architecture's deviations are in the `gguf_fields` of its own file in
zoo/architectures. The value `...` marks a key that does not affect the model: a file may hold any value for it.
"""

from collections.abc import Mapping
from math import isclose, log, sqrt
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from weights.formats.gguf_layout import ARCHITECTURES
from zoo.architectures import families
from zoo.blocks import GQA, MLA, Indexer, LinearScaling, LogTemperature, LongRoPE, MoE, ShortConv, YarnScaling
from zoo.blocks.gated_delta_net import GatedDeltaNet
from zoo.blocks.kimi_delta_attention import KDA
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
REQUIRED = frozenset(
    "block_count embedding_length feed_forward_length attention.head_count expert_count expert_used_count".split()
)
# Keys that tensor shapes do not show. If a file lacks one, the preset's value is used, and that is logged.
NOTED = frozenset(
    "attn_logit_softcapping final_logit_softcapping residual_scale rope.freq_base rope.freq_base_swa rope.scaling.type "
    "rope.scaling.factor rope.scaling.original_context_length rope.scaling.attn_factor "
    "rope.scaling.yarn_log_multiplier full_attention_interval interleave_moe_layer_step".split()
)
PREDICTED = "nextn_predict_layers"  # layers for multi-token prediction; block_count includes them
GATING = {"softmax": 1, "sigmoid": 2}  # GGUF's ids of router functions
# GGUF's key -> the field or property of the first spec of a kind. A value of None writes no key.
RECURRENT = "ssm.conv_kernel ssm.state_size ssm.group_count ssm.time_step_rank ssm.inner_size".split()
FIELDS: dict[type[Spec], dict[str, str]] = {
    MoE: {
        "expert_count": "experts",
        "expert_used_count": "router.k",
        "expert_feed_forward_length": "expert.width",
        "moe_latent_size": "latent",
    },
    GroupedTopK: {
        "expert_group_count": "groups",
        "expert_group_used_count": "keep",
        "expert_weights_norm": "renormalises",
        "expert_weights_scale": "scale",
    },
    MLA: {
        "attention.head_count": "heads",
        "attention.kv_lora_rank": "kv_rank",
        "attention.q_lora_rank": "q_rank",
        "attention.value_length": "kv_rank",
        "attention.value_length_mla": "v_dim",
    },
    Indexer: {
        "attention.indexer.head_count": "heads",
        "attention.indexer.top_k": "k",
        "attention.indexer.key_length": "head_dim",
    },
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
    Mamba2: dict(zip(RECURRENT, ("conv", "state", "groups", "heads", "width"), strict=True)),
    GatedDeltaNet: dict(zip(RECURRENT, ("conv", "key_dim", "key_heads", "value_heads", "width"), strict=True)),
    KDA: {"ssm.conv_kernel": "conv", "kda.head_dim": "head_dim"},
    ShortConv: {"shortconv.l_cache": "conv"},
}
SCALING_TYPES: dict[type[Spec], str] = {LinearScaling: "linear", YarnScaling: "yarn"}
ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (f"rope_{name}.weight" for name in ("freqs", "factors_short", "factors_long"))
ROPE_TABLES = frozenset((ROPE_FREQS, ROPE_SHORT, ROPE_LONG))
UNROTATED = 1e30  # divides the frequencies of pairs that do not rotate


def metadata_of(kind: str, spec: Decoder) -> Metadata:
    """Returns the expected metadata of a file of this model, by key. `kind` is GGUF's name of the architecture."""
    found: Metadata = dict.fromkeys(("context_length", "vocab_size", PREDICTED), ...)  # conversion changes two of them
    found |= {"block_count": len(spec.layers), "embedding_length": spec.dim, "embedding_scale": spec.embed_scale}
    found |= {"final_logit_softcapping": spec.logit_cap, "logit_scale": spec.logits_scaling}
    found |= dict.fromkeys(("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"), spec.norm.eps)
    found["embedding_length_per_layer_input"] = spec.per_layer.width if spec.per_layer else 0
    for part_kind, keys in FIELDS.items():
        if part := first(spec, part_kind):
            found |= {key: attrgetter(name)(part) for key, name in keys.items()}
            found |= {"rope.scaling.type": SCALING_TYPES[part_kind]} if part_kind in SCALING_TYPES else {}
    found |= _feed_forward(spec) | _attention(spec)
    for family in ARCHITECTURES[kind].families:
        found |= getattr(families()[family], "gguf_fields", lambda spec: {})(spec)
    return {key: value for key, value in found.items() if value is not None}


def spec_differences(kind: str, metadata: Mapping[str, Any], spec: Decoder) -> list[str]:
    """Returns a line for each difference between a file and a spec, in required keys and in the file's other keys."""
    found = []
    for key, expected in metadata_of(kind, spec).items():
        value = metadata.get(key, _implied(metadata, key, None if key in REQUIRED else expected))
        if key == WINDOW and isinstance(value, int) and value >= (spec.context or value + 1):
            value = 0  # the window hides no token of the context
        if not _equal(value, expected, len(spec.layers)):
            found.append(f"{key} {value} instead of {expected}")
    return found


def _equal(value: Any, expected: Any, layers: int) -> bool:
    """Whether a file's value is the expected one. A single value may stand for all layers with a non-zero value."""
    if isinstance(expected, float) and isinstance(value, int | float):
        return isclose(value, expected, rel_tol=1e-6)  # files hold float32
    if isinstance(expected, list) and isinstance(value, int):
        return {*expected} - {0} == {value}
    return expected is ... or value in (expected, [expected] * layers)


def rope_factors(spec: Decoder) -> dict[str, Tensor]:
    """Returns tensor name -> divisors (rotated / 2,) of the rotary frequencies in llama.cpp. The result is empty if
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


def _feed_forward(spec: Decoder) -> Metadata:
    """Returns the widths of dense feed-forwards, also those beside experts, and the fields of the first mixture."""
    ffns = [(layer.feed_forward, layer.mixture) for layer in spec.layers]
    widths = [0 if ffn is None or ffn is moe else ffn.width for ffn, moe in ffns]  # type: ignore[attr-defined]
    found: Metadata = {"feed_forward_length": _by_layer(widths) if any(widths) else ...}
    moe = next((moe for _, moe in ffns if moe), None)
    if moe is None:
        return found
    found["leading_dense_block_count"] = [moe is not None for _, moe in ffns].index(True)
    found["expert_gating_func"] = GATING.get(getattr(moe.router, "function", ""))
    if moe.shared:
        found["expert_shared_count"] = moe.shared.width // moe.expert.width
        found["expert_shared_feed_forward_length"] = moe.shared.width
    return found


def _by_layer(values: list[int]) -> int | list[int]:
    """Returns a single value if all layers have the same one, else the list of values by layer."""
    return values if len(set(values)) > 1 else values[0]


def _attentions(spec: Decoder) -> list[GQA]:
    """Returns the distinct grouped-query attention specs, in layer order."""
    return list(dict.fromkeys(layer.mixer for layer in spec.layers if isinstance(layer.mixer, GQA)))


def _attention(spec: Decoder) -> Metadata:
    """Returns the fields of attention without a window, and the differing fields of attention with one."""
    if latent := first(spec, MLA):
        return _latent_attention(latent, spec)
    if not (attns := _attentions(spec)):
        return {}
    local = next((attn for attn in attns if attn.window), None)
    full = next((attn for attn in attns if not attn.window and attn.rope.encodes), local or attns[0])
    found: Metadata = {"attention.head_count": full.heads, "attention.head_count_kv": _kv_heads(spec)}
    found |= {"attention.key_length": full.head_dim, "attention.value_length": full.value_dim}
    found |= {"attention.scale": full.scale, "attn_logit_softcapping": full.cap, WINDOW: local.window if local else 0}
    found |= _rotation(full.rope, full.head_dim)
    if local:
        found["attention.sliding_window_pattern"] = [bool(layer.cache_spec().reach.limit) for layer in spec.layers]
        found |= {f"attention.{name}_length_swa": local.head_dim for name in ("key", "value")}
        swa = {f"{key}_swa": value for key, value in _rotation(local.rope, local.head_dim).items()}
        found |= swa if local.rope != full.rope else {}
    return found


def _latent_attention(attn: MLA, spec: Decoder) -> Metadata:
    """Returns the fields of latent attention. Keys and values are as wide as their parts of the cached latents, and
    all heads share one head of them. DeepSeek's gain on the scores is the square of 1 + multiplier * ln(factor)."""
    found: Metadata = {"attention.head_count_kv": _kv_heads(spec), **_rotation(attn.rope, attn.rope_dim)}
    found["attention.key_length"] = attn.kv_rank + attn.rope_dim
    found["attention.key_length_mla"] = attn.nope_dim + attn.rope_dim
    if attn.scale and (scaling := first(attn, YarnScaling)):
        gain = attn.scale * sqrt(attn.nope_dim + attn.rope_dim)
        found["rope.scaling.yarn_log_multiplier"] = (sqrt(gain) - 1) / log(scaling.factor)
    return found


def _kv_heads(spec: Decoder) -> int | list[int]:
    """Returns the number of KV heads by layer, 0 in layers that keep no keys."""
    mixers = (layer.mixer for layer in spec.layers)
    return _by_layer([getattr(each, "kv_heads", int(bool(each and each.cache_spec().per_token))) for each in mixers])


def _rotation(rope: Any, width: int) -> Metadata:
    """Returns the fields of the position encoding for heads of this width."""
    count, base = (rope.rotated(width), rope.theta) if rope.encodes else (..., ...)
    return {"rope.dimension_count": count, "rope.freq_base": base}


def _implied(metadata: Mapping[str, Any], key: str, default: Any) -> Any:
    """Returns the value that an absent key implies."""
    heads, dim = metadata.get("attention.head_count"), metadata.get("embedding_length")
    if key == WINDOW:
        return 0
    if key == "attention.head_count_kv":
        return heads
    if key == "attention.key_length" and isinstance(heads, int) and isinstance(dim, int) and heads > 0:
        return dim // heads
    return default
