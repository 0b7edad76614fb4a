"""The metadata of a .gguf file of a model, as llama.cpp's converter writes it, to compare with what a file says."""

from collections.abc import Iterator, Mapping
from math import isclose, log, sqrt
from typing import Any

import torch
from torch import Tensor

from zoo.blocks import (
    GLU,
    GQA,
    MLA,
    GroupedSigmoidTopK,
    Indexer,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    LogTemperature,
    LongRoPE,
    MoE,
    ProportionalRoPE,
    RoPE,
    SharedKV,
    YarnScaling,
)
from zoo.blocks.feed_forward import FeedForward
from zoo.blocks.gated_delta_net import GatedDeltaNet
from zoo.blocks.kimi_delta_attention import KDA
from zoo.blocks.layer import Branch
from zoo.blocks.mamba2 import Mamba2
from zoo.blocks.routers import GroupedTopK
from zoo.blocks.short_conv import ShortConv
from zoo.model.decoder import Decoder
from zoo.registry import Spec

Metadata = dict[str, Any]
# Metadata that a file must have these: they tell one preset from another.
REQUIRED = frozenset(
    "block_count embedding_length feed_forward_length attention.head_count attention.sliding_window expert_count "
    "expert_used_count".split()
)
# Where a file leaves these out, they follow from others or from the architecture, by the definition of GGUF.
IMPLIED = frozenset(
    "attention.head_count_kv attention.key_length attention.value_length attention.sliding_window "
    "attention.sliding_window_pattern attention.shared_kv_layers embedding_length_per_layer_input "
    "rope.dimension_count rope.scaling.finetuned expert_gating_func expert_group_count expert_group_used_count "
    "expert_weights_norm expert_shared_count expert_feed_forward_length attention.indexer.types".split()
)
PREDICTED = "nextn_predict_layers"  # layers for multi-token prediction, which block_count counts
ANY_VALUE = {"context_length", "vocab_size", PREDICTED}  # the first two change in conversion
WINDOW = "attention.sliding_window"
SOFTMAX, SIGMOID = 1, 2  # GGUF's numbers of them
ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (f"rope_{name}.weight" for name in ("freqs", "factors_short", "factors_long"))
ROPE_TABLES = frozenset((ROPE_FREQS, ROPE_SHORT, ROPE_LONG))
UNROTATED = 1e30  # what frequencies are divided by in pairs that do not rotate


def metadata_of(kind: str, spec: Decoder) -> Metadata:
    """The metadata of a file of this model, by key. `kind` is GGUF's name of the architecture."""
    eps = "attention.layer_norm_epsilon" if isinstance(spec.norm, LayerNorm) else "attention.layer_norm_rms_epsilon"
    found: Metadata = {"block_count": len(spec.layers), "embedding_length": spec.dim, eps: spec.norm.eps}
    found |= _feed_forward(spec) | _latent_attention(spec) | _attention(spec) | _recurrence(spec)
    if spec.logit_cap:
        found["final_logit_softcapping"] = spec.logit_cap
    return found | (SPECIAL[kind](spec) if kind in SPECIAL else {})


def any_value(kind: str, spec: Decoder) -> set[str]:
    """Keys whose value changes nothing in this model."""
    keys = set(ANY_VALUE)
    if "feed_forward_length" not in metadata_of(kind, spec):  # the width of dense layers, of which this model has none
        keys.add("feed_forward_length")
    if not any(isinstance(part, RoPE) for part in _parts(spec)):
        keys |= {"rope.freq_base", "rope.dimension_count"}
    if kind.startswith("qwen35"):  # which pairs each of three positions rotates: for text, they are equal
        keys.add("rope.dimension_sections")
    if kind == "kimi-linear":  # a width that the config has beside those of latent attention
        keys.add("attention.value_length")
    return keys


def spec_differences(kind: str, metadata: Mapping[str, Any], spec: Decoder) -> list[str]:
    """Where a file and a spec differ: in a required key, or in another key that the file has."""
    found, ignored = [], any_value(kind, spec)
    for key, expected in metadata_of(kind, spec).items():
        value = metadata.get(key, _implied(metadata, key, None if key in REQUIRED else expected))
        if key == WINDOW and expected == 0 and isinstance(value, int) and value >= (spec.context or value + 1):
            value = 0  # it hides no token of the context
        # Files hold float32.
        numbers = isinstance(expected, float) and isinstance(value, int | float)
        of_all = [value] * len(spec.layers) if isinstance(expected, list) and isinstance(value, int) else value
        equal = isclose(value, expected, rel_tol=1e-6) if numbers else of_all == expected
        if not equal and key not in ignored:
            found.append(f"{key} {value} instead of {expected}")
    return found


