"""OLMo 2 (OLMo et al. 2025). New here: norms follow attention and feed-forward, inside the residual branch (x +
norm(f(x)), section 3.1). QK-norm runs over the whole projection instead of each head."""

from zoo.blocks import GLU, GQA, Layer, RMSNorm, RoPE, olmo
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields
from zoo.model.decoder import Decoder


def decoder(
    *, layers, heads, hidden, kv_heads, head_dim=128, eps=1e-6, rope=RoPE(5e5), vocab=100_352, context=4096, **rest
):
    norm = RMSNorm(eps, scale_in_fp32=True)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, qk_norm=norm, qk_norm_over="projection")
    layer = Layer(olmo(norm, attn), olmo(norm, GLU(hidden=hidden)))
    return Decoder(vocab, layers=(layer,) * layers, norm=norm, context=context, **rest)


WIDTHS = dict(num_key_value_heads=None, head_dim=None, max_position_embeddings=2048)
DEFAULTS = WIDTHS | dict(rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False)


@reads("olmo2", expected=dict(hidden_act="silu", attention_bias=False), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.neutral(mlp_bias=False)
    return decoder(**config.dense())


def to_hf(spec: Decoder) -> ConfigFields:
    return dense_fields(spec)


_1B = dict(dim=2048, layers=16, heads=16, kv_heads=16, hidden=8192)
_7B = dict(dim=4096, layers=32, heads=32, kv_heads=32, hidden=11_008)
_13B = dict(dim=5120, layers=40, heads=40, kv_heads=40, hidden=13_824)
_32B = dict(dim=5120, layers=64, heads=40, kv_heads=8, hidden=27_648)
ABOUT = About(
    "OLMo 2",
    "OLMo et al. 2025",
    compared_with="llama3",
    licence="Apache-2.0",
    report="https://arxiv.org/abs/2501.00656",
)
BEST_KNOWN = "olmo2-7b"
SIZES = {
    "olmo2-1b": Size("allenai/OLMo-2-0425-1B", 1_484_916_736, decoder(**_1B), released="2025-04"),
    "olmo2-7b": Size("allenai/OLMo-2-1124-7B", 7_298_617_344, decoder(**_7B), released="2024-11"),
    "olmo2-13b": Size("allenai/OLMo-2-1124-13B", 13_716_198_400, decoder(**_13B), released="2024-11"),
    "olmo2-32b": Size("allenai/OLMo-2-0325-32B", 32_234_279_936, decoder(**_32B), released="2025-03"),
}
