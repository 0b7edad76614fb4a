"""Facts about an architecture that the tests need beyond its published config: an entry of FAMILIES, if it has any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    widths: dict[str, float] = field(default_factory=dict)
    """Config field -> its largest value in a toy config, beside those in `tests.reference.TOY`."""
    names: dict[str, str] = field(default_factory=dict)
    """The usual name of a config field, where this family has another: {"hidden_size": "n_embd"}."""
    settled: tuple[str, ...] = ()
    """Config fields that have one value for the values of others: how many layers there are where a list names each."""
    toy: Callable[[Config, Config, int], Config] = lambda config, full, layers: {}
    """(the toy config so far, the published one, how many layers) -> the fields of the toy config to set otherwise."""
    wrappers: dict[str, str] = field(default_factory=dict)
    """model_type of the text model -> that of the multimodal model around it."""
    misnamed: dict[str, str] = field(default_factory=dict)
    """Part of a tensor's name that the reference writes -> what released files, which it reads too, have there."""
    transposed: tuple[str, ...] = ()
    """Ends of the names of the reference's matrices that are multiplied as x @ W: their fan-in is the next to last
    side, where everyone else's is the last."""
    factors: dict[str, float] = field(default_factory=dict)
    """Ends of the names of the reference's tensors -> a factor of their random values."""


