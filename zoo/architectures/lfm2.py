"""LFM2 (Liquid AI 2025), dense and mixture-of-experts. New here: most layers have a gated convolution over three tokens
instead of attention. In dense models, the feed-forward's width is computed from the published number by a rule.

The mixture's config is from memory and from the reference's defaults.
"""

from functools import partial
from math import gcd
from reprlib import repr as brief
from typing import Any

from zoo.blocks import GLU, GQA, GroupedSigmoidTopK, Layer, MoE, RMSNorm, RoPE, pre
from zoo.blocks.short_conv import ShortConv
from zoo.hf.checkpoint_layout import NUMBERED, Rename, Stacked
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import (
    HEADS,
    ConfigFields,
    common_fields,
    fields_of,
    first,
    layers_before_experts,
    mixture_fields,
    rope_fields,
)
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("norm", "model.embedding_norm"),
    Rename("attn.pre", "operator_norm"),
    Rename("ffn.pre", "ffn_norm"),
    Rename("attn.block.input", "conv.in_proj"),
    Rename("attn.block.conv", "conv.conv"),
    Rename("attn.block.o", "conv.out_proj", mixer=ShortConv),
    Rename("attn.block.o", "self_attn.out_proj"),
    *(Rename(f"attn.block.{name}_norm", f"self_attn.{name}_layernorm") for name in "qk"),
    *(Rename(f"ffn.block.{name}", f"feed_forward.{w}") for name, w in NUMBERED.items()),
    Rename("ffn.block.router", "feed_forward.gate"),
    Rename("ffn.block.router.correction", "feed_forward.expert_bias"),
    *(Stacked(f"ffn.block.experts.{name}", f"feed_forward.experts.{{e}}.{w}.weight") for name, w in NUMBERED.items()),
)


def decoder(*, mixers, dim, conv=3, heads, kv_heads, head_dim, hidden, moe=None, dense=0, eps=1e-5, rope, **rest):
    """Returns the decoder. `mixers` holds "conv" or "full_attention" for each layer. With `moe`, all layers except the
    first `dense` ones have experts."""
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, qk_norm=norm)
    kinds = {"conv": ShortConv(dim, conv), "full_attention": attn}

    def layer(i, mixer):
        return Layer(pre(norm, kinds[mixer]), pre(norm, moe if moe and i >= dense else GLU(hidden)))

    return Decoder(dim=dim, layers=tuple(layer(i, mixer) for i, mixer in enumerate(mixers)), norm=norm, **rest)


def routed(k, scale=1.0):
    return GroupedSigmoidTopK(k, groups=1, keep=1, scale=scale, eps=1e-6)


