"""Mistral Small 3.1 (Mistral AI 2025), text part. New here: only sizes differ. Heads are narrower than dim / heads. A
few wide layers reduce latency. A RoPE base of 1e9 serves 128k tokens. There is no sliding window any more."""

from zoo.blocks import GLU, GQA, Layer, RMSNorm, RoPE, pre
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of
from zoo.model.decoder import Decoder


def decoder(*, layers, heads, hidden, kv_heads=8, head_dim=128, rope, window=None, temperature=None, eps=1e-5, **rest):
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window, temperature=temperature)
    layer = Layer(pre(norm, attn), pre(norm, GLU(hidden=hidden)))
    return Decoder(layers=(layer,) * layers, norm=norm, **rest)


HEADS = dict(num_key_value_heads=8, head_dim=None, sliding_window=4096, max_position_embeddings=131_072)
DEFAULTS = HEADS | dict(rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False)


WRAPPER = ModelType("mistral3", "Mistral3ForConditionalGeneration")


@reads("mistral", WRAPPER, expected=dict(hidden_act="silu"), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.neutral(attention_bias=False, mlp_bias=False)
    return decoder(**config.dense(), window=config.optional("sliding_window"))


def to_hf(spec: Decoder) -> ConfigFields:
    return dense_fields(spec) | fields_of(spec, GQA, window="sliding_window")


_24B = dict(dim=5120, layers=40, heads=32, hidden=32_768, rope=RoPE(1e9), vocab=131_072, context=131_072)
ABOUT = About(
    "Mistral Small 3.1",
    "Mistral AI 2025",
    compared_with="llama3",
    licence="Apache-2.0",
    report="https://mistral.ai/news/mistral-small-3-1",
    left_out="vision",
)
SIZES = {
    "mistral-small-3.1-24b": Size(
        "mistralai/Mistral-Small-3.1-24B-Base-2503", 23_572_403_200, decoder(**_24B), released="2025-03"
    ),
}