def rope_factors(spec: Decoder) -> dict[str, Tensor]:
    """Name of a tensor -> (rotated / 2,) what llama.cpp divides each rotary frequency by; none where it computes the
    scaling itself."""
    for attn in _found(spec, GQA):
        if isinstance(attn.rope, ProportionalRoPE):
            pairs = torch.arange(attn.head_dim // 2)
            return {ROPE_FREQS: torch.where(pairs < attn.rope.fraction * attn.head_dim / 2, 1.0, UNROTATED)}
        if isinstance(attn.rope, RoPE) and isinstance(attn.rope.scaling, Llama3Scaling):
            periods = attn.rope.theta ** (torch.arange(0, attn.head_dim, 2) / attn.head_dim)
            return {ROPE_FREQS: 1.0 / periods / attn.rope.scaling.scale(periods, attn.rope.theta)}
        if isinstance(attn.rope, RoPE) and isinstance(attn.rope.scaling, LongRoPE):
            scaling = attn.rope.scaling
            return {ROPE_SHORT: torch.tensor(scaling.short), ROPE_LONG: torch.tensor(scaling.long)}
    return {}


def _parts(spec: Decoder) -> Iterator[Spec]:
    """Every spec in the layers, those of equal layers once."""
    return (part for layer in dict.fromkeys(spec.layers) for part in layer.walk())


def _found(spec: Decoder, kind: type[Any]) -> list[Any]:
    return [part for part in _parts(spec) if isinstance(part, kind)]


def _dense_width(spec: Decoder) -> int | None:
    ffns = (layer.feed_forward for layer in spec.layers)
    return next((ffn.width for ffn in ffns if isinstance(ffn, FeedForward) and not isinstance(ffn, MoE)), None)


def _feed_forward(spec: Decoder) -> Metadata:
    found: Metadata = {}
    if (width := _dense_width(spec)) is not None:
        found["feed_forward_length"] = width
    sparse = [isinstance(layer.feed_forward, MoE) for layer in spec.layers]
    if not any(sparse):
        return found
    moe, router = _found(spec, MoE)[0], _found(spec, MoE)[0].router
    found |= {"expert_count": moe.experts, "expert_used_count": router.k}
    found["expert_feed_forward_length"] = moe.expert.width
    if moe.shared:
        found["expert_shared_count"] = moe.shared.width // moe.expert.width
    if isinstance(router, GroupedTopK):
        gating = SIGMOID if isinstance(router, GroupedSigmoidTopK) else SOFTMAX
        found |= {"expert_gating_func": gating, "expert_weights_norm": True}
        found |= {"expert_group_count": router.groups, "expert_group_used_count": router.keep}
    return found


def _attention(spec: Decoder) -> Metadata:
    """Of grouped-query attention. Layers differ in windows and positions only."""
    attns: list[GQA] = _found(spec, GQA)
    if not attns:
        return {}
    local = next((attn for attn in attns if attn.window), None)
    full = next((attn for attn in attns if not attn.window and isinstance(attn.rope, RoPE)), local or attns[0])
    found: Metadata = {"attention.head_count": full.heads, "attention.head_count_kv": full.kv_heads}
    found |= {"attention.key_length": full.head_dim, "attention.value_length": full.value_dim}
    if isinstance(full.rope, RoPE):
        found |= _rotation(full.rope, full.head_dim)
    if full.cap:
        found["attn_logit_softcapping"] = full.cap
    if local:
        found["attention.sliding_window"] = local.window
        found["attention.sliding_window_pattern"] = [
            layer.cache_spec().reach.limit is not None for layer in spec.layers
        ]
        if isinstance(local.rope, RoPE) and local.rope != full.rope:
            found["rope.freq_base_swa"] = local.rope.theta
    return found


def _latent_attention(spec: Decoder) -> Metadata:
    """Keys and values of the cached latents are as wide as those are; one head of them serves all."""
    attns: list[MLA] = _found(spec, MLA)
    if not attns:
        return {}
    attn = attns[0]
    found = {"attention.head_count": attn.heads, "attention.head_count_kv": 1, "attention.kv_lora_rank": attn.kv_rank}
    found |= {"attention.key_length": attn.kv_rank + attn.rope_dim, "attention.value_length": attn.kv_rank}
    found |= {"attention.key_length_mla": attn.nope_dim + attn.rope_dim, "attention.value_length_mla": attn.v_dim}
    if attn.q_rank:
        found["attention.q_lora_rank"] = attn.q_rank
    return found | (_rotation(attn.rope, attn.rope_dim) if isinstance(attn.rope, RoPE) else {})


def _rotation(rope: RoPE, width: int) -> Metadata:
    """Of heads of this width."""
    found: Metadata = {"rope.dimension_count": rope.rotated(width), "rope.freq_base": rope.theta}
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, YarnScaling):
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        found |= {"rope.scaling.original_context_length": scaling.original}
        found |= {"rope.scaling.yarn_beta_fast": scaling.fast, "rope.scaling.yarn_beta_slow": scaling.slow}
    return found


