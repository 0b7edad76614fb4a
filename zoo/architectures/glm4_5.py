"""GLM-4.5 and GLM-4.5-Air (GLM Team 2025), model_type glm4_moe. New here: attention has many narrow heads, rotates the
first half of each head, and has biases only on queries, keys and values. Routing is as in DeepSeek-V3, with a single
group. GLM-4.5 has QK-norm; Air does not.

Trust: medium. The sizes of GLM-4.5 are from a training script for the released checkpoint. For both models, eps and the
flags of the router are the reference's defaults, and the context is from memory.
"""

from functools import partial

from zoo.architectures import deepseek_v3
from zoo.architectures.deepseek_v3 import EXPERTS, ROUTER
from zoo.blocks import GLU, GQA, GroupedSigmoidTopK, MoE, RMSNorm, RoPE
from zoo.hf.checkpoint_layout import Rename, Skipped
from zoo.hf.config import PARTIAL, About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first, layers_before_experts, mixture_fields
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("ffn.block.router.correction", "mlp.gate.e_score_correction_bias"),
    Skipped("model.layers.{layers}.*", "the multi-token prediction layer"),
)


def decoder(*, heads=96, kv_heads=8, head_dim=128, rope, bias=True, qk_norm, eps=1e-5, **rest) -> Decoder:
    norm = RMSNorm(eps) if qk_norm else None
    attn = GQA(heads, kv_heads, head_dim, rope=rope, bias="qkv" if bias else False, qk_norm=norm)
    return deepseek_v3.decoder(attn=attn, eps=eps, **rest)


WIDTHS = dict(num_key_value_heads=8, head_dim=None, max_position_embeddings=131_072, rms_norm_eps=1e-5, rope_theta=1e4)
FLAGS = dict(attention_bias=False, use_qk_norm=False, tie_word_embeddings=False)
MOE = dict(n_routed_experts=128, n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=1408)
ROUTING = dict(n_group=1, topk_group=1, routed_scaling_factor=1.0)
EXPECTED = dict(hidden_act="silu", norm_topk_prob=True)


@reads("glm4_moe", expected=EXPECTED, **WIDTHS, **FLAGS, **MOE, **ROUTING, first_k_dense_replace=1)
def from_hf(config: Config) -> Decoder:
    shape = config.dense(heads_divide=False, fraction=0.5)
    shape |= {"bias": config.flag("attention_bias"), "qk_norm": config.flag("use_qk_norm")}
    shape["dense"] = config.count("first_k_dense_replace", most=shape["layers"])
    router = GroupedSigmoidTopK(**config.typed(GroupedSigmoidTopK, **ROUTER))
    return decoder(**shape, moe=config.mixture(router, **EXPERTS))


def to_hf(spec: Decoder) -> ConfigFields:
    config = dense_fields(spec) | fields_of(spec, RoPE, fraction=PARTIAL)
    if attn := first(spec, GQA):
        config |= {"attention_bias": attn.bias == "qkv", "use_qk_norm": attn.qk_norm is not None}
    config |= {"first_k_dense_replace": layers_before_experts(spec)} | mixture_fields(spec, **EXPERTS)
    return config | fields_of(spec, GroupedSigmoidTopK, **ROUTER)


def _mixture(experts, hidden, scale):
    return MoE(experts, GLU(hidden), GroupedSigmoidTopK(k=8, groups=1, keep=1, scale=scale), shared=GLU(hidden))


_BOTH = dict(rope=RoPE(1e6, fraction=0.5), vocab=151_552, context=131_072)
_355B = dict(dim=5120, layers=92, dense=3, hidden=12_288, qk_norm=True, moe=_mixture(160, 1536, scale=2.5))
_106B = dict(dim=4096, layers=46, dense=1, hidden=10_944, qk_norm=False, moe=_mixture(128, 1408, scale=1.0))
_size = partial(Size, released="2025-07", note="context from memory")
ABOUT = About(
    "GLM-4.5 and GLM-4.5-Air",
    "GLM Team 2025",
    compared_with="deepseek-v3",
    licence="MIT",
    report="https://arxiv.org/abs/2508.06471",
    left_out="multi-token prediction",
)
BEST_KNOWN = "glm4.5-355b"
SIZES = {
    "glm4.5-air-106b": _size("zai-org/GLM-4.5-Air", 106_852_251_264, decoder(**_BOTH, **_106B)),
    "glm4.5-355b": _size("zai-org/GLM-4.5", 352_797_829_024, decoder(**_BOTH, **_355B)),
}
