"""Kimi Linear (Kimi Team 2025). New here: three layers of Kimi Delta Attention, with a fixed-size state that decays by
channel, for each layer of latent attention without positions. The recurrent layers provide the order of tokens."""

from zoo.architectures.deepseek_v3 import ATTENTION
from zoo.blocks import GLU, MLA, GroupedSigmoidTopK, Layer, MoE, NoPE, RMSNorm, pre
from zoo.blocks.delta_rule import KDA
from zoo.hf.checkpoint_layout import GLU_NAMES, NUMBERED, Rearranged, Rename, Stacked
from zoo.hf.config import About, Config, ModelType, Remote, Size, layer_types, reads
from zoo.hf.write_config import ConfigFields, common_fields, fields_of, layers_before_experts, mixture_fields
from zoo.model.decoder import Decoder

STORED = {"decay.down": "f_a_proj", "decay.up": "f_b_proj", "gate.down": "g_a_proj", "gate.up": "g_b_proj"}
STORED |= {"beta": "b_proj", "norm": "o_norm", "dt_bias": "dt_bias"}
STORED |= {"q_conv": "q_conv1d", "k_conv": "k_conv1d", "v_conv": "v_conv1d"}
STORED |= {"kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj"}
STORED |= {"q.down": "q_a_proj", "q.norm": "q_a_layernorm", "q.up": "q_b_proj"}
MIXTURE = "block_sparse_moe."  # transformers also uses this name for the dense layer
WEIGHTS = (
    *(Rename(f"attn.block.{name}", f"self_attn.{stored}") for name, stored in STORED.items()),
    Rearranged("attn.block.A_log", "self_attn.A_log", "1 1 heads 1 -> heads"),
    Rename("ffn.block.router", f"{MIXTURE}gate"),
    Rename("ffn.block.router.correction", f"{MIXTURE}gate.e_score_correction_bias"),
    *(Rename(f"ffn.block.shared.{name}", f"{MIXTURE}shared_experts.{name}_proj") for name in GLU_NAMES),
    *(Rename(f"ffn.block.{name}", f"{part}{name}_proj") for part in ("mlp.", MIXTURE) for name in GLU_NAMES),
    *(Stacked(f"ffn.block.experts.{name}", f"{MIXTURE}experts.{{e}}.{w}.weight") for name, w in NUMBERED.items()),
)


def decoder(*, types, dense, linear, latent, hidden, moe, eps=1e-5, **rest):
    """Returns the decoder. `types` holds the type of each layer's mixer. The first `dense` layers have no experts."""
    norm = RMSNorm(eps)
    latents = RMSNorm(1e-6)  # not the eps of the config
    mixers = {"linear_attention": KDA(**linear, norm=norm), "full_attention": MLA(**latent, norm=latents, rope=NoPE())}
    ffns = [GLU(hidden) if i < dense else moe for i in range(len(types))]
    layers = tuple(Layer(pre(norm, mixers[name]), pre(norm, ffn)) for name, ffn in zip(types, ffns, strict=True))
    return Decoder(layers=layers, norm=norm, **rest)


