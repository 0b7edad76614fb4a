"""GLM-5 and GLM-5.2 (GLM Team 2026), model_type glm_moe_dsa. New here: in GLM-5.2, three of four layers have no
indexer. They attend to the tokens that the nearest earlier indexer chose. Everything else is as in DeepSeek-V3.2, but
with fewer and wider heads, one group of experts, and no RoPE scaling."""

from dataclasses import replace

from zoo.architectures import deepseek_v3
from zoo.architectures.deepseek_v3_2 import OTHERS, read_sparse, sparse_attention
from zoo.architectures.deepseek_v3_2 import to_hf as to_hf_v3_2
from zoo.blocks import GLU, GroupedSigmoidTopK, MoE, RoPE, SparseMLA
from zoo.hf.checkpoint_layout import PairedRows, Rename
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields
from zoo.model.decoder import Decoder, swap_layers


def _index_split(attn):
    return 0, attn.rope_dim, attn.indexer.head_dim - attn.rope_dim


# The checkpoint rotates neighbouring rows as pairs, in the indexer too.
PAIRED = dict(q="wq_b", k="wk", k_norm="k_norm")
WEIGHTS = (
    *deepseek_v3.WEIGHTS,
    *(PairedRows(f"attn.block.indexer.{x}", f"self_attn.indexer.{y}", _index_split) for x, y in PAIRED.items()),
    Rename("attn.block.indexer.head_weights", "self_attn.indexer.weights_proj"),
)
FULL, SHARED = "full", "shared"  # layers with an indexer, and layers that reuse an earlier layer's choice


def decoder(*, indexers, **rest):
    spec = deepseek_v3.decoder(**rest, layers=len(indexers))
    if SHARED not in indexers:
        return spec
    return swap_layers(spec, lambda i: indexers[i] == SHARED, SparseMLA, lambda attn: replace(attn, shares_choice=True))


KIND = ModelType("glm_moe_dsa", "GlmMoeDsaForCausalLM")
WIDTHS = dict(num_key_value_heads=64, q_lora_rank=2048, max_position_embeddings=202_752)
WIDTHS |= dict(index_n_heads=32, index_head_dim=128, index_topk=2048)


@reads(KIND, expected=deepseek_v3.EXPECTED, **WIDTHS, rms_norm_eps=1e-5, rope_theta=1e4, **OTHERS)
def from_hf(config: Config) -> Decoder:
    config.expect(indexer_rope_interleave=True, moe_router_dtype="float32")
    config.unused("index_share_for_mtp_iteration")  # for the multi-token prediction layer only
    shape = read_sparse(config)
    return decoder(indexers=read_indexers(config, shape.pop("layers")), **shape)


def read_indexers(config, layers):
    """Returns the kind of each layer from `indexer_types`. Without this field, every layer has an indexer. The
    reference would then derive the kinds from other fields, so these must have their default values."""
    given = config.values.get("indexer_types")
    if given is None:
        config.expect(index_topk_freq=1, index_topk_pattern=None)
    config.unused("index_topk_freq", "index_topk_pattern", "index_skip_topk_offset")
    listed = given if isinstance(given, list) else []
    kinds = [SHARED if kind == SHARED else FULL for kind in (*listed[:layers], *[FULL] * (layers - len(listed)))]
    config.agrees("indexer_types", kinds)
    return kinds


def to_hf(spec: Decoder) -> ConfigFields:
    kinds = [SHARED if getattr(layer.mixer, "shares_choice", False) else FULL for layer in spec.layers]
    return to_hf_v3_2(spec) | {"indexer_types": kinds}


def _glm5(theta, **rest):
    widths = dict(heads=64, q_rank=2048, kv_rank=512, nope_dim=192, rope_dim=64, v_dim=256)
    attn = sparse_attention(dict(heads=32, head_dim=128, k=2048), **widths, rope=RoPE(theta), gain=1.0)
    moe = MoE(256, GLU(2048), GroupedSigmoidTopK(k=8, groups=1, keep=1, scale=2.5), shared=GLU(2048))
    return decoder(dim=6144, dense=3, attn=attn, hidden=12_288, moe=moe, vocab=154_880, eps=1e-5, **rest)


_5 = _glm5(1e6, indexers=[FULL] * 78, context=202_752)
# Three full layers, then repetitions of three shared layers and a full layer.
_52 = _glm5(8e6, indexers=[FULL if i < 3 or i % 4 == 2 else SHARED for i in range(78)], context=1_048_576)
ABOUT = About(
    "GLM-5 and GLM-5.2",
    "GLM Team 2026",
    compared_with="deepseek-v3-2",
    licence="MIT",
    report="https://arxiv.org/abs/2602.15763",
    left_out="multi-token prediction",
)
SIZES = {
    "glm5-744b": Size("zai-org/GLM-5", 743_911_218_432, _5, released="2026-02"),
    "glm5.2-744b": Size("zai-org/GLM-5.2", 743_377_019_904, _52, released="2026-06"),
}