# Indexers choose fewer tokens than a test has, and by enough heads that few scores are ties.
INDEX = {"index_n_heads": 16, "index_head_dim": 24, "index_topk": 24}
# States remember about 15 tokens, since trained models have long memories. If a state held only the last token, keys
# nearly orthogonal to the query would leave a small sum, and its normalisation would amplify rounding errors.
DELTA_NET: dict[str, Any] = dict(
    factors={"linear_attn.dt_bias": -3.0},
    widths={"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
    | {"linear_value_head_dim": 24},
)
TRANSPOSED_EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def _deepseek_v4(config: Config, full: Config, layers: int) -> Config:
    """Heavy compression covers 8 tokens, so that tests have many blocks. `compress_ratios` has an entry for each layer,
    and one for multi-token prediction."""
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
    return {"compress_ratios": [*full["compress_ratios"][:layers], 0], "compress_rates": rates}


def _gemma4(config: Config, full: Config, layers: int) -> Config:
    """The heads of layers without a window stay wider. If layers share keys and values, the last ones do, and one group
    of layers before them has its own."""
    kv_heads = full["num_global_key_value_heads"]
    period = full["layer_types"].index("full_attention") + 1
    shared = {"num_kv_shared_layers": full["num_kv_shared_layers"] and layers - period}
    return shared | {"global_head_dim": 32, "num_global_key_value_heads": min(kv_heads, 2) if kv_heads else None}


def _granite4(config: Config, full: Config, layers: int) -> Config:
    """A shared expert as many times as wide as a routed one, Mamba-2 twice as wide as the model, and scores divided by
    the width of a head."""
    times = full["shared_intermediate_size"] / full["intermediate_size"]
    shared = {"shared_intermediate_size": round(times * config["intermediate_size"])}
    return shared | {"mamba_d_head": 2 * config["hidden_size"] // 4, "attention_multiplier": 1 / 16}


def _kimi_linear(config: Config, full: Config, layers: int) -> Config:
    """Sizes and lists of layers, counted from one, in an object of the config."""
    given = full["linear_attn_config"]
    lists = {name: [i for i in given[name] if i <= layers] for name in ("full_attn_layers", "kda_layers")}
    return {"linear_attn_config": given | lists | {"num_heads": 4, "head_dim": 24}}


def _lfm2(config: Config, full: Config, layers: int) -> Config:
    """The layers with attention, where they are listed by number."""
    return {"full_attn_idxs": [i for i in full["full_attn_idxs"] if i < layers]} if "full_attn_idxs" in full else {}


def _mistral4(config: Config, full: Config, layers: int) -> Config:
    """The share of the rotary part in a head of the toy's widths."""
    rotary, plain = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    return {"rope_scaling": config["rope_scaling"] | {"partial_rotary_factor": rotary / (rotary + plain)}}


def _nemotron3(config: Config, full: Config, layers: int) -> Config:
    """The first layers, a shared expert as many times as wide as a routed one, and Mamba-2 as many times as wide as the
    model, where it is a multiple."""
    plans = {name: full[name][:layers] for name in ("hybrid_override_pattern", "layers_block_type") if name in full}
    times = full["moe_shared_expert_intermediate_size"] / full["moe_intermediate_size"]
    expand, rest = divmod(full["mamba_num_heads"] * full["mamba_head_dim"], full["hidden_size"])
    widths = {"moe_shared_expert_intermediate_size": round(times * config["moe_intermediate_size"])}
    return plans | widths | ({} if rest else {"mamba_head_dim": expand * config["hidden_size"] // 4})


def _phi4(config: Config, full: Config, layers: int) -> Config:
    """Every eighth factor of LongRoPE, for the 6 pairs of the toy's heads, in place of 48. Every pass of more than one
    token goes beyond an original context of one: passes within it would rotate their keys otherwise than the whole
    pass. The window is twice as long as the context."""
    scaling = full["rope_scaling"]
    if scaling is None:
        return {}
    factors = {name: scaling[name][::8] for name in ("short_factor", "long_factor")}
    gain = {"attention_factor": (1 + 5 / 12) ** 0.5}  # ln 32 / ln 4096
    longer = {"sliding_window": 2 * config["max_position_embeddings"], "original_max_position_embeddings": 1}
    return {"rope_scaling": scaling | factors | gain, **longer}


# By the name of the module in zoo/architectures.
FAMILIES: dict[str, Family] = {
    "deepseek_v3_2": Family(widths=INDEX),
    "deepseek_v4": Family(
        toy=_deepseek_v4,
        widths=INDEX | {"index_topk": 6, "o_groups": 2, "o_lora_rank": 20, "swiglu_limit": 1.0},
        misnamed={"model.embed_tokens.": "embed.", "model.hc_head.hc_": "hc_head_", "attn.norm.": "attn.kv_norm."}
        | {"model.": ""},
    ),
    "gemma2": Family(widths={"attn_logit_softcapping": 1.0, "final_logit_softcapping": 8.0}),
    "gemma3": Family(wrappers={"gemma3_text": "gemma3"}),
    "gemma4": Family(
        toy=_gemma4,
        widths={"final_logit_softcapping": 8.0, "top_k_experts": 3}
        | {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 24},
        settled=("vocab_size_per_layer_input",),
        # Scores are not scaled: with queries and keys normalised to one per element, attention would amplify rounding.
        factors={"self_attn.q_norm.weight": 24**-0.5},
        wrappers={"gemma4_text": "gemma4", "gemma4_unified_text": "gemma4_unified"},
    ),
    "glm5": Family(widths=INDEX),
    "gpt2": Family(
        names={"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        | {"max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon"},
        widths={"n_ctx": 1024},
        toy=lambda config, full, layers: {"n_inner": 96},
        transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    ),
    "gpt_oss": Family(
        widths={"experts_per_token": 3, "initial_context_length": 64, "swiglu_limit": 1.0},  # the clamp is reached
        transposed=TRANSPOSED_EXPERTS,
    ),
    "granite4": Family(widths={"mamba_n_heads": 4, "mamba_d_state": 16, "logits_scaling": 1.5}, toy=_granite4),
    "kimi_linear": Family(
        names={"num_experts_per_tok": "num_experts_per_token", "max_position_embeddings": "model_max_length"}
        | {"n_group": "num_expert_group"},
        settled=("num_hidden_layers",),
        misnamed={
            f"layers.0.block_sparse_moe.{name}_proj": f"layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
        },
        toy=_kimi_linear,
    ),
    "lfm2": Family(
        widths={"block_dim": 64, "conv_dim": 64, "conv_dim_out": 64, "num_heads": 4, "block_multiple_of": 96},
        names={"rms_norm_eps": "norm_eps"},
        toy=_lfm2,
    ),
    "llama4": Family(
        widths={"attention_chunk_size": 16, "floor_scale": 16, "intermediate_size_mlp": 96},
        wrappers={"llama4_text": "llama4"},
        transposed=TRANSPOSED_EXPERTS,
    ),
    "minimax_m2": Family(toy=lambda config, full, layers: {"rotary_dim": config["head_dim"] // 2}),
    "ministral3": Family(wrappers={"ministral3": "mistral3"}),
    "mistral3": Family(wrappers={"mistral": "mistral3"}),
    "mistral4": Family(toy=_mistral4, wrappers={"mistral4": "mistral3"}),
    "nemotron3": Family(
        widths={"mamba_num_heads": 4, "mamba_head_dim": 24, "n_groups": 2, "ssm_state_size": 16, "moe_latent_size": 40}
        | {"time_step_min": 1e-9},
        names={"rms_norm_eps": "layer_norm_epsilon"},
        toy=_nemotron3,
    ),
    "phi4": Family(toy=_phi4),
    "qwen3_5": Family(**DELTA_NET, wrappers={"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"}),
    "qwen3_next": Family(**DELTA_NET),
}
