"""Phi-4 (Abdin et al. 2024). New here: nothing but proportions, ten KV heads among them, and how it is stored: queries,
keys and values in one matrix, gate and up in another."""

from zoo.blocks import GLU, GQA, Layer, RMSNorm, RoPE, pre
from zoo.hf.checkpoint_layout import FusedQKV, Rearranged
from zoo.hf.config import PARTIAL, Config, ModelType, Remote, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of
from zoo.model.decoder import Decoder

WEIGHTS = (
    FusedQKV(("attn.block.q", "attn.block.k", "attn.block.v"), "self_attn.qkv_proj"),
    Rearranged(("ffn.block.gate", "ffn.block.up"), "mlp.gate_up_proj", "(gate_up hidden) dim -> gate_up hidden dim"),
)


def decoder(
    *, layers, heads, kv_heads, hidden, head_dim=128, window=None, rope=RoPE(2.5e5), eps=1e-5, **rest
) -> Decoder:
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window)
    layer = Layer(pre(norm, attn), pre(norm, GLU(hidden=hidden)))
    return Decoder(layers=(layer,) * layers, norm=norm, **rest)


REMOTE = Remote(("configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"), publishers=("microsoft",))
WIDTHS = dict(num_key_value_heads=None, head_dim=None, sliding_window=None, max_position_embeddings=4096)
DEFAULTS = WIDTHS | dict(rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False)


@reads(ModelType("phi3", remote=REMOTE), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.expect(hidden_act="silu")
    config.neutral(attention_bias=False, mlp_bias=False)
    rope = config.rope(fraction=1.0)
    if rope.scaling is not None:  # the reference has LongRoPE alone here, and takes "yarn" for its older name
        raise config.error(f"{rope.scaling.describe()} as the scaling of RoPE is not supported, only none")
    config.unused("original_max_position_embeddings")  # what LongRoPE stretches
    window = config.optional("sliding_window")
    return decoder(**config.dense(), head_dim=config.head_dim(), window=window, rope=rope)


def to_hf(spec: Decoder) -> ConfigFields:
    config = {"model_type": "phi3", "hidden_act": "silu"} | dense_fields(spec)
    config.pop("rope_scaling", None)  # none is supported
    return config | fields_of(spec, GQA, window="sliding_window") | fields_of(spec, RoPE, fraction=PARTIAL)


_14B = dict(dim=5120, layers=40, heads=40, kv_heads=10, hidden=17_920, vocab=100_352, context=16_384)
SIZES = {"phi4-14b": Size("microsoft/phi-4", 14_659_507_200, decoder(**_14B), released="2024-12")}
