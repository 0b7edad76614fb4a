"""Qwen3 (Yang et al. 2025), dense and mixture-of-experts. New here: QK-norm on every head before RoPE, a head_dim that is
not dim / heads; and experts without a shared one, the weights of the chosen renormalised."""

from zoo.blocks import GLU, GQA, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, pre
from zoo.config import Config, Size, reads
from zoo.decoder import Decoder


def decoder(
    *, layers, heads, ffn, kv_heads=8, head_dim=128, eps=1e-6, rope=RoPE(1e6), vocab=151_936, **rest
) -> Decoder:
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, qk_norm=norm)
    layer = Layer(pre(norm, attn), pre(norm, ffn))
    return Decoder(layers=(layer,) * layers, norm=norm, vocab=vocab, **rest)


def experts(hidden: int, experts: int = 128, k: int = 8, renormalise: bool = True) -> MoE:
    return MoE(experts, expert=GLU(hidden), router=SoftmaxTopK(k, renormalise))


@reads(
    *("qwen3", "qwen3_moe"),
    **dict(num_key_value_heads=None, head_dim=128, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False),
    norm_topk_prob=False,
)
def from_hf(config: Config) -> Decoder:
    config.expect(hidden_act="silu", attention_bias=False, use_sliding_window=False)
    config.unused("sliding_window", "max_window_layers")
    shape = config.dense()
    hidden = shape.pop("hidden")
    ffn = _experts(config) if config.model_type == "qwen3_moe" else GLU(hidden)
    spec = decoder(**shape, head_dim=config.head_dim(), rope=config.rope(), ffn=ffn)
    config.agrees_on_windows(spec)
    return spec


def _experts(config: Config) -> MoE:
    config.expect(decoder_sparse_step=1, mlp_only_layers=[])
    count = config.integer("num_local_experts" if "num_local_experts" in config.values else "num_experts")
    hidden, k = config.integer("moe_intermediate_size"), config.integer("num_experts_per_tok")
    return experts(hidden, count, k, renormalise=config.flag("norm_topk_prob"))


_06B = dict(dim=1024, layers=28, heads=16, ffn=GLU(3072), tied=True, context=40_960)
_17B = dict(dim=2048, layers=28, heads=16, ffn=GLU(6144), tied=True, context=40_960)
_4B = dict(dim=2560, layers=36, heads=32, ffn=GLU(9728), tied=True, context=40_960)
_8B = dict(dim=4096, layers=36, heads=32, ffn=GLU(12_288), context=40_960)
_14B = dict(dim=5120, layers=40, heads=40, ffn=GLU(17_408), context=40_960)
_32B = dict(dim=5120, layers=64, heads=64, ffn=GLU(25_600), context=40_960)
_30B = dict(dim=2048, layers=48, heads=32, kv_heads=4, ffn=experts(768), context=40_960)
_235B = dict(dim=4096, layers=94, heads=64, kv_heads=4, ffn=experts(1536), context=40_960)
SIZES = {
    "qwen3-0.6b": Size("Qwen/Qwen3-0.6B", 596_049_920, decoder(**_06B)),
    "qwen3-1.7b": Size("Qwen/Qwen3-1.7B", 1_720_574_976, decoder(**_17B)),
    "qwen3-4b": Size("Qwen/Qwen3-4B", 4_022_468_096, decoder(**_4B)),
    "qwen3-8b": Size("Qwen/Qwen3-8B", 8_190_735_360, decoder(**_8B)),
    "qwen3-14b": Size("Qwen/Qwen3-14B", 14_768_307_200, decoder(**_14B)),
    "qwen3-32b": Size("Qwen/Qwen3-32B", 32_762_123_264, decoder(**_32B)),
    "qwen3-30b-a3b": Size("Qwen/Qwen3-30B-A3B", 30_532_122_624, decoder(**_30B)),
    "qwen3-235b-a22b": Size("Qwen/Qwen3-235B-A22B", 235_093_634_560, decoder(**_235B)),
}
