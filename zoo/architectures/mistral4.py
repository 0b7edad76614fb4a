"""Mistral Small 4 (Mistral AI 2026), text part. Attention is as in DeepSeek-V3, with plain keys and latents that are
half as wide. New here: softmax probabilities route tokens, instead of DeepSeek-V3's sigmoid scores and correction.
Every layer has experts. Queries grow with the logarithm of their position.

Every field is a class default of the reference, which names this model; no released file was inspected. How released
files store experts is not known either. They are written as the reference writes them: all experts of a layer in one
tensor.
"""

from zoo.architectures import deepseek_v3
from zoo.architectures.deepseek_v3 import ROUTER, attention, decoder, read_attention, read_shape
from zoo.architectures.mistral3 import WRAPPER
from zoo.blocks import GLU, MLA, GroupedSoftmaxTopK, LogTemperature, MoE, RoPE, YarnScaling, yarn_gain
from zoo.hf.checkpoint_layout import Rename, stacked_gate_up
from zoo.hf.config import PARTIAL, About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, fields_of, first, temperature_fields
from zoo.model.decoder import Decoder

WEIGHTS = (
    *deepseek_v3.WEIGHTS,
    stacked_gate_up("mlp.experts.gate_up_proj"),
    Rename("ffn.block.experts.down", "mlp.experts.down_proj"),
)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=128.0, original_max_position_embeddings=8192)
YARN |= dict(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)
WIDTHS = dict(num_key_value_heads=32, q_lora_rank=1024, max_position_embeddings=1_048_576)
EXPERTS = dict(n_shared_experts=1, n_group=1, topk_group=1, routed_scaling_factor=1.0, first_k_dense_replace=0)
OTHERS = dict(rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False)
EXPECTED = dict(hidden_act="silu", attention_bias=False, rope_interleave=True, norm_topk_prob=True)


@reads("mistral4", WRAPPER, expected=EXPECTED, **WIDTHS, **EXPERTS, **OTHERS, rope_scaling=YARN)
def from_hf(config: Config) -> Decoder:
    attn = attention(**read_attention(config), temperature=config.temperature())
    width = attn.nope_dim + attn.rope_dim
    config.expect(head_dim=width, qk_head_dim=width)
    config.rope_fields.neutral(partial_rotary_factor=attn.rope_dim / width)
    return decoder(**read_shape(config, GroupedSoftmaxTopK), attn=attn)


def to_hf(spec: Decoder) -> ConfigFields:
    # Without this field, the reference would use the released YaRN. Its frequencies are for the rotary part of a head.
    config, attn = deepseek_v3.to_hf(spec, unscaled={"rope_type": "default"}), first(spec, MLA)
    share = {PARTIAL: attn.rope_dim / (attn.nope_dim + attn.rope_dim)} if attn else {}
    config["rope_scaling"] = (config.get("rope_scaling") or {}) | temperature_fields(spec) | share
    return config | fields_of(spec, GroupedSoftmaxTopK, **ROUTER)


_ROPE = RoPE(1e4, YarnScaling(factor=128, original=8192, gain=1.0))
_HEADS = dict(heads=32, q_rank=1024, kv_rank=256, nope_dim=64, rope_dim=64, v_dim=128)
_ATTN = attention(**_HEADS, rope=_ROPE, gain=yarn_gain(128), temperature=LogTemperature(0.1, 8192))
_MOE = MoE(128, GLU(2048), GroupedSoftmaxTopK(k=4, groups=1, keep=1, scale=1.0), shared=GLU(2048))
_119B = dict(dim=4096, layers=36, dense=0, attn=_ATTN, hidden=12_288, moe=_MOE, vocab=131_072, context=1_048_576)
ABOUT = About(
    "Mistral Small 4",
    "Mistral AI 2026",
    compared_with="deepseek-v3",
    licence="Apache-2.0",
    report="https://huggingface.co/mistralai/Mistral-Small-4-119B-2603",
    left_out="vision",
)
SIZES = {
    "mistral-small-4-119b": Size(
        "mistralai/Mistral-Small-4-119B-2603",
        118_972_826_624,
        decoder(**_119B),
        released="2026-03",
        stated_context=262_144,
        note="every field is the reference's class default",
    )
}
