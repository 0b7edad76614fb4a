"""Qwen3 (Yang et al. 2025), dense and mixture-of-experts. New here: QK-norm on every head before RoPE, a head_dim that
is not dim / heads; and experts without a shared one, the weights of the chosen renormalised."""

from functools import partial

from zoo.blocks import GLU, GQA, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, pre
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first, window_fields
from zoo.model.decoder import Decoder


def decoder(
    *, layers, heads, ffn, kv_heads=8, head_dim=128, eps=1e-6, rope=RoPE(1e6), vocab=151_936, context=40_960, **rest
):
    norm = RMSNorm(eps)
    layer = Layer(pre(norm, GQA(heads, kv_heads, head_dim, rope=rope, qk_norm=norm)), pre(norm, ffn))
    return Decoder(vocab, layers=(layer,) * layers, norm=norm, context=context, **rest)


def mixture(hidden, experts=128, k=8, renormalise=True):
    return MoE(experts, expert=GLU(hidden), router=SoftmaxTopK(k, renormalise))


DENSE = ModelType("qwen3", defaults=dict(num_key_value_heads=32, head_dim=128))
SPARSE = ModelType("qwen3_moe", defaults=dict(num_key_value_heads=4, head_dim=None, norm_topk_prob=False))
DEFAULTS = dict(max_position_embeddings=32_768, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False)
ROUTER = dict(k="num_experts_per_tok", renormalise="norm_topk_prob")
EXPECTED = dict(hidden_act="silu", attention_bias=False, use_sliding_window=False)


@reads(DENSE, SPARSE, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.expect(**EXPECTED)
    config.neutral(qkv_bias=False, mlp_bias=False, use_qk_norm=True)
    config.unused("sliding_window", "max_window_layers")
    shape = config.dense()
    dense = GLU(shape.pop("hidden"))
    ffn = _mixture(config) if config.model_type == "qwen3_moe" else dense
    spec = decoder(**shape, head_dim=config.head_dim(), rope=config.rope(), ffn=ffn)
    config.agrees_on_windows(spec)
    return spec


def _mixture(config):
    config.expect(decoder_sparse_step=1)
    config.neutral(mlp_only_layers=[], shared_expert_intermediate_size=0)
    count = "num_experts" if "num_experts" in config.values else "num_local_experts"
    shape = config.integers(hidden="moe_intermediate_size", experts=count)
    return mixture(**shape, **config.typed(SoftmaxTopK, **ROUTER))


def to_hf(spec: Decoder) -> ConfigFields:
    config = {"model_type": "qwen3"} | EXPECTED | dense_fields(spec) | window_fields(spec)
    if not first(spec, MoE):
        return config
    experts = fields_of(spec, MoE, experts="num_experts") | fields_of(spec, GLU, hidden="moe_intermediate_size")
    return config | {"model_type": "qwen3_moe"} | experts | fields_of(spec, SoftmaxTopK, **ROUTER)


_SMALL = dict(layers=28, heads=16, tied=True)
_30B = decoder(dim=2048, layers=48, heads=32, kv_heads=4, ffn=mixture(768))
_235B = decoder(dim=4096, layers=94, heads=64, kv_heads=4, ffn=mixture(1536))
_size = partial(Size, released="2025-04")
ABOUT = About(
    "Qwen3", "Yang et al. 2025", came_from="qwen2-5", licence="Apache-2.0", report="https://arxiv.org/abs/2505.09388"
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
