"""Gemma 2 (Gemma Team 2024). New here: layers with a window of 4,096 tokens alternate with full attention, beginning
with a window. A tanh caps attention scores and logits. The norms before and after each branch multiply by 1 + w.

Trust: medium. The sizes, the caps and `query_pre_attn_scalar` are from public copies. For the 9B model, the hub changed
`query_pre_attn_scalar` from 224 to 256.
"""

from zoo.blocks import GLU, GQA, GeGLU, Layer, RMSNorm, RoPE, sandwich
from zoo.hf.checkpoint_layout import Rename
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first, window_fields
from zoo.model.decoder import Decoder

WEIGHTS = (Rename("ffn.pre", "pre_feedforward_layernorm"),)


def decoder(
    *, dim, layers, heads, kv_heads, head_dim, hidden, window=4096, scale, cap=50.0, rope=RoPE(1e4), eps=1e-6, **rest
) -> Decoder:
    norm = RMSNorm(eps, unit_offset=True, scale_in_fp32=True)

    def layer(window):
        attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window, scale=scale, cap=cap)
        return Layer(sandwich(norm, attn), sandwich(norm, GLU(hidden=hidden, act=GeGLU())))

    pattern = tuple(layer(None if i % 2 else window) for i in range(layers))
    return Decoder(dim=dim, layers=pattern, norm=norm, embed_scale=dim**0.5, **rest)


HEADS = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096)
CAPS = dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
DEFAULTS = HEADS | CAPS | dict(max_position_embeddings=8192, rms_norm_eps=1e-6, tie_word_embeddings=True)
EXPECTED = dict(hidden_activation="gelu_pytorch_tanh", attention_bias=False)


@reads("gemma2", expected=EXPECTED, **DEFAULTS, rope_theta=1e4)
def from_hf(config: Config) -> Decoder:
    config.unused("hidden_act")  # the earlier name of hidden_activation, which the reference does not read
    caps = dict(cap="attn_logit_softcapping", logit_cap="final_logit_softcapping")
    return decoder(**read_dense(config), **{name: config.optional_number(field) for name, field in caps.items()})


def to_hf(spec: Decoder) -> ConfigFields:
    caps = fields_of(spec, GQA, cap="attn_logit_softcapping") | {"final_logit_softcapping": spec.logit_cap}
    return windowed_fields(spec) | caps


def read_dense(config, **rope):
    """Returns the arguments of `decoder` for attention and feed-forward. `rope` is passed to `Config.rope`."""
    config.neutral(use_bidirectional_attention=False)
    scale = config.number("query_pre_attn_scalar") ** -0.5
    return config.dense(**rope) | {"window": config.integer("sliding_window"), "scale": scale}


def windowed_fields(spec: Decoder) -> ConfigFields:
    """Returns the config fields that `read_dense` reads."""
    config = dense_fields(spec) | window_fields(spec)
    if (attn := first(spec, GQA)) and attn.scale:
        config["query_pre_attn_scalar"] = round(max(attn.scale, 1e-6) ** -2)  # an integer in every release
    return config


_ALL = dict(logit_cap=30.0, tied=True, vocab=256_000, context=8192)
_2B = decoder(**_ALL, dim=2304, layers=26, heads=8, kv_heads=4, head_dim=256, hidden=9216, scale=256**-0.5)
_9B = decoder(**_ALL, dim=3584, layers=42, heads=16, kv_heads=8, head_dim=256, hidden=14_336, scale=256**-0.5)
_27B = decoder(**_ALL, dim=4608, layers=46, heads=32, kv_heads=16, head_dim=128, hidden=36_864, scale=144**-0.5)
ABOUT = About(
    "Gemma 2",
    "Gemma Team 2024",
    compared_with="llama3",
    licence="Gemma Terms of Use",
    report="https://arxiv.org/abs/2408.00118",
)
BEST_KNOWN = "gemma2-9b"
SIZES = {
    "gemma2-2b": Size("google/gemma-2-2b", 2_614_341_888, _2B, released="2024-07"),
    "gemma2-9b": Size("google/gemma-2-9b", 9_241_705_984, _9B, released="2024-06"),
    "gemma2-27b": Size("google/gemma-2-27b", 27_227_128_320, _27B, released="2024-06"),
}
