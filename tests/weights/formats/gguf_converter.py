""".gguf files of references, written as llama.cpp's converter writes them: by tables of names and of metadata of our own.

A name here is what follows the layer's number, of transformers' modules and of GGUF.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from tests import toys
from tests.weights.checkpoints import Config, Tensors

KINDS = {
    "llama3.1-8b": "llama",
    "llama3.2-1b": "llama",
    "mistral-small-3.1-24b": "llama",
    "mixtral-8x7b": "llama",
    "qwen2.5-0.5b": "qwen2",
    "qwen2.5-7b": "qwen2",
    "qwen3-0.6b": "qwen3",
    "qwen3-30b-a3b": "qwen3moe",
    "olmo2-7b": "olmo2",
    "smollm3-3b": "smollm3",
    "gpt-oss-20b": "gpt-oss",
    "gemma2-2b": "gemma2",
    "gemma3-1b": "gemma3",
    "phi4-14b": "phi3",
    "glm4.5-air-106b": "glm4moe",
    "glm4.5-355b": "glm4moe",
    "gpt2-small": "gpt2",
    "olmo3-7b": "olmo2",
    "deepseek-v3-671b": "deepseek2",
    "moonlight-16b-a3b": "deepseek2",
    "kimi-k2-1t": "deepseek2",
    "minimax-m2-230b": "minimax-m2",
    "llama4-scout-109b": "llama4",
    "llama4-maverick-400b": "llama4",
    "qwen3-next-80b-a3b": "qwen3next",
    "qwen3.5-0.8b": "qwen35",
    "qwen3.5-35b-a3b": "qwen35moe",
    "granite4-h-tiny": "granitehybrid",
    "nemotron3-nano-30b-a3b": "nemotron_h_moe",
    "nemotron3-super-120b-a12b": "nemotron_h_moe",
    "kimi-linear-48b-a3b": "kimi-linear",
    "lfm2-350m": "lfm2",
    "lfm2-8b-a1b": "lfm2moe",
    "trinity-nano-6b": "afmoe",
    "ministral3-3b": "mistral3",
    "gemma4-31b": "gemma4",
}
PAIRED = {"llama", "smollm3", "mistral3", "granitehybrid"}
GEMMA, QWEN_HYBRIDS = {"gemma2", "gemma3"}, {"qwen3next", "qwen35", "qwen35moe"}
POST = {"olmo2", "gpt-oss", "gemma4", "glm4moe", "afmoe", *GEMMA, *QWEN_HYBRIDS}
WINDOWED = {"gpt-oss", "olmo2", "afmoe", "gemma4", *GEMMA}
OUTSIDE = {
    "token_embd": "embed_tokens embeddings wte",
    "output_norm": "norm norm_f ln_f",
    "token_embd_norm": "embedding_norm",
    "output": "lm_head",
    "position_embd": "wpe",
}
NAMES = [
    (r"input_layernorm|operator_norm|ln_1|norm", "attn_norm"),
    (r"pre_feedforward_layernorm|pre_mlp_layernorm|ffn_norm|ln_2", "ffn_norm"),
    (r"post_feedforward_layernorm|post_mlp_layernorm", "post_ffw_norm"),
    (r"(?:self_attn|mixer)\.([qkv])_proj", r"attn_\1"),
    (r"self_attn\.qkv_proj|attn\.c_attn|linear_attn\.in_proj_qkv", "attn_qkv"),
    (r"(?:self_attn|mixer)\.o_proj|self_attn\.out_proj|attn\.c_proj", "attn_output"),
    (r"self_attn\.([qk])_(?:norm|layernorm)", r"attn_\1_norm"),
    (r"self_attn\.q_([ab])_proj", r"attn_q_\1"),
    (r"self_attn\.(q|kv)_a_layernorm", r"attn_\1_a_norm"),
    (r"self_attn\.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    (r"self_attn\.gate_proj|linear_attn\.in_proj_z", "attn_gate"),
    (r"(?:mlp|feed_forward)\.(gate|up|down)_proj", r"ffn_\1"),
    (r"feed_forward\.w1", "ffn_gate"),
    (r"feed_forward\.w3|mlp\.c_fc|mlp\.gate_up_proj", "ffn_up"),
    (r"feed_forward\.w2|mlp\.c_proj", "ffn_down"),
    (r"(?:mlp|feed_forward|mixer|block_sparse_moe)\.(?:router|gate|router\.gate)", "ffn_gate_inp"),
    (r"(?:mlp|feed_forward|mixer)\.shared_experts?\.(gate|up|down)_proj", r"ffn_\1_shexp"),
    (r"shared_mlp\.output_linear", "ffn_down_shexp"),
    (r"mlp\.shared_expert_gate", "ffn_gate_inp_shexp"),
    (r"mixer\.fc1_latent_proj", "ffn_latent_down"),
    (r"mixer\.fc2_latent_proj", "ffn_latent_up"),
    (r"conv\.(conv|in_proj|out_proj)", r"shortconv.\1"),
    (r"(?:mamba|mixer)\.in_proj", "ssm_in"),
    (r"linear_attn\.in_proj_ba", "ssm_ba"),
    (r"linear_attn\.in_proj_a", "ssm_alpha"),
    (r"linear_attn\.in_proj_b|self_attn\.b_proj", "ssm_beta"),
    (r"self_attn\.forget_gate\.f_([ab])_proj", r"ssm_f_\1"),
    (r"self_attn\.g_([ab])_proj", r"ssm_g_\1"),
    (r"(?:mamba|mixer|linear_attn)\.conv1d", "ssm_conv1d"),
    (r"(?:mamba|mixer|linear_attn)\.norm|self_attn\.o_norm", "ssm_norm"),
    (r"(?:mamba|mixer|linear_attn)\.out_proj", "ssm_out"),
]
# Without "weight" or "bias" at their ends there.
WHOLE = [
    (r".*e_score_correction_bias|.*expert_bias", "exp_probs_b.bias"),
    (r".*dt_bias", "ssm_dt.bias"),
    (r".*A_log", "ssm_a"),
    (r".*\.D", "ssm_d"),
    (r"self_attn\.sinks", "attn_sinks.weight"),
    (r"layer_scalar", "layer_output_scale.weight"),
]


def renamed(name: str, kind: str) -> str:
    if not (found := re.fullmatch(r".*?(?:layers|h)\.(\d+)\.(.+)", name)):
        stem, _, leaf = name.rpartition(".")
        (new,) = [new for new, names in OUTSIDE.items() if stem.rpartition(".")[2] in names.split()]
        return f"{new}.{leaf}"
    place, local = f"blk.{found[1]}", found[2]
    for pattern, whole in WHOLE:
        if re.fullmatch(pattern, local):
            return f"{place}.{whole}"
    stem, _, leaf = local.rpartition(".")
    if stem == "post_attention_layernorm":
        return f"{place}.{'post_attention_norm' if kind in POST else 'ffn_norm'}.{leaf}"
    (new,) = [match.expand(ours) for pattern, ours in NAMES if (match := re.fullmatch(pattern, stem))]
    return f"{place}.{new}.{leaf}"


def converted(name: str, tensor: Tensor, kind: str, config: Config) -> Tensors:
    """One of transformers' tensors -> as llama.cpp stores it."""
    numbers = re.findall(r"\.(\d+)\.", name)
    layer = f"blk.{numbers[0]}" if numbers else ""
    if ".experts." in name:
        return experts(name.rpartition(".")[2], layer, tensor, kind)
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        tensor = tensor.T
    if kind in PAIRED and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        width = len(tensor) // heads
        order = [h * width + half for h in range(heads) for j in range(width // 2) for half in (j, j + width // 2)]
        tensor = tensor[order]
    if kind in GEMMA and "norm" in name:
        tensor = tensor + 1
    if kind in QWEN_HYBRIDS and name.endswith("norm.weight") and "linear_attn" not in name:
        tensor = tensor + 1
    if kind.startswith("qwen35") and "linear_attn" in name:
        tensor = tiled(name, tensor, config)
    if kind == "qwen3next" and "in_proj_qkvz" in name:
        return unpacked(layer, tensor, config)
    if name.endswith("kv_b_proj.weight"):
        per_head = tensor.unflatten(0, (config["num_attention_heads"], -1))
        keys, values = per_head.split([config["qk_nope_head_dim"], config["v_head_dim"]], dim=1)
        return {f"{layer}.attn_k_b.weight": keys.transpose(1, 2), f"{layer}.attn_v_b.weight": values}
    if "shared_mlp.input_linear" in name:
        gate, up = tensor.chunk(2)
        return {f"{layer}.ffn_gate_shexp.weight": gate, f"{layer}.ffn_up_shexp.weight": up}
    if "self_attn.conv1d" in name:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.ssm_conv1d_{x}.weight": part.reshape(1, len(part), 1, -1) for x, part in parts}
    return {renamed(name, kind): recurrent(name, tensor, kind, config)}


def recurrent(name: str, tensor: Tensor, kind: str, config: Config) -> Tensor:
    """What changes in the parameters of recurrent layers and of convolutions."""
    if name.endswith("A_log"):
        tensor = -tensor.exp()
    if kind in ("granitehybrid", "nemotron_h_moe"):
        if name.endswith(("A_log", ".D")):
            return tensor[:, None]
        if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
            return tensor.reshape(config["mamba_n_groups" if kind == "granitehybrid" else "n_groups"], -1)
    return tensor.squeeze(1) if name.endswith(("conv1d.weight", "conv.conv.weight")) else tensor


def tiled(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Value heads (key head, number) -> (number, key head), in every axis that has them."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    before = 2 * keys * config["linear_key_head_dim"] if "in_proj_qkv" in name or "conv1d" in name else 0
    if name.endswith("norm.weight"):
        return tensor
    if "out_proj" in name:
        return tiled("", tensor.T, config).T
    width = (len(tensor) - before) // values
    order = [
        before + (key * (values // keys) + number) * width + i
        for number in range(values // keys)
        for key in range(keys)
        for i in range(width)
    ]
    return tensor[[*range(before), *order]]


def unpacked(layer: str, tensor: Tensor, config: Config) -> Tensors:
    """Qwen3-Next's queries, keys, values and gates, a key head after the other -> all of a kind together."""
    key, number = config["linear_key_head_dim"], config["linear_num_value_heads"] // config["linear_num_key_heads"]
    value = number * config["linear_value_head_dim"]
    heads = tensor.unflatten(0, (config["linear_num_key_heads"], -1))
    q, k, v, z = (part.flatten(0, 1) for part in heads.split([key, key, value, value], dim=1))
    return {f"{layer}.attn_qkv.weight": torch.cat([q, k, v]), f"{layer}.attn_gate.weight": z}


def experts(part: str, layer: str, tensor: Tensor, kind: str) -> Tensors:
    """transformers' experts: gate and up in one, for gpt-oss by turns; transposed for gpt-oss and Llama 4."""
    bias = part.endswith("_bias")
    if kind in ("gpt-oss", "llama4") and not bias:
        tensor = tensor.transpose(1, 2)
    leaf = "bias" if bias else "weight"
    if part.startswith(("down", "up")):
        return {f"{layer}.ffn_{part.partition('_')[0]}_exps.{leaf}": tensor}
    half = tensor.shape[1] // 2
    gate, up = (tensor[:, 0::2], tensor[:, 1::2]) if kind == "gpt-oss" else (tensor[:, :half], tensor[:, half:])
    return {f"{layer}.ffn_gate_exps.{leaf}": gate, f"{layer}.ffn_up_exps.{leaf}": up}


USUAL = {
    "context_length": "max_position_embeddings n_positions model_max_length",
    "block_count": "num_hidden_layers n_layer",
    "embedding_length": "hidden_size n_embd",
    "feed_forward_length": "intermediate_size n_inner",
    "attention.head_count": "num_attention_heads n_head",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts num_local_experts n_routed_experts",
    "expert_used_count": "num_experts_per_tok num_experts_per_token",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
EXPERTS = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts num_shared_experts",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size moe_shared_expert_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor route_scale",
    "expert_weights_norm": "norm_topk_prob route_norm",
    "leading_dense_block_count": "first_k_dense_replace num_dense_layers",
}
YARN = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
FLOATS = "epsilon factor beta_fast beta_slow freq_base weights_scale softcapping".split()


def taken(config: Config, table: dict[str, str], without: str = "") -> dict[str, Any]:
    """The fields of a table that the config has, by GGUF's keys."""
    found = {}
    for key, names in table.items():
        value = next((config[name] for name in names.split() if config.get(name) is not None), None)
        if value is not None and key not in without.split():
            found[key] = float(value) if key.endswith(tuple(FLOATS)) else value
    return found


def fields(config: Config, kind: str) -> dict[str, Any]:
    """The metadata that the converter writes for a config."""
    said = taken(config, USUAL)
    ropes = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = ropes.get("full_attention", ropes)
    for key, source in (("rope.freq_base", config | rope), ("rope.freq_base_swa", ropes.get("sliding_attention", {}))):
        if "rope_theta" in source:
            said[key] = float(source["rope_theta"])
    if rope.get("rope_type", rope.get("type")) == "yarn":
        said["rope.scaling.type"] = "yarn"
        said |= {f"rope.scaling.{key}": value for key, value in taken(rope, YARN).items()}
    if "sigmoid" in (config.get(name) for name in ("scoring_func", "score_func", "moe_router_activation_func")):
        said["expert_gating_func"] = 2
    if kind in WINDOWED and config.get("sliding_window"):
        said["attention.sliding_window"] = config["sliding_window"]
    return said | (MORE[kind](config) if kind in MORE else {})


def _gpt_oss(config: Config) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config["intermediate_size"],
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 64,
    }


def _rotated(config: Config, share: float = 1.0) -> dict[str, Any]:
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {"rope.dimension_count": int(width * share)}


def _pattern(config: Config) -> dict[str, Any]:
    kinds = config.get("layer_types")
    return {"attention.sliding_window_pattern": [kind == "sliding_attention" for kind in kinds]} if kinds else {}


def _phi(config: Config) -> dict[str, Any]:
    return _rotated(config) | {
        "rope.scaling.original_context_length": config["max_position_embeddings"],
        "attention.sliding_window": 0,
    }


def _glm(config: Config) -> dict[str, Any]:
    predicted = config["num_nextn_predict_layers"]
    said = taken(config, EXPERTS) | _rotated(config, 0.5) | {"expert_gating_func": 2, "nextn_predict_layers": predicted}
    return said | {"block_count": config["num_hidden_layers"] + predicted}


def _latent(config: Config) -> dict[str, Any]:
    rank, rotary = config["kv_lora_rank"], config["qk_rope_head_dim"]
    said = taken(config, EXPERTS) | {"attention.head_count_kv": 1, "attention.kv_lora_rank": rank}
    said |= {"attention.key_length": rank + rotary, "rope.dimension_count": rotary}
    said |= {"attention.key_length_mla": config["qk_nope_head_dim"] + rotary}
    said |= {"attention.value_length_mla": config["v_head_dim"]}
    return said | ({"attention.q_lora_rank": config["q_lora_rank"]} if config["q_lora_rank"] else {})


def _deepseek(config: Config) -> dict[str, Any]:
    said = _latent(config) | {"attention.value_length": config["kv_lora_rank"]}
    gain = (config.get("rope_scaling") or {}).get("mscale_all_dim")
    return said | ({"rope.scaling.yarn_log_multiplier": 0.1 * gain} if gain else {})


def _kimi_linear(config: Config) -> dict[str, Any]:
    linear = config["linear_attn_config"]
    heads = [int(i + 1 in linear["full_attn_layers"]) for i in range(config["num_hidden_layers"])]
    said = _latent(config) | {"attention.head_count_kv": heads, "kda.head_dim": linear["head_dim"]}
    del said["expert_weights_scale"]
    return said | {
        "ssm.conv_kernel": linear["short_conv_kernel_size"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
    }


def _minimax(config: Config) -> dict[str, Any]:
    return {"expert_feed_forward_length": config["intermediate_size"], "rope.dimension_count": config["rotary_dim"]}


def _llama4(config: Config) -> dict[str, Any]:
    return _rotated(config) | {
        "feed_forward_length": config["intermediate_size_mlp"],
        "expert_feed_forward_length": config["intermediate_size"],
        "interleave_moe_layer_step": config["interleave_moe_layer_step"],
    }


def _qwen_hybrid(config: Config) -> dict[str, Any]:
    values = config["linear_num_value_heads"]
    said = taken(config, EXPERTS, without="expert_weights_norm") | _rotated(config, 0.25) | {
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": values,
        "ssm.inner_size": config["linear_value_head_dim"] * values,
        "full_attention_interval": config["full_attention_interval"],
    }
    if sections := (config.get("rope_parameters") or {}).get("mrope_section"):
        said |= {"rope.dimension_sections": [*sections, 0], "nextn_predict_layers": config["mtp_num_hidden_layers"]}
        said["block_count"] = config["num_hidden_layers"] + config["mtp_num_hidden_layers"]
    return said


def _granite(config: Config) -> dict[str, Any]:
    kv_heads = config["num_key_value_heads"]
    return _rotated(config) | {
        "attention.head_count_kv": [kv_heads * (kind == "attention") for kind in config["layer_types"]],
        "attention.scale": float(config["attention_multiplier"]),
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
        "expert_shared_feed_forward_length": config["shared_intermediate_size"],
        "ssm.conv_kernel": config["mamba_d_conv"],
        "ssm.state_size": config["mamba_d_state"],
        "ssm.group_count": config["mamba_n_groups"],
        "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
        "ssm.time_step_rank": config["mamba_n_heads"],
        "rope.scaling.finetuned": False,
        "context_length": 2**20,
    }


def _nemotron(config: Config) -> dict[str, Any]:
    """Multi-token prediction is one layer more, with attention and with experts."""
    pattern, predicted = config["hybrid_override_pattern"], config.get("num_nextn_predict_layers", 0)
    said = taken(config, EXPERTS) | _rotated(config)
    said["attention.head_count_kv"] = [config["num_key_value_heads"] * (x == "*") for x in pattern]
    said["feed_forward_length"] = [config["moe_intermediate_size"] * (x == "E") for x in pattern]
    if predicted:
        said |= {"nextn_predict_layers": predicted, "block_count": len(pattern) + predicted}
        said["attention.head_count_kv"].append(config["num_key_value_heads"])
        said["feed_forward_length"].append(config["moe_intermediate_size"])
    if config.get("moe_latent_size"):
        said["moe_latent_size"] = config["moe_latent_size"]
    return said | {
        "ssm.conv_kernel": config["conv_kernel"],
        "ssm.state_size": config["ssm_state_size"],
        "ssm.group_count": config["n_groups"],
        "ssm.inner_size": config["mamba_num_heads"] * config["mamba_head_dim"],
        "ssm.time_step_rank": config["mamba_num_heads"],
        "rope.scaling.finetuned": False,
        "context_length": 2**20,
    }


def _lfm2(config: Config) -> dict[str, Any]:
    """The dense models' width is the published one by a rule, which gives 96 for the toy's."""
    said = {"shortconv.l_cache": config["conv_L_cache"]}
    kv_heads = config["num_key_value_heads"]
    return said | {"attention.head_count_kv": [kv_heads * (kind != "conv") for kind in config["layer_types"]]}


def _lfm2_mixture(config: Config) -> dict[str, Any]:
    said = {key: value for key, value in taken(config, EXPERTS).items() if not key.startswith("expert_weights")}
    return said | _lfm2(config) | {"expert_gating_func": 2}


def _ministral(config: Config) -> dict[str, Any]:
    rope = config["rope_scaling"]
    return _rotated(config) | {
        "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
        "attention.temperature_scale": rope["llama_4_scaling_beta"],
    }


def _gemma4(config: Config) -> dict[str, Any]:
    full, local = config["global_head_dim"], config["head_dim"]
    kv_heads = {"full_attention": config["num_global_key_value_heads"], "sliding_attention": config["num_key_value_heads"]}
    return _pattern(config) | {
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "attention.head_count_kv": [kv_heads[kind] for kind in config["layer_types"]],
        **{f"attention.{name}_length": full for name in ("key", "value")},
        **{f"attention.{name}_length_swa": local for name in ("key", "value")},
        "rope.dimension_count": full,
        "rope.dimension_count_swa": local,
        "final_logit_softcapping": config["final_logit_softcapping"],
    }


MORE: dict[str, Callable[[Config], dict[str, Any]]] = {
    "afmoe": lambda config: taken(config, EXPERTS) | _rotated(config),
    "deepseek2": _deepseek,
    "gemma2": lambda config: {key: config[key] for key in ("attn_logit_softcapping", "final_logit_softcapping")},
    "gemma4": _gemma4,
    "glm4moe": _glm,
    "gpt-oss": _gpt_oss,
    "granitehybrid": _granite,
    "kimi-linear": _kimi_linear,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2_mixture,
    "llama4": _llama4,
    "minimax-m2": _minimax,
    "mistral3": _ministral,
    "nemotron_h_moe": _nemotron,
    "olmo2": _pattern,
    "phi3": _phi,
    "qwen3moe": lambda config: {"expert_feed_forward_length": config["moe_intermediate_size"]},
    "qwen3next": _qwen_hybrid,
    "qwen35": _qwen_hybrid,
    "qwen35moe": _qwen_hybrid,
}


def rope_freqs(config: Config) -> np.ndarray:
    """Llama 3.1's factors, by the converter's formula (in float64)."""
    scaling, width = config["rope_scaling"], config.get("head_dim") or 16
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor, found = scaling["original_max_position_embeddings"], scaling["factor"], []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (i / width)
        if wavelength < original / high:
            found.append(1)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def proportional_freqs(config: Config) -> np.ndarray:
    """Gemma 4's: pairs that do not rotate have a frequency of almost nothing."""
    pairs = config["global_head_dim"] // 2
    rotated = int(pairs * config["rope_parameters"]["full_attention"]["partial_rotary_factor"])
    return np.array([1.0] * rotated + [1e30] * (pairs - rotated), dtype=np.float32)


def write(path: Path, kind: str, said: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """A .gguf file. A pair of blocks and scales is written in the file's own form of MXFP4."""
    writer = gguf.GGUFWriter(path, kind)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add |= {bool: writer.add_bool, list: writer.add_array}
    for key, value in said.items():
        add[type(value)](f"{kind}.{key}", value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, mxfp4_bytes(*tensor), raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def mxfp4_bytes(blocks: Tensor, scales: Tensor) -> np.ndarray:
    """gpt-oss's blocks -> 17 bytes each: the scale, then elements 0 to 15 in low halves and 16 to 31 in high halves."""
    codes = torch.stack([blocks % 16, blocks // 16], dim=-1).flatten(-2)
    packed = torch.cat([scales[..., None], codes[..., :16] + 16 * codes[..., 16:]], dim=-1)
    return packed.flatten(-2).numpy()


class Case:
    """A toy reference, and its .gguf file's fields and tensors."""

    def __init__(self, name: str) -> None:
        self.name, self.kind = name, KINDS[name]
        self.config = toys.config(name)
        self.reference: nn.Module = toys.reference(name)
        tied = self.config.get("tie_word_embeddings") or self.kind in {*GEMMA, "gpt2"}
        self.said, self.tensors = fields(self.config, self.kind), dict[str, Any]()
        for key, tensor in self.reference.state_dict().items():
            if key != "lm_head.weight" or not tied:
                self.tensors |= converted(key, tensor, self.kind, self.config)
        if "llama3" in str(self.config.get("rope_scaling")):
            self.tensors["rope_freqs.weight"] = rope_freqs(self.config)
        if self.kind == "gemma4":
            self.tensors["rope_freqs.weight"] = proportional_freqs(self.config)
        if self.said.get("nextn_predict_layers"):
            last = self.said["block_count"] - 1
            self.tensors[f"blk.{last}.nextn.eh_proj.weight"] = np.ones((4, 8), dtype=np.float32)

    @torch.no_grad()
    def logits(self) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, self.config["vocab_size"], (2, 80), generator=torch.Generator().manual_seed(1))
        return tokens, self.reference(tokens).logits