def _recurrence(spec: Decoder) -> Metadata:
    """Of the layers whose state does not grow."""
    for part in _parts(spec):
        if isinstance(part, Mamba2):
            sizes = (part.conv, part.state, part.groups, part.heads, part.width)
        elif isinstance(part, GatedDeltaNet):
            width = part.value_heads * part.value_dim
            sizes = (part.conv, part.key_dim, part.key_heads, part.value_heads, width)
        elif isinstance(part, KDA):
            return {"ssm.conv_kernel": part.conv, "kda.head_dim": part.head_dim}
        elif isinstance(part, ShortConv):
            return {"shortconv.l_cache": part.conv}
        else:
            continue
        names = "conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size"
        return {f"ssm.{name}": size for name, size in zip(names, sizes, strict=True)}
    return {}


def _kv_heads(spec: Decoder) -> Metadata:
    """KV heads layer by layer, 0 in layers without attention."""
    mixers = (layer.mixer for layer in spec.layers)
    heads = [mixer.kv_heads if isinstance(mixer, GQA) else int(isinstance(mixer, MLA)) for mixer in mixers]
    return {"attention.head_count_kv": heads}


def _routing(spec: Decoder) -> Metadata:
    """Of architectures whose routers scale their weights, with dense layers before those with experts."""
    routers = _found(spec, GroupedTopK)
    return {"expert_weights_scale": routers[0].scale, **_leading_dense(spec)} if routers else {}


def _leading_dense(spec: Decoder) -> Metadata:
    sparse = [isinstance(layer.feed_forward, MoE) for layer in spec.layers]
    return {"leading_dense_block_count": sparse.index(True)} if any(sparse) else {}


def _shared_width(spec: Decoder) -> Metadata:
    moes = _found(spec, MoE)
    return {"expert_shared_feed_forward_length": moes[0].shared.width} if moes else {}


def _yarn_of_scores(spec: Decoder) -> Metadata:
    """DeepSeek's gain on the scores is the square of 1 + multiplier * ln(factor)."""
    attn: MLA = _found(spec, MLA)[0]
    scaling = attn.rope.scaling if isinstance(attn.rope, RoPE) else None
    if not isinstance(scaling, YarnScaling) or attn.scale is None:
        return _routing(spec)
    gain = attn.scale * sqrt(attn.nope_dim + attn.rope_dim)
    return _routing(spec) | {"rope.scaling.yarn_log_multiplier": (sqrt(gain) - 1) / log(scaling.factor)}


def _indexers(spec: Decoder) -> Metadata:
    """Of sparse attention; `types` says of each layer whether it has one."""
    indexer = _found(spec, Indexer)[0]
    found = _routing(spec) | {"attention.indexer.head_count": indexer.heads, "attention.indexer.top_k": indexer.k}
    types = [not getattr(layer.mixer, "shares_choice", False) for layer in spec.layers]
    return found | {"attention.indexer.key_length": indexer.head_dim, "attention.indexer.types": types}


def _mistral4(spec: Decoder) -> Metadata:
    temperature = _found(spec, LogTemperature)[0]
    found = {"attention.temperature_scale": temperature.scale, "attention.temperature_length": temperature.step}
    return found | _yarn_of_scores(spec)


def _ministral(spec: Decoder) -> Metadata:
    """The multiplier undoes YaRN's gain."""
    temperature = _found(spec, GQA)[0].temperature
    if temperature is None:
        return {}
    return {"attention.temperature_scale": temperature.scale, "rope.scaling.yarn_log_multiplier": 1.0}


