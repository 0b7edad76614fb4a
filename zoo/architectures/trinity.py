"""Trinity (Arcee AI 2025), model_type afmoe. New here: a gate multiplies each element of attention's output. Layers
with a window use RoPE; every fourth layer has full attention and no positions (NoPE). Sigmoid scores with a correction
bias choose experts, without groups.

Trinity-Large's route_scale and context are from memory; its widths are published."""

from zoo.blocks import GLU, GQA, GroupedSigmoidTopK, Layer, MoE, NoPE, RMSNorm, RoPE, sandwich
from zoo.costs import Full
from zoo.hf.checkpoint_layout import Rename
from zoo.hf.config import About, Config, ModelType, Remote, Size, layer_types, reads
from zoo.hf.write_config import (
    ConfigFields,
    dense_fields,
    fields_of,
    layers_before_experts,
    mixture_fields,
    window_fields,
)
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("attn.block.gate", "self_attn.gate_proj"),
    Rename("ffn.pre", "pre_mlp_layernorm"),
    Rename("ffn.post", "post_mlp_layernorm"),
    Rename("ffn.block.router", "mlp.router.gate"),
    Rename("ffn.block.router.correction", "mlp.expert_bias"),
)


def decoder(
    *, layers, dense, heads, kv_heads, head_dim=128, hidden, moe, window, everywhere, rope=RoPE(1e4), eps=1e-5, **rest
):
    """Returns the decoder. `everywhere` holds the indices of the layers without a window."""
    norm = RMSNorm(eps, scale_in_fp32=True)

    def layer(i):
        position, limit = (NoPE(), None) if i in everywhere else (rope, window)
        attn = GQA(heads, kv_heads, head_dim, rope=position, window=limit, qk_norm=norm, gate="element")
        return Layer(sandwich(norm, attn), sandwich(norm, GLU(hidden) if i < dense else moe))

    return Decoder(layers=tuple(map(layer, range(layers))), norm=norm, **rest)


KIND = ModelType("afmoe", remote=Remote("afmoe", "Afmoe", publishers=("arcee-ai",)))
WIDTHS = dict(num_key_value_heads=None, head_dim=128, sliding_window=1024, max_position_embeddings=16_384)
LAYERS = dict(num_dense_layers=1, global_attn_every_n_layers=4)
MOE = dict(num_experts=64, num_experts_per_tok=6, num_shared_experts=2, route_scale=1.0)
EXPERTS = dict(experts="num_experts", hidden="moe_intermediate_size", shared="num_shared_experts")
ROUTER = dict(k="num_experts_per_tok", scale="route_scale")
OTHERS = dict(rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False, mup_enabled=False)
# The reference always has a single group of experts, sigmoid scores, and weights divided by their sum.
ROUTING = dict(
    score_func="sigmoid", route_norm=True, n_group=1, topk_group=1, num_expert_groups=1, num_limited_groups=1
)


@reads(KIND, expected=dict(hidden_act="silu", attention_bias=False), **WIDTHS, **LAYERS, **MOE, **OTHERS)
def from_hf(config: Config) -> Decoder:
    config.neutral(**ROUTING)
    config.unused("use_grouped_mm", "load_balance_coeff")  # a choice of kernels, and a coefficient for training
    shape = config.dense() | config.integers(window="sliding_window")
    shape["everywhere"] = _everywhere(config, shape["layers"])
    shape["dense"] = config.count("num_dense_layers", most=shape["layers"])
    shape["embed_scale"] = shape["dim"] ** 0.5 if config.flag("mup_enabled") else 1.0
    router = GroupedSigmoidTopK(**config.typed(GroupedSigmoidTopK, **ROUTER), groups=1, keep=1)
    return decoder(**shape, moe=config.mixture(router, **EXPERTS))


def _everywhere(config, layers):
    """Returns the indices of layers without a window: from `layer_types`, or else by `global_attn_every_n_layers`."""
    interval, given = config.integer("global_attn_every_n_layers"), config.values.get("layer_types")
    if isinstance(given, list):
        return [i for i, kind in enumerate(given) if kind == Full.layer_type]
    return range(interval - 1, layers, interval)


def to_hf(spec: Decoder) -> ConfigFields:
    config = dense_fields(spec) | window_fields(spec) | mixture_fields(spec, **EXPERTS)
    config |= {"mup_enabled": spec.embed_scale != 1, "num_dense_layers": layers_before_experts(spec)}
    config["global_attn_every_n_layers"] = [*layer_types(spec), Full.layer_type].index(Full.layer_type) + 1
    return config | fields_of(spec, GroupedSigmoidTopK, **ROUTER)


def _released(dim, layers, width, experts=128, k=8, scale=2.826, **rest):
    moe = MoE(experts, GLU(width), GroupedSigmoidTopK(k, groups=1, keep=1, scale=scale), shared=GLU(width))
    rest |= dict(everywhere=range(3, layers, 4), vocab=200_192, embed_scale=dim**0.5)
    return decoder(dim=dim, layers=layers, moe=moe, **rest)


_SMALL = dict(context=131_072, window=2048, dense=2)
_NANO = _released(1024, 56, 256, heads=8, kv_heads=2, hidden=3072, **_SMALL)
_MINI = _released(2048, 32, 1024, heads=32, kv_heads=4, hidden=6144, **_SMALL)
_398B = dict(experts=256, k=4, scale=2.448, context=262_144, window=4096, dense=6)
_LARGE = _released(3072, 60, 3072, heads=48, kv_heads=8, hidden=12_288, **_398B)
NOTE = "route_scale and context from memory"
ABOUT = About(
    "Trinity", "Arcee AI 2025", compared_with="llama3", licence="Apache-2.0", report="https://arxiv.org/abs/2602.17004"
)
BEST_KNOWN = "trinity-mini-26b"
SIZES = {
    "trinity-nano-6b": Size("arcee-ai/Trinity-Nano-Base", 6_120_003_328, _NANO, released="2025-12"),
    "trinity-mini-26b": Size("arcee-ai/Trinity-Mini", 26_123_974_400, _MINI, released="2025-12"),
    "trinity-large-398b": Size(
        "arcee-ai/Trinity-Large-Preview", 398_635_286_016, _LARGE, released="2026-01", note=NOTE
    ),
}