def adjusted(width, multiplier=1.0, multiple=256):
    """Returns the feed-forward's width for a published `width`: two thirds of it, times `multiplier`, rounded up to a
    multiple of `multiple`. If `multiplier` is None, the two thirds are not rounded up."""
    width = 2 * width // 3
    return width if multiplier is None else -(-int(multiplier * width) // multiple) * multiple


RULE: dict[str, Any] = dict(block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1.0, block_multiple_of=256)
DENSE = ModelType("lfm2", defaults=RULE | dict(intermediate_size=12_288, layer_types=None))
MOE: dict[str, Any] = dict(intermediate_size=7168, moe_intermediate_size=1792, num_dense_layers=2, num_experts=32)
MOE |= dict(num_experts_per_tok=4, routed_scaling_factor=1.0)
SPARSE = ModelType("lfm2_moe", defaults=MOE)
DEFAULTS = dict(num_key_value_heads=8, head_dim=None, max_position_embeddings=128_000, norm_eps=1e-5)
DEFAULTS |= dict(conv_L_cache=3, rope_theta=1e6, tie_word_embeddings=True)
EXPECTED: dict[str, Any] = dict(conv_bias=False, block_use_swiglu=True, use_pos_enc=True)
KINDS = ("conv", "full_attention")
EXPERTS = dict(experts="num_experts", hidden="moe_intermediate_size")
ROUTER = dict(k="num_experts_per_tok", scale="routed_scaling_factor")
# Fields for the initialisation of weights.
UNUSED = "block_mlp_init_scale block_out_init_scale block_use_xavier_init conv_use_xavier_init".split()


@reads(DENSE, SPARSE, expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.unused(*UNUSED)
    shape = config.common(eps="norm_eps") | {"head_dim": config.head_dim()}
    layers, dim, heads = shape.pop("layers"), shape["dim"], shape["heads"]
    shape["kv_heads"] = config.optional("num_key_value_heads") or heads
    config.neutral(block_dim=dim, conv_dim=dim, conv_dim_out=dim, num_heads=heads, block_norm_eps=shape["eps"])
    config.neutral(tie_embedding=shape["tied"])
    ffn = _experts(config, layers) if config.model_type == "lfm2_moe" else {"hidden": _width(config)}
    conv, rope = config.integer("conv_L_cache"), config.rope()
    return decoder(**shape, **ffn, mixers=_mixers(config, layers), conv=conv, rope=rope)


def _mixers(config, layers):
    """Returns the type of each layer from `layer_types`, or else from `full_attn_idxs`. The default is attention."""
    config.get("layer_types")  # raises an error if the mixture's config lacks it
    indices = config.values.get("full_attn_idxs") or list(range(layers))
    if not isinstance(indices, list):
        raise config.error(f"full_attn_idxs must be a list, got {brief(indices)}")
    default = ["full_attention" if i in indices else "conv" for i in range(layers)]
    mixers = config.plan("layer_types", KINDS, default)
    config.neutral(full_attn_idxs=[i for i, mixer in enumerate(mixers) if mixer == "full_attention"])
    return mixers


def _width(config):
    given = config.values.get("block_ff_dim")  # older name of the field
    width = config.integer("intermediate_size" if given is None else "block_ff_dim")
    config.neutral(block_ff_dim=width, intermediate_size=width)
    if not config.flag("block_auto_adjust_ff_dim"):
        config.unused("block_ffn_dim_multiplier", "block_multiple_of")
        return width
    return adjusted(width, config.optional_number("block_ffn_dim_multiplier"), config.integer("block_multiple_of"))


def _experts(config, layers):
    config.expect(norm_topk_prob=True, use_expert_bias=True)
    moe = config.mixture(routed(**config.typed(GroupedSigmoidTopK, **ROUTER)), **EXPERTS)
    dense = config.count("num_dense_layers", most=layers)
    return {"hidden": config.integer("intermediate_size"), "moe": moe, "dense": dense}


def to_hf(spec: Decoder) -> ConfigFields:
    config = common_fields(spec, eps="norm_eps") | rope_fields(spec) | fields_of(spec, GQA, **HEADS)
    config |= fields_of(spec, ShortConv, conv="conv_L_cache")
    config["layer_types"] = [
        "conv" if isinstance(layer.mixer, ShortConv) else "full_attention" for layer in spec.layers
    ]
    hidden = next((layer.feed_forward.hidden for layer in spec.layers if isinstance(layer.feed_forward, GLU)), None)
    if not first(spec, MoE):  # `adjusted` takes two thirds of the written width
        published = {"intermediate_size": -(-3 * hidden // 2), "block_multiple_of": gcd(hidden, 256)} if hidden else {}
        return config | RULE | published
    config |= {"model_type": "lfm2_moe", "num_dense_layers": layers_before_experts(spec)}
    config |= {"intermediate_size": hidden} if hidden else {}
    return config | mixture_fields(spec, **EXPERTS) | fields_of(spec, GroupedSigmoidTopK, **ROUTER)


def _released(attention, layers, **rest):
    mixers = ["full_attention" if i in attention else "conv" for i in range(layers)]
    return decoder(
        mixers=mixers, kv_heads=8, head_dim=64, rope=RoPE(1e6), vocab=65_536, context=128_000, tied=True, **rest
    )


_dense = partial(_released, (2, 5, 8, 10, 12, 14), layers=16)
_MIXTURE = dict(moe=MoE(32, GLU(1792), routed(k=4)), dense=2)
_8B = _released((2, 6, 10, 14, 18, 21), layers=24, dim=2048, heads=32, hidden=7168, **_MIXTURE)
ABOUT = About(
    "LFM2",
    "Liquid AI 2025",
    compared_with="llama3",
    licence="LFM Open License 1.0",
    report="https://arxiv.org/abs/2511.23404",
)
BEST_KNOWN = "lfm2-1.2b"
_size = partial(Size, released="2025-07", stated_context=32_768)
SIZES = {
    "lfm2-350m": _size("LiquidAI/LFM2-350M", 354_483_968, _dense(dim=1024, heads=16, hidden=4608)),
    "lfm2-700m": _size("LiquidAI/LFM2-700M", 742_489_344, _dense(dim=1536, heads=24, hidden=6912)),
    "lfm2-1.2b": _size("LiquidAI/LFM2-1.2B", 1_170_340_608, _dense(dim=2048, heads=32, hidden=8192)),
    "lfm2-8b-a1b": _size(
        "LiquidAI/LFM2-8B-A1B",
        8_339_930_560,
        _8B,
        released="2025-10",
        note="its config is from memory and the reference's defaults",
    ),
}
