"""Gemma 3 (Gemma Team 2025), text part. New here: five sliding-window layers for each layer with full attention, and a
RoPE base per kind of layer. Sandwich norms multiply by 1 + w. Embeddings are scaled by sqrt(dim). The MLP is GeGLU."""

from zoo.architectures.gemma2 import EXPECTED, read_dense, windowed_fields
from zoo.architectures.gemma2 import WEIGHTS as WEIGHTS
from zoo.blocks import GLU, GQA, GeGLU, Layer, LinearScaling, RMSNorm, RoPE, sandwich
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, first_rope
from zoo.model.decoder import Decoder


def decoder(*, dim, layers, heads, kv_heads, head_dim, hidden, window, scale, rope, local=RoPE(1e4), eps=1e-6, **rest):
    norm = RMSNorm(eps, unit_offset=True, scale_in_fp32=True)

    def layer(rope, window):
        attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window, qk_norm=norm, scale=scale)
        return Layer(sandwich(norm, attn), sandwich(norm, GLU(hidden=hidden, act=GeGLU())))

    pattern = tuple(layer(rope, None) if i % 6 == 5 else layer(local, window) for i in range(layers))
    return Decoder(dim=dim, layers=pattern, norm=norm, embed_scale=dim**0.5, **rest)


ROPE = dict(rope_theta=1e6, rope_local_base_freq=1e4, max_position_embeddings=131_072)
HEADS = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096)
DEFAULTS = ROPE | HEADS | dict(vocab_size=262_208, rms_norm_eps=1e-6, tie_word_embeddings=True)

TEXT, WRAPPER = ModelType("gemma3_text", "Gemma3ForCausalLM"), ModelType("gemma3", "Gemma3ForConditionalGeneration")


@reads(TEXT, WRAPPER, expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.expect(attn_logit_softcapping=None, final_logit_softcapping=None)
    config.expect(sliding_window_pattern=6, _sliding_window_pattern=6)
    local = config.rope("sliding_attention", theta="rope_local_base_freq", scaled=False)
    return decoder(**read_dense(config, kind="full_attention"), local=local)


def to_hf(spec: Decoder) -> ConfigFields:
    local = first_rope(spec, windowed=True)
    return windowed_fields(spec) | ({"rope_local_base_freq": float(local.theta)} if local else {})


_BOTH = dict(head_dim=256, scale=256**-0.5, tied=True)
_SMALL = dict(_BOTH, heads=4, kv_heads=1, window=512, rope=RoPE(1e6), vocab=262_144, context=32_768)
_LARGE = dict(_BOTH, window=1024, rope=RoPE(1e6, LinearScaling(8)), vocab=262_208, context=131_072)
_270M = dict(_SMALL, dim=640, layers=18, hidden=2048)
_1B = dict(_SMALL, dim=1152, layers=26, hidden=6912)
_4B = dict(_LARGE, dim=2560, layers=34, heads=8, kv_heads=4, hidden=10_240)
_12B = dict(_LARGE, dim=3840, layers=48, heads=16, kv_heads=8, hidden=15_360)
_27B = dict(_LARGE, dim=5376, layers=62, heads=32, kv_heads=16, hidden=21_504, head_dim=128, scale=168**-0.5)
ABOUT = About(
    "Gemma 3",
    "Gemma Team 2025",
    compared_with="gemma2",
    licence="Gemma Terms of Use",
    report="https://arxiv.org/abs/2503.19786",
    left_out="vision",
)
BEST_KNOWN = "gemma3-27b"
SIZES = {
    "gemma3-270m": Size("google/gemma-3-270m", 268_098_176, decoder(**_270M), released="2025-08"),
    "gemma3-1b": Size("google/gemma-3-1b-pt", 999_885_952, decoder(**_1B), released="2025-03"),
    "gemma3-4b": Size("google/gemma-3-4b-pt", 3_880_263_168, decoder(**_4B), released="2025-03"),
    "gemma3-12b": Size("google/gemma-3-12b-pt", 11_766_034_176, decoder(**_12B), released="2025-03"),
    "gemma3-27b": Size("google/gemma-3-27b-pt", 27_009_346_304, decoder(**_27B), released="2025-03"),
}