KIND = ModelType("kimi_linear", remote=Remote("kimi", "KimiLinear", publishers=("moonshotai",)))
# Pairs of names of a field: as published, and as the reference writes it.
CONTEXT = "model_max_length", "max_position_embeddings"
EXPERTS, SHARED = ("num_experts", "num_local_experts"), ("num_shared_experts", "n_shared_experts")
K, GROUPS = ("num_experts_per_token", "num_experts_per_tok"), ("num_expert_group", "n_group")
WIDTH, ROUTER = "moe_intermediate_size", dict(keep="topk_group", scale="routed_scaling_factor")
LINEAR = dict(heads=("num_heads", "linear_num_heads"), head_dim=("head_dim", "linear_head_dim"))
LINEAR |= dict(conv=("short_conv_kernel_size", "linear_conv_kernel_dim"))
LISTS = "full_attn_layers", "kda_layers"
DEFAULTS = dict(rms_norm_eps=1e-5, routed_scaling_factor=2.446, q_lora_rank=None, tie_word_embeddings=False)
DEFAULTS |= dict(num_key_value_heads=32, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
DEFAULTS |= dict(linear_num_heads=32, linear_head_dim=128, linear_conv_kernel_dim=4, model_max_length=1_048_576)
DEFAULTS |= dict(num_experts=256, num_shared_experts=1, num_experts_per_token=8, num_expert_group=1, topk_group=1)
DEFAULTS |= dict(moe_intermediate_size=1024, first_k_dense_replace=1)
EXPECTED = dict(hidden_act="silu", mla_use_nope=True, moe_layer_freq=1)
EXPECTED |= dict(moe_router_activation_func="sigmoid", moe_renormalize=True, use_grouped_topk=True)


@reads(KIND, expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    shape = config.common(context=config.spelled(*CONTEXT))
    config.expect(norm_topk_prob=True, attention_bias=False, num_key_value_heads=shape.pop("heads"))
    config.unused("head_dim", "qk_head_dim")  # attention has its own widths
    config.unused("rope_theta", "rope_scaling", "rope_parameters")  # attention has no position encoding
    names = dict(k=config.spelled(*K), groups=config.spelled(*GROUPS), **ROUTER)
    router = GroupedSigmoidTopK(**config.typed(GroupedSigmoidTopK, **names))
    experts = dict(experts=config.spelled(*EXPERTS), hidden=WIDTH, shared=config.spelled(*SHARED))
    layers, hidden = shape.pop("layers"), config.integer("intermediate_size")
    shape |= dict(types=_mixers(config, layers), dense=_dense(config, layers), hidden=hidden)
    shape |= dict(linear=_linear(config), latent=config.typed(MLA, **ATTENTION))
    return decoder(**shape, moe=config.mixture(router, **experts))


def _linear(config):
    """Returns the sizes of the recurrent layers. Fields in `linear_attn_config` override top-level fields."""
    inner, sizes = config.object("linear_attn_config"), {}
    for field, (name, beside) in LINEAR.items():
        sizes[field] = inner.integer(name) if name in inner.values else config.integer(beside)
        if config.values.get(beside) in (None, sizes[field]):
            config.unused(beside)
    return sizes


def _mixers(config, layers):
    """Returns the type of each layer's mixer: from `layer_types`, or else from two lists of layer numbers (from 1)."""
    inner = config.object("linear_attn_config")
    inner.unused(*LISTS)
    full, recurrent = (inner.values.get(name) for name in LISTS)
    types = ["full_attention" if i and i % 4 == 0 else "linear_attention" for i in range(layers)]
    if full is not None and recurrent is not None:
        numbers = [*full, *recurrent] if isinstance(full, list) and isinstance(recurrent, list) else []
        if not all(isinstance(each, int) for each in numbers) or sorted(numbers) != list(range(1, layers + 1)):
            raise inner.error(f"{' and '.join(LISTS)} must hold each number from 1 to {layers} once")
        types = ["full_attention" if i + 1 in full else "linear_attention" for i in range(layers)]
    return config.plan("layer_types", ("linear_attention", "full_attention"), types)


def _dense(config, layers):
    """Returns the number of layers before the first layer with experts."""
    number = config.count("first_k_dense_replace", most=layers)
    kinds = config.plan("mlp_layer_types", ("dense", "sparse"), ["dense"] * number + ["sparse"] * (layers - number))
    dense = [*kinds, "sparse"].index("sparse")
    config.agrees("mlp_layer_types", ["dense"] * dense + ["sparse"] * (layers - dense))
    return dense


def to_hf(spec: Decoder) -> ConfigFields:
    types, config = layer_types(spec), common_fields(spec, context=CONTEXT[0])
    config |= fields_of(spec, MLA, **ATTENTION) | fields_of(spec, MLA, heads="num_key_value_heads")
    config |= fields_of(spec, GLU, hidden="intermediate_size")
    config |= mixture_fields(spec, experts=EXPERTS[0], hidden=WIDTH, shared=SHARED[0])
    names = {field: name for field, (name, _) in LINEAR.items()}
    if recurrent := fields_of(spec, KDA, **names):
        full = [i + 1 for i, name in enumerate(types) if name == "full_attention"]
        rest = [i + 1 for i, name in enumerate(types) if name != "full_attention"]
        config["linear_attn_config"] = recurrent | dict(zip(LISTS, (full, rest), strict=True))
    config["first_k_dense_replace"] = layers_before_experts(spec)
    return config | fields_of(spec, GroupedSigmoidTopK, k=K[0], groups=GROUPS[0], **ROUTER)


_LATENT = dict(heads=32, q_rank=None, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
_MOE = MoE(256, GLU(1024), GroupedSigmoidTopK(k=8, groups=1, keep=1, scale=2.446), shared=GLU(1024))
_TYPES = ["full_attention" if i % 4 == 3 or i == 26 else "linear_attention" for i in range(27)]
_48B = decoder(
    **dict(dim=2304, types=_TYPES, dense=1, linear=dict(heads=32, head_dim=128, conv=4), latent=_LATENT),
    **dict(hidden=9216, moe=_MOE, vocab=163_840, context=1_048_576),
)
ABOUT = About(
    "Kimi Linear", "Kimi Team 2025", compared_with="kimi-k2", licence="MIT", report="https://arxiv.org/abs/2510.26692"
)
SIZES = {
    "kimi-linear-48b-a3b": Size("moonshotai/Kimi-Linear-48B-A3B-Instruct", 49_122_681_728, _48B, released="2025-10")
}
