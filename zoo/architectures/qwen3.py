"""Qwen3 (Yang et al. 2025), dense and mixture-of-experts. New here: QK-norm on every head before RoPE, and a head_dim
that is not dim / heads. There is no shared expert, and the weights of the chosen experts are renormalised."""

from functools import partial

from zoo.blocks import GLU, GQA, FeedForward, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, pre
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first, mixture_fields, window_fields
from zoo.model.decoder import Decoder


def decoder(
    *, layers, heads, ffn, kv_heads=8, head_dim=128, eps=1e-6, rope=RoPE(1e6), vocab=151_936, context=40_960, **rest
):
    norm = RMSNorm(eps)
    layer = Layer(pre(norm, GQA(heads, kv_heads, head_dim, rope=rope, qk_norm=norm)), pre(norm, ffn))
    return Decoder(vocab, layers=(layer,) * layers, norm=norm, context=context, **rest)


def mixture(hidden):
    return MoE(128, expert=GLU(hidden), router=SoftmaxTopK(k=8))


DENSE = ModelType("qwen3", defaults=dict(num_key_value_heads=32, head_dim=128))
SPARSE = ModelType("qwen3_moe", defaults=dict(num_key_value_heads=4, head_dim=None, norm_topk_prob=False))
DEFAULTS = dict(max_position_embeddings=32_768, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False)
EXPERTS = dict(experts="num_experts", hidden="moe_intermediate_size")
ROUTER = dict(k="num_experts_per_tok", renormalise="norm_topk_prob")
EXPECTED = dict(hidden_act="silu", attention_bias=False, use_sliding_window=False)


@reads(DENSE, SPARSE, expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.neutral(qkv_bias=False, mlp_bias=False, use_qk_norm=True)
    config.unused("sliding_window", "max_window_layers")
    shape = config.dense()
    ffn: FeedForward = GLU(shape.pop("hidden"))
    if config.model_type == "qwen3_moe":
        config.expect(decoder_sparse_step=1)
        config.neutral(mlp_only_layers=[], shared_expert_intermediate_size=0)
        named = EXPERTS | {"experts": config.spelled("num_experts", "num_local_experts")}
        ffn = config.mixture(SoftmaxTopK(**config.typed(SoftmaxTopK, **ROUTER)), **named)
    return decoder(**shape, ffn=ffn)


def to_hf(spec: Decoder) -> ConfigFields:
    config = dense_fields(spec) | window_fields(spec)
    if first(spec, MoE):
        config |= {"model_type": "qwen3_moe"} | mixture_fields(spec, **EXPERTS) | fields_of(spec, SoftmaxTopK, **ROUTER)
    return config


_SMALL = dict(layers=28, heads=16, tied=True)
_30B = decoder(dim=2048, layers=48, heads=32, kv_heads=4, ffn=mixture(768))
_235B = decoder(dim=4096, layers=94, heads=64, kv_heads=4, ffn=mixture(1536))
_size = partial(Size, released="2025-04")
ABOUT = About(
    "Qwen3",
    "Yang et al. 2025",
    compared_with="qwen2-5",
    licence="Apache-2.0",
    report="https://arxiv.org/abs/2505.09388",
)
BEST_KNOWN = "qwen3-8b"
SIZES = {
    "qwen3-0.6b": _size("Qwen/Qwen3-0.6B", 596_049_920, decoder(**_SMALL, dim=1024, ffn=GLU(3072))),
    "qwen3-1.7b": _size("Qwen/Qwen3-1.7B", 1_720_574_976, decoder(**_SMALL, dim=2048, ffn=GLU(6144))),
    "qwen3-4b": _size("Qwen/Qwen3-4B", 4_022_468_096, decoder(dim=2560, layers=36, heads=32, ffn=GLU(9728), tied=True)),
    "qwen3-8b": _size("Qwen/Qwen3-8B", 8_190_735_360, decoder(dim=4096, layers=36, heads=32, ffn=GLU(12_288))),
    "qwen3-14b": _size("Qwen/Qwen3-14B", 14_768_307_200, decoder(dim=5120, layers=40, heads=40, ffn=GLU(17_408))),
    "qwen3-32b": _size("Qwen/Qwen3-32B", 32_762_123_264, decoder(dim=5120, layers=64, heads=64, ffn=GLU(25_600))),
    "qwen3-30b-a3b": _size("Qwen/Qwen3-30B-A3B", 30_532_122_624, _30B),
    "qwen3-235b-a22b": _size("Qwen/Qwen3-235B-A22B", 235_093_634_560, _235B),
}
