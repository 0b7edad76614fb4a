"""Mixtral (Jiang et al. 2024). New here: every feed-forward block has eight experts, each as wide as a dense block. A
token visits two experts, whose weights are a softmax over the two chosen logits (section 2.1)."""

from zoo.blocks import GLU, GQA, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, pre
from zoo.hf.checkpoint_layout import NUMBERED, Rename, Stacked
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("ffn.block.router", "block_sparse_moe.gate"),
    *(Stacked(f"ffn.block.experts.{x}", f"block_sparse_moe.experts.{{e}}.{w}.weight") for x, w in NUMBERED.items()),
)


def decoder(
    *, layers, heads, hidden, kv_heads=8, head_dim=128, experts=8, k=2, rope=RoPE(1e6), window=None, eps=1e-5, **rest
) -> Decoder:
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window)
    layer = Layer(pre(norm, attn), pre(norm, MoE(experts, GLU(hidden), SoftmaxTopK(k))))
    return Decoder(layers=(layer,) * layers, norm=norm, **rest)


WIDTHS = dict(num_key_value_heads=8, head_dim=None, sliding_window=None, max_position_embeddings=131_072)
EXPERTS = dict(num_local_experts=8, num_experts_per_tok=2)
DEFAULTS = WIDTHS | EXPERTS | dict(rms_norm_eps=1e-5, rope_theta=1e6, tie_word_embeddings=False)


@reads("mixtral", expected=dict(hidden_act="silu"), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.neutral(router_jitter_noise=0.0)
    experts = config.integers(experts="num_local_experts", k="num_experts_per_tok")
    return decoder(**config.dense(), **experts, window=config.optional("sliding_window"))


def to_hf(spec: Decoder) -> ConfigFields:
    config = dense_fields(spec) | fields_of(spec, GQA, window="sliding_window")
    return (
        config
        | fields_of(spec, MoE, experts="num_local_experts")
        | fields_of(spec, SoftmaxTopK, k="num_experts_per_tok")
    )


_8X7B = dict(dim=4096, layers=32, heads=32, hidden=14_336, vocab=32_000, context=32_768)
_8X22B = dict(dim=6144, layers=56, heads=48, hidden=16_384, vocab=32_000, context=65_536)
ABOUT = About(
    "Mixtral",
    "Jiang et al. 2024",
    compared_with="gpt2",
    licence="Apache-2.0",
    report="https://arxiv.org/abs/2401.04088",
)
SIZES = {
    "mixtral-8x7b": Size("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704, decoder(**_8X7B), released="2023-12"),
    "mixtral-8x22b": Size("mistralai/Mixtral-8x22B-v0.1", 140_620_634_112, decoder(**_8X22B), released="2024-04"),
}