def _olmo(spec: Decoder) -> Metadata:
    """OLMo 3 has OLMo 2's name, and a window."""
    full = next((attn.rope for attn in _found(spec, GQA) if not attn.window), None)
    if isinstance(full, RoPE) and isinstance(full.scaling, YarnScaling):
        return {"rope.scaling.yarn_attn_factor": full.scaling.gain}
    return {} if any(attn.window for attn in _found(spec, GQA)) else {"attention.sliding_window": None}


def _phi(spec: Decoder) -> Metadata:
    """A window of 0 is none, and so is one of the context or longer."""
    attn = _found(spec, GQA)[0]
    scaling = attn.rope.scaling if isinstance(attn.rope, RoPE) else None
    found: Metadata = {"rope.scaling.original_context_length": spec.context, WINDOW: attn.window or 0}
    if isinstance(scaling, LongRoPE):
        found |= {"rope.scaling.original_context_length": scaling.original, "rope.scaling.attn_factor": scaling.gain}
    return found


def _gemma4(spec: Decoder) -> Metadata:
    """Layers with a window have heads of their own."""
    local = next(attn for attn in _found(spec, GQA) if attn.window)
    found: Metadata = {f"attention.{name}_length_swa": local.head_dim for name in ("key", "value")}
    found |= {"rope.dimension_count_swa": local.head_dim}
    found["attention.shared_kv_layers"] = sum(isinstance(layer.mixer, SharedKV) for layer in spec.layers)
    found["embedding_length_per_layer_input"] = spec.per_layer.width if spec.per_layer else 0
    dense = [next(part for part in layer.walk() if isinstance(part, GLU)).width for layer in spec.layers]
    found |= {"feed_forward_length": dense} | _kv_heads(spec)
    for moe in _found(spec, MoE):
        found |= {"expert_count": moe.experts, "expert_used_count": moe.router.k}
        found["expert_feed_forward_length"] = moe.expert.width
    return found


def _granite(spec: Decoder) -> Metadata:
    """The width is that of a routed expert; `finetuned` false means that attention has no positions."""
    found = (
        {"feed_forward_length": _found(spec, MoE)[0].expert.width}
        | _kv_heads(spec)
        | _shared_width(spec)
        | {"rope.scaling.finetuned": False}
    )
    found |= {"embedding_scale": spec.embed_scale, "residual_scale": _found(spec, Branch)[0].multiplier}
    return found | {"logit_scale": spec.logits_scaling, "attention.scale": _found(spec, GQA)[0].scale}


def _nemotron(spec: Decoder) -> Metadata:
    moe = _found(spec, MoE)[0]
    widths = [moe.expert.width if isinstance(layer.feed_forward, MoE) else 0 for layer in spec.layers]
    found = _kv_heads(spec) | _shared_width(spec) | {"feed_forward_length": widths, "rope.scaling.finetuned": False}
    found |= {"attention.layer_norm_epsilon": spec.norm.eps, "expert_shared_count": 1}
    found |= {"moe_latent_size": moe.latent} if moe.latent else {}
    return found | {"expert_weights_scale": moe.router.scale}


def _qwen3_next(spec: Decoder) -> Metadata:
    full = [isinstance(layer.mixer, GQA) for layer in spec.layers]
    return {"full_attention_interval": [*full, True].index(True) + 1, **_shared_width(spec)}


def _llama4(spec: Decoder) -> Metadata:
    return {"interleave_moe_layer_step": _leading_dense(spec)["leading_dense_block_count"] + 1}


# What an architecture says beyond the usual.
SPECIAL = {
    "afmoe": _routing,
    "deepseek2": _yarn_of_scores,
    "gemma4": _gemma4,
    "glm-dsa": _indexers,
    "glm4moe": _routing,
    "granitehybrid": _granite,
    "kimi-linear": lambda spec: _routing(spec) | _kv_heads(spec),
    "lfm2": _kv_heads,
    "lfm2moe": lambda spec: _leading_dense(spec) | _kv_heads(spec),
    "llama4": _llama4,
    "mistral3": _ministral,
    "mistral4": _mistral4,
    "nemotron_h_moe": _nemotron,
    "olmo2": _olmo,
    "phi3": _phi,
    "qwen3next": _qwen3_next,
    "qwen35": _qwen3_next,
    "qwen35moe": _qwen3_next,
}


def _implied(metadata: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of an absent key."""
    heads, dim = metadata.get("attention.head_count"), metadata.get("embedding_length")
    if key == "attention.head_count_kv":
        return heads
    if key == "attention.key_length" and isinstance(heads, int) and isinstance(dim, int) and heads > 0:
        return dim // heads
    return default
