"""gpt-oss (OpenAI 2025). New here: attention sinks, biases everywhere, and a window of 128 tokens in every other layer.
Experts use a clamped SwiGLU and are as wide as the model. YaRN does not round the ends of its ramp."""

from zoo.blocks import GLU, GQA, ClampedSwiGLU, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, YarnScaling, pre, yarn_gain
from zoo.hf.checkpoint_layout import GATE_UP, Rearranged, Rename
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first_rope, rope_fields, window_fields
from zoo.model.decoder import Decoder

GATE_UP_BIAS = tuple(f"{name}_bias" for name in GATE_UP)
WEIGHTS = (
    Rename("ffn.block.router", "mlp.router"),
    Rearranged(GATE_UP, "mlp.experts.gate_up_proj", "e dim (hidden gate_up) -> gate_up e hidden dim"),
    Rearranged(GATE_UP_BIAS, "mlp.experts.gate_up_proj_bias", "e (hidden gate_up) -> gate_up e hidden"),
    Rearranged("ffn.block.experts.down", "mlp.experts.down_proj", "e hidden dim -> e dim hidden"),
    Rename("ffn.block.experts.down_bias", "mlp.experts.down_proj_bias"),
    # The released files are in MXFP4, and their tensors of codes are not transposed.
    Rearranged(GATE_UP, "mlp.experts.gate_up_proj_blocks", "e (hidden gate_up) dim -> gate_up e hidden dim"),
    Rename("ffn.block.experts.down", "mlp.experts.down_proj_blocks"),
)


def decoder(*, layers, heads, kv_heads, head_dim, window, experts, hidden, act, k, rope, eps=1e-5, **rest):
    norm = RMSNorm(eps, scale_in_fp32=True)
    moe = MoE(experts, GLU(hidden, act, bias=True), SoftmaxTopK(k, bias=True))

    def layer(window):
        attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window, bias=True, sinks=True)
        return Layer(pre(norm, attn), pre(norm, moe))

    return Decoder(layers=tuple(layer(None if i % 2 else window) for i in range(layers)), norm=norm, **rest)


ROPE = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
HEADS = dict(num_key_value_heads=8, head_dim=64, sliding_window=128)
EXPERTS = dict(num_local_experts=128, num_experts_per_tok=4, swiglu_alpha=1.702, swiglu_limit=7.0)
OTHERS = dict(max_position_embeddings=131_072, rms_norm_eps=1e-5, tie_word_embeddings=False)
DEFAULTS = HEADS | EXPERTS | OTHERS | dict(rope_theta=1.5e5, rope_scaling=ROPE)
ACT = dict(alpha="swiglu_alpha", limit="swiglu_limit")


@reads("gpt_oss", expected=dict(hidden_act="silu", attention_bias=True), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    names = dict(window="sliding_window", experts="num_local_experts", k="num_experts_per_tok")
    shape = config.dense() | config.integers(**names)
    original = getattr(shape["rope"].scaling, "original", None)
    config.neutral(experts_per_token=shape["k"], initial_context_length=original)
    return decoder(**shape, act=ClampedSwiGLU(**config.typed(ClampedSwiGLU, **ACT)))


def to_hf(spec: Decoder) -> ConfigFields:
    rope = first_rope(spec)
    config = dense_fields(spec) | window_fields(spec)
    config |= rope_fields(spec, unscaled={"rope_type": "default"})  # without it, the reference uses the released YaRN
    config["initial_context_length"] = getattr(rope and rope.scaling, "original", None)
    for name in ("num_experts_per_tok", "experts_per_token"):
        config |= fields_of(spec, SoftmaxTopK, k=name)
    return config | fields_of(spec, MoE, experts="num_local_experts") | fields_of(spec, ClampedSwiGLU, **ACT)


_ROPE = RoPE(1.5e5, YarnScaling(factor=32, original=4096, gain=yarn_gain(32), truncate=False))
_ATTN = dict(heads=64, kv_heads=8, head_dim=64, window=128, rope=_ROPE, vocab=201_088, context=131_072)
_BOTH = dict(_ATTN, dim=2880, hidden=2880, act=ClampedSwiGLU(1.702, 7.0), k=4)
_20B, _120B = decoder(**_BOTH, layers=24, experts=32), decoder(**_BOTH, layers=36, experts=128)
RULE = "without the input embedding"
ABOUT = About(
    "gpt-oss", "OpenAI 2025", compared_with="gpt2", licence="Apache-2.0", report="https://arxiv.org/abs/2508.10925"
)
SIZES = {
    "gpt-oss-20b": Size("openai/gpt-oss-20b", 20_914_757_184, _20B, active=(3_608_307_264, RULE), released="2025-08"),
    "gpt-oss-120b": Size(
        "openai/gpt-oss-120b", 116_829_156_672, _120B, active=(5_132_849_472, RULE), released="2025-08"
    ),
}
