"""MiniMax-M2 (MiniMax 2025). New here: full attention again, after the linear attention of MiniMax-01. QK-norm over the
whole projection, with rotation of the first half of each head. Sigmoid scores with a correction bias choose among 256
experts, without groups and without a shared expert.

The reference divides the chosen weights by their sum. The zoo adds 1e-20 to the sum, which changes no weight. Trust:
medium. The config is that of M2.5, which has the same shape; `quantization_config` and `auto_map` are from memory.
"""

from zoo.architectures import mixtral
from zoo.blocks import GLU, GQA, GroupedSigmoidTopK, Layer, MoE, RMSNorm, RoPE, pre
from zoo.hf.checkpoint_layout import Rename
from zoo.hf.config import PARTIAL, About, Config, ModelType, Remote, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first
from zoo.model.decoder import Decoder

WEIGHTS = (*mixtral.WEIGHTS, Rename("ffn.block.router.correction", "block_sparse_moe.e_score_correction_bias"))


def decoder(*, layers, heads, kv_heads, head_dim, hidden, experts, k, rope, eps=1e-6, **rest) -> Decoder:
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, qk_norm=norm, qk_norm_over="projection")
    moe = MoE(experts, GLU(hidden), GroupedSigmoidTopK(k, groups=1, keep=1, scale=1.0))
    return Decoder(layers=(Layer(pre(norm, attn), pre(norm, moe)),) * layers, norm=norm, **rest)


KIND = ModelType("minimax_m2", "MiniMaxM2ForCausalLM", remote=Remote("minimax_m2", "MiniMaxM2", ("MiniMaxAI",)))
WIDTHS = dict(num_key_value_heads=8, head_dim=128, rotary_dim=None, max_position_embeddings=196_608)
EXPERTS = dict(num_local_experts=256, num_experts_per_tok=8)
OTHERS = dict(rms_norm_eps=1e-6, rope_theta=5e6, tie_word_embeddings=False)
EXPECTED = dict(hidden_act="silu", use_qk_norm=True, qk_norm_type="per_layer")
EXPECTED |= dict(use_routing_bias=True, scoring_func="sigmoid", shared_intermediate_size=0)
# Fields of draft layers, which the files do not contain, and of a shared expert, which the model does not have.
UNREAD = "use_mtp", "mtp_transformer_layers", "num_mtp_modules", "shared_moe_mode", "mlp_intermediate_size"


@reads(KIND, expected=EXPECTED, **WIDTHS, **EXPERTS, **OTHERS)
def from_hf(config: Config) -> Decoder:
    config.neutral(router_jitter_noise=0.0)
    config.unused(*UNREAD)
    head_dim, rotated = config.head_dim(), config.optional("rotary_dim")
    shape = config.dense(fraction=rotated / head_dim if rotated else 1.0)
    if rotated:  # the reference also writes the rotated share, which must agree
        config.expect(rotary_dim=shape["rope"].rotated(head_dim))
    config.agrees("attn_type_list", [1] * shape["layers"])  # 0 is linear attention
    return decoder(**shape, **config.integers(experts="num_local_experts", k="num_experts_per_tok"))


def to_hf(spec: Decoder) -> ConfigFields:
    config = dense_fields(spec) | fields_of(spec, MoE, experts="num_local_experts")
    config |= fields_of(spec, RoPE, fraction=PARTIAL)
    attn = first(spec, GQA)
    if attn and isinstance(attn.rope, RoPE):
        config["rotary_dim"] = attn.rope.rotated(attn.head_dim)
    return config | fields_of(spec, GroupedSigmoidTopK, k="num_experts_per_tok")


_ATTN = dict(heads=48, kv_heads=8, head_dim=128, rope=RoPE(5e6, fraction=0.5))
_230B = dict(_ATTN, dim=3072, layers=62, hidden=1536, experts=256, k=8, vocab=200_064, context=196_608)
NOTE = "read from the config of M2.5"
ABOUT = About(
    "MiniMax-M2",
    "MiniMax 2025",
    compared_with="qwen3",
    licence="Modified MIT",
    report="https://github.com/MiniMax-AI/MiniMax-M2",
    left_out="multi-token prediction",
)
SIZES = {
    "minimax-m2-230b": Size("MiniMaxAI/MiniMax-M2", 228_689_764_864, decoder(**_230B), released="2025-10", note=NOTE),
}
