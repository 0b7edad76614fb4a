"""GLM-4.5 and GLM-4.5-Air (GLM Team 2025), model_type glm4_moe. New here: attention with many narrow heads, biases on
queries, keys and values alone, and rotation of the first half of each head; DeepSeek-V3's routing in a single group.
GLM-4.5 has QK-norm, Air has not.

Trust: medium for GLM-4.5, whose sizes are from a training script for the released checkpoint; eps and the router's
flags of both are the reference's defaults, the context is from memory.
"""

from zoo.blocks import GLU, GQA, GroupedSigmoidTopK, Layer, MoE, RMSNorm, RoPE, pre
from zoo.hf.checkpoint_layout import Rename, Skipped
from zoo.hf.config import PARTIAL, About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("ffn.block.router.correction", "mlp.gate.e_score_correction_bias"),
    Skipped("model.layers.{layers}.*", "the multi-token prediction layer"),
)


def decoder(
    *, layers, dense, heads=96, kv_heads=8, head_dim=128, hidden, moe, rope, bias=True, qk_norm, eps=1e-5, **rest
) -> Decoder:
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, bias="qkv" if bias else False, qk_norm=norm if qk_norm else None)
    first, later = (Layer(pre(norm, attn), pre(norm, ffn)) for ffn in (GLU(hidden), moe))
    return Decoder(layers=(first,) * dense + (later,) * (layers - dense), norm=norm, **rest)


WIDTHS = dict(num_key_value_heads=8, head_dim=None, max_position_embeddings=131_072, rms_norm_eps=1e-5, rope_theta=1e4)
FLAGS = dict(attention_bias=False, use_qk_norm=False, tie_word_embeddings=False)
EXPERTS = dict(n_routed_experts=128, n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=1408)
ROUTING = dict(n_group=1, topk_group=1, routed_scaling_factor=1.0)
EXPECTED = dict(hidden_act="silu", norm_topk_prob=True)
ROUTER = dict(k="num_experts_per_tok", groups="n_group", keep="topk_group", scale="routed_scaling_factor")


@reads(ModelType("glm4_moe"), **WIDTHS, **FLAGS, **EXPERTS, **ROUTING, first_k_dense_replace=1)
def from_hf(config: Config) -> Decoder:
    config.expect(**EXPECTED)
    shape = config.dense() | {"rope": config.rope(fraction=0.5)}
    shape["head_dim"] = config.optional("head_dim") or shape["dim"] // shape["heads"]  # heads need not divide dim
    shape |= {"bias": config.flag("attention_bias"), "qk_norm": config.flag("use_qk_norm")}
    shape["dense"] = config.integer("first_k_dense_replace", most=shape["layers"])
    expert, shared = GLU(config.integer("moe_intermediate_size")), config.integer("n_shared_experts")
    router = GroupedSigmoidTopK(**config.typed(GroupedSigmoidTopK, **ROUTER))
    moe = MoE(config.integer("n_routed_experts"), expert, router, shared=GLU(shared * expert.hidden))
    return decoder(**shape, moe=moe)


def to_hf(spec: Decoder) -> ConfigFields:
    attn, moe = first(spec, GQA), first(spec, MoE)
    config = {"model_type": "glm4_moe"} | EXPECTED | dense_fields(spec) | fields_of(spec, RoPE, fraction=PARTIAL)
    if attn:
        config |= {"attention_bias": attn.bias == "qkv", "use_qk_norm": attn.qk_norm is not None}
    sparse = [first(layer, MoE) is not None for layer in spec.layers]
    config["first_k_dense_replace"] = [*sparse, True].index(True) or 1
    if moe:
        config |= {"n_routed_experts": moe.experts, "moe_intermediate_size": moe.expert.width}
    if moe and moe.shared:  # its width is a multiple of a routed expert's
        config["n_shared_experts"] = moe.shared.width // moe.expert.width or 1
    return config | fields_of(spec, GroupedSigmoidTopK, **ROUTER)


def _mixture(experts, hidden, scale):
    return MoE(experts, GLU(hidden), GroupedSigmoidTopK(k=8, groups=1, keep=1, scale=scale), shared=GLU(hidden))


_BOTH = dict(rope=RoPE(1e6, fraction=0.5), vocab=151_552, context=131_072)
_355B = dict(dim=5120, layers=92, dense=3, hidden=12_288, qk_norm=True, moe=_mixture(160, 1536, scale=2.5))
_106B = dict(dim=4096, layers=46, dense=1, hidden=10_944, qk_norm=False, moe=_mixture(128, 1408, scale=1.0))
NOTE = "context from memory"
ABOUT = About(
    "GLM-4.5 and GLM-4.5-Air",
    "GLM Team 2025",
    came_from="deepseek-v3",
    licence="MIT",
    report="https://arxiv.org/abs/2508.06471",
    left_out="multi-token prediction",
)
BEST_KNOWN = "glm4.5-355b"
SIZES = {
    "glm4.5-air-106b": Size(
        "zai-org/GLM-4.5-Air", 106_852_251_264, decoder(**_BOTH, **_106B), released="2025-07", note=NOTE
    ),
    "glm4.5-355b": Size("zai-org/GLM-4.5", 352_797_829_024, decoder(**_BOTH, **_355B), released="2025-07", note=NOTE),
}
