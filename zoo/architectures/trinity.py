"""Trinity (Arcee AI 2025), model_type afmoe. New here: attention's output is gated element by element; rotation in the
layers with a window alone, while every fourth layer sees everything and has no positions (NoPE); and sigmoid routing
with a correction bias but without groups.

Trinity-Large's route_scale and context are from memory; its widths are published."""

from zoo.blocks import GLU, GQA, GroupedSigmoidTopK, Layer, MoE, NoPE, RMSNorm, RoPE, sandwich
from zoo.costs import Full
from zoo.hf.checkpoint_layout import Rename
from zoo.hf.config import About, Config, ModelType, Remote, Size, layer_types, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first, window_fields
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("attn.block.gate", "self_attn.gate_proj"),
    Rename("ffn.pre", "pre_mlp_layernorm"),
    Rename("ffn.post", "post_mlp_layernorm"),
    Rename("ffn.block.router", "mlp.router.gate"),
    Rename("ffn.block.router.correction", "mlp.expert_bias"),
)


def decoder(
    *,
    dim,
    layers,
    dense,
    heads,
    kv_heads,
    head_dim=128,
    hidden,
    moe,
    window,
    everywhere,
    rope=RoPE(1e4),
    eps=1e-5,
    scaled=True,
    **rest,
):
    """Returns the decoder. `everywhere`: the layers without a window."""
    norm = RMSNorm(eps, scale_in_fp32=True)

    def layer(i):
        position, limit = (NoPE(), None) if i in everywhere else (rope, window)
        attn = GQA(heads, kv_heads, head_dim, rope=position, window=limit, qk_norm=norm, gate="element")
        return Layer(sandwich(norm, attn), sandwich(norm, GLU(hidden) if i < dense else moe))

    embed_scale = dim**0.5 if scaled else 1.0
    return Decoder(dim=dim, layers=tuple(map(layer, range(layers))), norm=norm, embed_scale=embed_scale, **rest)


def mixture(experts, k, hidden, scale, shared=1):
    return MoE(experts, GLU(hidden), GroupedSigmoidTopK(k, groups=1, keep=1, scale=scale), shared=GLU(shared * hidden))


CODE = ("configuration_afmoe.AfmoeConfig", "modeling_afmoe.AfmoeModel", "modeling_afmoe.AfmoeForCausalLM")
KIND = ModelType("afmoe", remote=Remote(CODE, publishers=("arcee-ai",)))
WIDTHS = dict(num_key_value_heads=None, head_dim=128, sliding_window=1024, max_position_embeddings=16_384)
LAYERS = dict(num_dense_layers=1, global_attn_every_n_layers=4)
EXPERTS = dict(num_experts=64, num_experts_per_tok=6, num_shared_experts=2, route_scale=1.0)
OTHERS = dict(rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False, mup_enabled=False)
EXPECTED = dict(hidden_act="silu", attention_bias=False)
# The reference always has one group of all experts, chosen by sigmoid, with weights divided by their sum.
ROUTING = dict(
    score_func="sigmoid", route_norm=True, n_group=1, topk_group=1, num_expert_groups=1, num_limited_groups=1
)


@reads(KIND, **WIDTHS, **LAYERS, **EXPERTS, **OTHERS)
def from_hf(config: Config) -> Decoder:
    config.expect(**EXPECTED)
    config.neutral(**ROUTING)
    config.unused("use_grouped_mm", "load_balance_coeff")  # the choice of kernel, and a coefficient for training
    shape = config.dense() | config.integers(window="sliding_window")
    shape["everywhere"] = _everywhere(config, shape["layers"])
    shape["dense"] = config.integer("num_dense_layers", most=shape["layers"])
    names = dict(hidden="moe_intermediate_size", experts="num_experts", k="num_experts_per_tok")
    moe = mixture(**config.integers(**names, shared="num_shared_experts"), scale=config.number("route_scale"))
    given = dict(head_dim=config.head_dim(), rope=config.rope(), scaled=config.flag("mup_enabled"))
    spec = decoder(**shape, **given, moe=moe)
    config.agrees_on_windows(spec)
    return spec


def _everywhere(config, layers):
    """Returns the layers without a window: from `layer_types`, or else one in every `global_attn_every_n_layers`."""
    interval, given = config.integer("global_attn_every_n_layers"), config.values.get("layer_types")
    if isinstance(given, list):
        return [i for i, kind in enumerate(given) if kind == Full.layer_type]
    return range(interval - 1, layers, interval)


def to_hf(spec: Decoder) -> ConfigFields:
    config = {"model_type": "afmoe"} | EXPECTED | dense_fields(spec) | window_fields(spec)
    config["mup_enabled"] = spec.embed_scale != 1
    config["global_attn_every_n_layers"] = [*layer_types(spec), Full.layer_type].index(Full.layer_type) + 1
    config["num_dense_layers"] = [*(first(layer, MoE) is not None for layer in spec.layers), True].index(True) or 1
    moe = first(spec, MoE)
    if moe:
        config |= {"num_experts": moe.experts, "moe_intermediate_size": moe.expert.width}
    if moe and moe.shared:  # its width is a multiple of a routed expert's
        config["num_shared_experts"] = moe.shared.width // moe.expert.width or 1
    return config | fields_of(spec, GroupedSigmoidTopK, k="num_experts_per_tok", scale="route_scale")


_SMALL = dict(vocab=200_192, context=131_072, window=2048, dense=2)
_6B = dict(_SMALL, dim=1024, layers=56, everywhere=range(3, 56, 4), heads=8, kv_heads=2, hidden=3072)
_26B = dict(_SMALL, dim=2048, layers=32, everywhere=range(3, 32, 4), heads=32, kv_heads=4, hidden=6144)
_398B = dict(dim=3072, layers=60, everywhere=range(3, 60, 4), heads=48, kv_heads=8, hidden=12_288, dense=6)
_398B |= dict(vocab=200_192, context=262_144, window=4096)
_NANO, _MINI = (decoder(**_6B, moe=mixture(128, 8, 256, 2.826)), decoder(**_26B, moe=mixture(128, 8, 1024, 2.826)))
_LARGE = decoder(**_398B, moe=mixture(256, 4, 3072, 2.448))
NOTE = "route_scale and context from memory"
ABOUT = About(
    "Trinity", "Arcee AI 2025", came_from="llama3", licence="Apache-2.0", report="https://arxiv.org/abs/2602.17004"
)
BEST_KNOWN = "trinity-mini-26b"
SIZES = {
    "trinity-nano-6b": Size("arcee-ai/Trinity-Nano-Base", 6_120_003_328, _NANO, released="2025-12"),
    "trinity-mini-26b": Size("arcee-ai/Trinity-Mini", 26_123_974_400, _MINI, released="2025-12"),
    "trinity-large-398b": Size(
        "arcee-ai/Trinity-Large-Preview", 398_635_286_016, _LARGE, released="2026-01", note=NOTE
    ),
}
