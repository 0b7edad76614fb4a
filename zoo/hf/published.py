"""A spec in the words of a published config.json.

A published field means one thing, whichever model_type it stands in: this table says them all, block by block. Which of
them a model_type has is known to the `from_hf` that reads them (zoo/hf/export.py).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from sys import float_info
from typing import Any

from zoo.blocks import (
    GLU,
    GQA,
    MLA,
    ClampedSwiGLU,
    GeGLU,
    GroupedSigmoidTopK,
    LinearScaling,
    Llama3Scaling,
    MoE,
    NoPE,
    RoPE,
    Scaling,
    SoftmaxTopK,
    SwiGLU,
    YarnScaling,
    yarn_gain,
)
from zoo.blocks.layer import Layer
from zoo.model.decoder import Decoder
from zoo.registry import Spec

Words = dict[str, Any]


def published(spec: Decoder) -> Words:
    """Every published field that has a meaning for this spec, by its name. Of several blocks of a kind, the first's."""
    first = {type(part): part for part in reversed(list(spec.walk()))}
    said = [words(first[kind]) for kind, words in BLOCKS.items() if kind in first]
    return {
        name: value for words in (*said, _decoder(spec), _plan(spec), _rotary(spec)) for name, value in words.items()
    }


BLOCKS: dict[type[Spec], Callable[[Any], Words]] = {
    GQA: lambda attn: {
        "num_attention_heads": attn.heads,
        "num_key_value_heads": attn.kv_heads,
        "head_dim": attn.head_dim,
        "query_pre_attn_scalar": round(max(attn.scale, 1e-6) ** -2) if attn.scale else None,  # whole in each release
        "attention_bias": attn.bias,
    },
    MLA: lambda attn: {
        "num_attention_heads": attn.heads,
        "num_key_value_heads": attn.heads,
        "q_lora_rank": attn.q_rank,
        "kv_lora_rank": attn.kv_rank,
        "qk_nope_head_dim": attn.nope_dim,
        "qk_rope_head_dim": attn.rope_dim,
        "v_head_dim": attn.v_dim,
        "attention_bias": False,
    },
    GLU: lambda ffn: {"intermediate_size": ffn.hidden, "mlp_bias": ffn.bias},
    SwiGLU: lambda act: {"hidden_act": "silu"},
    GeGLU: lambda act: {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    ClampedSwiGLU: lambda act: {
        "hidden_act": "silu",
        "swiglu_alpha": float(act.alpha),
        "swiglu_limit": float(act.limit),
    },
    MoE: lambda moe: {
        "num_experts": moe.experts,
        "num_local_experts": moe.experts,
        "n_routed_experts": moe.experts,
        "moe_intermediate_size": moe.expert.hidden,
        "n_shared_experts": moe.shared.hidden // moe.expert.hidden if moe.shared else None,
    },
    SoftmaxTopK: lambda router: {
        "num_experts_per_tok": router.k,
        "experts_per_token": router.k,
        "norm_topk_prob": router.renormalise,
    },
    GroupedSigmoidTopK: lambda router: {
        "num_experts_per_tok": router.k,
        "n_group": router.groups,
        "topk_group": router.keep,
        "routed_scaling_factor": float(router.scale),
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
}


def _decoder(spec: Decoder) -> Words:
    said = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.dim,
        "num_hidden_layers": len(spec.layers),
        "rms_norm_eps": float(spec.norm.eps),
        "tie_word_embeddings": spec.tied,
    }
    return said | ({"max_position_embeddings": spec.context} if spec.context else {})


def _plan(spec: Decoder) -> Words:
    """What differs from layer to layer."""
    windows = [layer.cache_spec().window for layer in spec.layers]
    turned = [not _holds(layer, NoPE) for layer in spec.layers]
    dense = [not _holds(layer, MoE) for layer in spec.layers]
    return {
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        "sliding_window": next(filter(None, windows), None),
        "use_sliding_window": any(windows),
        "no_rope_layers": [int(turn) for turn in turned],
        "no_rope_layer_interval": [*turned, False].index(False) + 1,
        "first_k_dense_replace": [*dense, False].index(False),
    }


def _holds(layer: Layer, kind: type[Spec]) -> bool:
    return any(isinstance(part, kind) for part in layer.walk())


def _rotary(spec: Decoder) -> Words:
    """The rotary encoding of layers that see everything, which may be scaled, and the base of those with a window."""
    turned = [(layer, part) for layer in spec.layers for part in layer.walk() if isinstance(part, RoPE)]
    if not turned:
        return {}
    layer, full = next((pair for pair in turned if not pair[0].cache_spec().window), turned[0])
    _, local = next((pair for pair in turned if pair[0].cache_spec().window), turned[0])
    said: Words = {"rope_theta": float(full.theta), "rope_local_base_freq": float(local.theta), "rope_scaling": None}
    if type(full.scaling) not in SCALINGS:
        return said
    scaling = SCALINGS[type(full.scaling)](full.scaling)
    said["rope_scaling"] = scaling | _temperature(full.scaling, layer)
    return said | {"initial_context_length": scaling.get("original_max_position_embeddings")}


SCALINGS: dict[type[Scaling | None], Callable[[Any], Words]] = {
    LinearScaling: lambda scaling: {"rope_type": "linear", "factor": float(scaling.factor)},
    Llama3Scaling: lambda scaling: {
        "rope_type": "llama3",
        "factor": float(scaling.factor),
        "low_freq_factor": float(scaling.low),
        "high_freq_factor": float(scaling.high),
        "original_max_position_embeddings": scaling.original,
    },
    YarnScaling: lambda scaling: {
        "rope_type": "yarn",
        "factor": float(scaling.factor),
        "original_max_position_embeddings": scaling.original,
        "beta_fast": float(scaling.fast),
        "beta_slow": float(scaling.slow),
        "truncate": scaling.truncate,
    },
}


def _temperature(scaling: Any, layer: Layer) -> Words:
    """The gain that goes with a scaling: on the scores of latent attention; on cos and sin if not the usual one."""
    usual, said = yarn_gain(scaling.factor), Words()
    if isinstance(layer.mixer, MLA) and layer.mixer.scale and usual > 1:
        plain = (layer.mixer.nope_dim + layer.mixer.rope_dim) ** -0.5
        mscale = ((layer.mixer.scale / plain) ** 0.5 - 1) / (usual - 1)
        if mscale > 0:
            said["mscale_all_dim"] = _solve(
                lambda mscale: plain * yarn_gain(scaling.factor, mscale) * yarn_gain(scaling.factor, mscale),
                layer.mixer.scale,
                mscale,
            )
    if isinstance(scaling, YarnScaling) and scaling.gain != usual:
        both = scaling.gain == 1 and "mscale_all_dim" in said  # a ratio of two gains, as DeepSeek says it
        said |= {"mscale": said["mscale_all_dim"]} if both else {"attention_factor": float(scaling.gain)}
    return said


def _solve(formula: Callable[[float], float], value: float, guess: float) -> float:
    """The number near `guess`, the shortest first, whose `formula` is exactly `value`; `guess` where there is none."""
    shorter = (float(f"{guess:.{digits}g}") for digits in range(1, 17))
    near = (guess * (1 + step * float_info.epsilon) for step in range(-8, 9))
    return next((number for number in chain(shorter, near) if formula(number) == value), guess)
