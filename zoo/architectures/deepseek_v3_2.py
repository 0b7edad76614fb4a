"""DeepSeek-V3.2 (DeepSeek-AI 2025), model_type deepseek_v32. New here: a small indexer chooses 2,048 earlier tokens for
each token, and attention sees only these. Everything else is as in DeepSeek-V3.

The released kernels multiply the indexer's queries and keys by a Hadamard matrix and score them in fp8. The reference
and the zoo do neither: the multiplication does not change the scores, and fp8 only rounds them.
"""

from functools import partial

from zoo.architectures import deepseek_v3
from zoo.architectures.deepseek_v3 import EXPECTED, HEADS, V3, attention, read_attention, read_shape
from zoo.blocks import Indexer, LayerNorm, SparseMLA, yarn_gain
from zoo.hf.checkpoint_layout import Rename
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, fields_of
from zoo.model.decoder import Decoder

# The checkpoint rotates rows j and j + half in the indexer's heads, but rows 2j and 2j + 1 in attention's heads.
WEIGHTS = (
    *deepseek_v3.WEIGHTS,
    Rename("attn.block.indexer.q", "self_attn.indexer.wq_b"),
    Rename("attn.block.indexer.k", "self_attn.indexer.wk"),
    Rename("attn.block.indexer.k_norm", "self_attn.indexer.k_norm"),
    Rename("attn.block.indexer.head_weights", "self_attn.indexer.weights_proj"),
)


def sparse_attention(index, **rest):
    """Returns the attention. `index` holds the heads of the indexer, their width, and the number of chosen tokens."""
    indexer = Indexer(**index, norm=LayerNorm(1e-6))  # not the eps of the config
    return attention(**rest, kind=SparseMLA, indexer=indexer)


KIND = ModelType("deepseek_v32", "DeepseekV32ForCausalLM")
WIDTHS = dict(num_key_value_heads=128, q_lora_rank=1536, max_position_embeddings=163_840)
WIDTHS |= dict(index_n_heads=64, index_head_dim=128, index_topk=2048)
OTHERS = dict(tie_word_embeddings=False, first_k_dense_replace=3)
INDEX = dict(heads="index_n_heads", head_dim="index_head_dim", k="index_topk")


@reads(KIND, expected=EXPECTED, **WIDTHS, rms_norm_eps=1e-6, rope_theta=1e4, **OTHERS)
def from_hf(config: Config) -> Decoder:
    config.expect(indexer_rope_interleave=False)
    return deepseek_v3.decoder(**read_sparse(config))


def read_sparse(config):
    """Returns the arguments of `decoder`, including the attention."""
    shape = read_shape(config)
    config.expect(mlp_bias=False)
    config.unused("head_dim", "qk_head_dim")  # the reference computes both from the widths of the parts
    config.agrees("layer_types", ["indexed_attention"] * shape["layers"])
    kinds = (("dense", shape["dense"]), ("sparse", shape["layers"] - shape["dense"]))
    config.agrees("mlp_layer_types", (kind for kind, number in kinds for _ in range(number)))
    return shape | {"attn": sparse_attention(config.integers(**INDEX), **read_attention(config))}


def to_hf(spec: Decoder) -> ConfigFields:
    return deepseek_v3.to_hf(spec) | fields_of(spec, Indexer, **INDEX)


_ATTN = sparse_attention(dict(heads=64, head_dim=128, k=2048), **HEADS, gain=yarn_gain(40))
_671B = deepseek_v3.decoder(**V3, attn=_ATTN)
ABOUT = About(
    "DeepSeek-V3.2",
    "DeepSeek-AI 2025",
    compared_with="deepseek-v3",
    licence="MIT",
    report="https://arxiv.org/abs/2512.02556",
    left_out="multi-token prediction",
)
_size = partial(Size, released="2025-12", stated_context=131_072)
SIZES = {"deepseek-v3.2-671b": _size("deepseek-ai/DeepSeek-V3.2", 671_877_944_064, _671B)}
