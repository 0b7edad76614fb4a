"""The metadata that llama.cpp's converter writes for a config, by tables that are independent of the loader."""

from collections.abc import Callable
from math import log, sqrt
from typing import Any

from tests.weights.checkpoints import Config

WINDOWED = {"gpt-oss", "olmo2", "afmoe", "gemma4", "gemma2", "gemma3"}
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
    "expert_used_count": "num_experts_per_tok num_experts_per_token top_k_experts",
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
RECURRENT = {
    "ssm.conv_kernel": "mamba_d_conv conv_kernel linear_conv_kernel_dim",
    "ssm.state_size": "mamba_d_state ssm_state_size linear_key_head_dim",
    "ssm.group_count": "mamba_n_groups n_groups linear_num_key_heads",
    "ssm.time_step_rank": "mamba_n_heads mamba_num_heads linear_num_value_heads",
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


def _rotated(config: Config, share: float = 1.0) -> dict[str, Any]:
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {"rope.dimension_count": int(width * share)}


def _pattern(config: Config) -> dict[str, Any]:
    kinds = config.get("layer_types")
    return {"attention.sliding_window_pattern": [kind == "sliding_attention" for kind in kinds]} if kinds else {}


def _phi(config: Config) -> dict[str, Any]:
    original, scaled = config["max_position_embeddings"], {}
    if scaling := config["rope_scaling"]:
        original = config["original_max_position_embeddings"]
        usual = sqrt(1 + log(config["max_position_embeddings"] / original) / log(original)) if original > 1 else None
        scaled = {"rope.scaling.attn_factor": scaling.get("attention_factor", usual)}
    return _rotated(config, config.get("partial_rotary_factor", 1.0)) | {
        "rope.scaling.original_context_length": original,
        "attention.sliding_window": config["sliding_window"] or 0,
        **scaled,
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


def _glm5(config: Config) -> dict[str, Any]:
    predicted, types = config["num_nextn_predict_layers"], config.get("indexer_types")
    return _deepseek(config) | {
        "nextn_predict_layers": predicted,
        "block_count": config["num_hidden_layers"] + predicted,
        "attention.indexer.head_count": config["index_n_heads"],
        "attention.indexer.key_length": config["index_head_dim"],
        "attention.indexer.top_k": config["index_topk"],
        **({"attention.indexer.types": [kind == "full" for kind in types]} if types else {}),
    }


def _kimi_linear(config: Config) -> dict[str, Any]:
    linear = config["linear_attn_config"]
    heads = [int(i + 1 in linear["full_attn_layers"]) for i in range(config["num_hidden_layers"])]
    said = {"attention.head_count_kv": heads, "kda.head_dim": linear["head_dim"]}
    return _latent(config) | said | {"ssm.conv_kernel": linear["short_conv_kernel_size"]}


def _llama4(config: Config) -> dict[str, Any]:
    return _rotated(config) | {
        "feed_forward_length": config["intermediate_size_mlp"],
        "expert_feed_forward_length": config["intermediate_size"],
        "interleave_moe_layer_step": config["interleave_moe_layer_step"],
    }


def _qwen_hybrid(config: Config) -> dict[str, Any]:
    said = taken(config, EXPERTS, without="expert_weights_norm") | _rotated(config, 0.25) | taken(config, RECURRENT)
    said["ssm.inner_size"] = config["linear_value_head_dim"] * config["linear_num_value_heads"]
    said["full_attention_interval"] = config["full_attention_interval"]
    if sections := (config.get("rope_parameters") or {}).get("mrope_section"):
        said |= {"rope.dimension_sections": [*sections, 0], "nextn_predict_layers": config["mtp_num_hidden_layers"]}
        said["block_count"] = config["num_hidden_layers"] + config["mtp_num_hidden_layers"]
    return said


def _granite(config: Config) -> dict[str, Any]:
    kv_heads = config["num_key_value_heads"]
    return (
        _rotated(config)
        | taken(config, RECURRENT)
        | {
            "attention.head_count_kv": [kv_heads * (kind == "attention") for kind in config["layer_types"]],
            "attention.scale": float(config["attention_multiplier"]),
            "embedding_scale": float(config["embedding_multiplier"]),
            "residual_scale": float(config["residual_multiplier"]),
            "logit_scale": float(config["logits_scaling"]),
            "expert_shared_feed_forward_length": config["shared_intermediate_size"],
            "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
            "rope.scaling.finetuned": False,
            "context_length": 2**20,
        }
    )


def _nemotron(config: Config) -> dict[str, Any]:
    """Multi-token prediction is one layer more, with attention and with experts."""
    predicted = config.get("num_nextn_predict_layers") or 0
    names = {"attention": "*", "full_attention": "*", "moe": "E"}
    listed = [names.get(kind, "M") for kind in config.get("layers_block_type") or []]
    pattern = listed or list(config["hybrid_override_pattern"])
    said = taken(config, EXPERTS) | _rotated(config) | taken(config, RECURRENT)
    said["attention.head_count_kv"] = [config["num_key_value_heads"] * (x == "*") for x in pattern]
    said["feed_forward_length"] = [config["moe_intermediate_size"] * (x == "E") for x in pattern]
    if predicted:
        said |= {"nextn_predict_layers": predicted, "block_count": len(pattern) + predicted}
        said["attention.head_count_kv"].append(config["num_key_value_heads"])
        said["feed_forward_length"].append(config["moe_intermediate_size"])
    if config.get("moe_latent_size"):
        said["moe_latent_size"] = config["moe_latent_size"]
    said["ssm.inner_size"] = config["mamba_num_heads"] * config["mamba_head_dim"]
    return said | {"rope.scaling.finetuned": False, "context_length": 2**20}


def _lfm2(config: Config) -> dict[str, Any]:
    """The dense models' width follows from the published one by a rule."""
    said, kv_heads = {"shortconv.l_cache": config["conv_L_cache"]}, config["num_key_value_heads"]
    if config.get("block_auto_adjust_ff_dim"):
        width = int(config["block_ffn_dim_multiplier"] * int(2 * config["intermediate_size"] / 3))
        multiple = config["block_multiple_of"]
        said["feed_forward_length"] = multiple * ((width + multiple - 1) // multiple)
    return said | {"attention.head_count_kv": [kv_heads * (kind != "conv") for kind in config["layer_types"]]}


def _lfm2_mixture(config: Config) -> dict[str, Any]:
    said = {key: value for key, value in taken(config, EXPERTS).items() if not key.startswith("expert_weights")}
    return said | _lfm2(config) | {"expert_gating_func": 2}


def _ministral(config: Config) -> dict[str, Any]:
    """Mistral Small 3.1 has neither of these fields."""
    names = {
        "rope.scaling.yarn_log_multiplier": "mscale_all_dim",
        "attention.temperature_scale": "llama_4_scaling_beta",
    }
    return _rotated(config) | taken(config.get("rope_scaling") or {}, names)


def _gemma4(config: Config) -> dict[str, Any]:
    full, local = config["global_head_dim"], config["head_dim"]
    shared, layers, kinds = config["num_kv_shared_layers"], config["num_hidden_layers"], config["layer_types"]
    said = _pattern(config) | taken(config, {"expert_feed_forward_length": "moe_intermediate_size"})
    if config["num_global_key_value_heads"]:
        of_kind = {"full_attention": config["num_global_key_value_heads"]}
        said["attention.head_count_kv"] = [of_kind.get(kind, config["num_key_value_heads"]) for kind in kinds]
    if config["use_double_wide_mlp"]:
        width = config["intermediate_size"]
        said["feed_forward_length"] = [width * (2 if i >= layers - shared else 1) for i in range(layers)]
    return said | {
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input") or 0,
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
    "glm-dsa": _glm5,
    "glm4moe": _glm,
    "gpt-oss": lambda config: {"expert_feed_forward_length": config["intermediate_size"]},
    "gpt2": lambda config: {"feed_forward_length": config.get("n_inner") or 4 * config["n_embd"]},
    "granitehybrid": _granite,
    "kimi-linear": _kimi_linear,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2_mixture,
    "llama4": _llama4,
    "minimax-m2": lambda config: {
        "expert_feed_forward_length": config["intermediate_size"],
        "rope.dimension_count": config["rotary_dim"],
    },
    "mistral3": _ministral,
    "mistral4": _deepseek,
    "nemotron_h_moe": _nemotron,
    "olmo2": _pattern,
    "phi3": _phi,
    "qwen3moe": lambda config: {"expert_feed_forward_length": config["moe_intermediate_size"]},
    "qwen3next": _qwen_hybrid,
    "qwen35": _qwen_hybrid,
    "qwen35moe": _qwen_hybrid,
}
