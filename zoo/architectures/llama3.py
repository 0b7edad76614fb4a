"""Llama 3 (Grattafiori et al. 2024), the baseline: pre-norm, grouped-query attention, SwiGLU, RoPE. New in 3.1: RoPE
scaling by wavelength, from 8k to 128k tokens. New in 3.2: small sizes, with the head tied to the embedding."""

from zoo.blocks import GLU, GQA, Layer, Llama3Scaling, RMSNorm, RoPE, pre
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of
from zoo.model.decoder import Decoder


def decoder(
    *, layers, heads, hidden, kv_heads=8, head_dim=128, biases=(False, False), eps=1e-5, rope, vocab=128_256, **rest
) -> Decoder:
    norm, (attn_bias, ffn_bias) = RMSNorm(eps), biases
    attn = GQA(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, bias=attn_bias)
    layer = Layer(pre(norm, attn), pre(norm, GLU(hidden=hidden, bias=ffn_bias)))
    return Decoder(layers=(layer,) * layers, norm=norm, vocab=vocab, **rest)


WIDTHS = dict(num_key_value_heads=None, head_dim=None, max_position_embeddings=2048)
DEFAULTS = WIDTHS | dict(attention_bias=False, mlp_bias=False, tie_word_embeddings=False)


@reads("llama", expected=dict(hidden_act="silu"), **DEFAULTS, rms_norm_eps=1e-6, rope_theta=1e4)
def from_hf(config: Config) -> Decoder:
    config.neutral(rope_interleaved=False)
    return decoder(**config.dense(), biases=(config.flag("attention_bias"), config.flag("mlp_bias")))


def to_hf(spec: Decoder) -> ConfigFields:
    return dense_fields(spec) | fields_of(spec, GQA, bias="attention_bias") | fields_of(spec, GLU, bias="mlp_bias")


_3 = dict(rope=RoPE(5e5), context=8192)
_31 = dict(rope=RoPE(5e5, Llama3Scaling(factor=8, original=8192)), context=131_072)
_32 = dict(rope=RoPE(5e5, Llama3Scaling(factor=32, original=8192)), context=131_072, tied=True)
_8B = dict(dim=4096, layers=32, heads=32, hidden=14_336)
_70B = dict(dim=8192, layers=80, heads=64, hidden=28_672)
_1B = dict(dim=2048, layers=16, heads=32, hidden=8192, head_dim=64)
_3B = dict(dim=3072, layers=28, heads=24, hidden=8192)
ABOUT = About(
    "Llama 3",
    "Grattafiori et al. 2024",
    compared_with="gpt2",
    licence="Llama 3 Community",
    report="https://arxiv.org/abs/2407.21783",
)
BEST_KNOWN = "llama3.1-8b"
SIZES = {
    "llama3-8b": Size("meta-llama/Meta-Llama-3-8B", 8_030_261_248, decoder(**_3, **_8B), released="2024-04"),
    "llama3.1-8b": Size("meta-llama/Llama-3.1-8B", 8_030_261_248, decoder(**_31, **_8B), released="2024-07"),
    "llama3.1-70b": Size("meta-llama/Llama-3.1-70B", 70_553_706_496, decoder(**_31, **_70B), released="2024-07"),
    "llama3.2-1b": Size("meta-llama/Llama-3.2-1B", 1_235_814_400, decoder(**_32, **_1B), released="2024-09"),
    "llama3.2-3b": Size("meta-llama/Llama-3.2-3B", 3_212_749_824, decoder(**_32, **_3B), released="2024-09"),
}
