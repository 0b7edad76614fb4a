"""Qwen2.5 (Yang et al. 2024). New here: queries, keys and values have biases; the output and other matrices do not."""

from zoo.blocks import GLU, GQA, Layer, RMSNorm, RoPE, pre
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, window_fields
from zoo.model.decoder import Decoder


def decoder(
    *, layers, heads, kv_heads, hidden, head_dim=128, eps=1e-6, rope=RoPE(1e6), vocab=152_064, context=131_072, **rest
) -> Decoder:
    norm = RMSNorm(eps)
    layer = Layer(pre(norm, GQA(heads, kv_heads, head_dim, rope=rope, bias="qkv")), pre(norm, GLU(hidden=hidden)))
    return Decoder(vocab, layers=(layer,) * layers, norm=norm, context=context, **rest)


WIDTHS = dict(num_key_value_heads=32, head_dim=None, max_position_embeddings=32_768)
DEFAULTS = WIDTHS | dict(rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False)


@reads("qwen2", expected=dict(hidden_act="silu", use_sliding_window=False), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.unused("sliding_window", "max_window_layers")
    return decoder(**config.dense())


def to_hf(spec: Decoder) -> ConfigFields:
    return dense_fields(spec) | window_fields(spec)


_05B = dict(
    dim=896, layers=24, heads=14, kv_heads=2, head_dim=64, hidden=4864, vocab=151_936, context=32_768, tied=True
)
_7B = dict(dim=3584, layers=28, heads=28, kv_heads=4, hidden=18_944)
_72B = dict(dim=8192, layers=80, heads=64, kv_heads=8, hidden=29_568)
MEMORY = "its config is from memory; only its number of parameters agrees with a published one"
ABOUT = About(
    "Qwen2.5",
    "Yang et al. 2024",
    compared_with="llama3",
    licence="Apache-2.0 (3B: Qwen Research, 72B: Qwen)",
    report="https://arxiv.org/abs/2412.15115",
)
BEST_KNOWN = "qwen2.5-7b"
SIZES = {
    "qwen2.5-0.5b": Size("Qwen/Qwen2.5-0.5B", 494_032_768, decoder(**_05B), released="2024-09"),
    "qwen2.5-7b": Size("Qwen/Qwen2.5-7B", 7_615_616_512, decoder(**_7B), released="2024-09"),
    "qwen2.5-72b": Size("Qwen/Qwen2.5-72B", 72_706_203_648, decoder(**_72B, eps=1e-5), released="2024-09", note=MEMORY),
}
