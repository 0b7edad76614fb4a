"""Qwen3.5 (Qwen Team 2026), text part, dense and mixture-of-experts. New here: the layer
pattern of Qwen3-Next in dense models too, and one stored tensor for each projection of Gated DeltaNet.

The released models also read images, so each token has three positions, and each of them rotates some of a head's pairs
(interleaved M-RoPE). For text the three positions are equal, which makes this ordinary RoPE. The configs of the 0.8B to
9B sizes are reconstructed: their numbers come from public copies, everything else from the config of the 27B.
"""

from functools import partial

from zoo.architectures.qwen3_next import (
    DEFAULTS,
    EXPECTED,
    EXPERTS,
    SHARED_WEIGHTS,
    expert_fields,
    mixer_fields,
    mixture,
    pattern,
    read_mixers,
)
from zoo.architectures.qwen3_next import decoder as hybrid
from zoo.blocks import GLU, MoE, RoPE
from zoo.hf.checkpoint_layout import Rename, Skipped
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, first
from zoo.model.decoder import Decoder

STORED = dict(qkv="qkv", gate="z", beta="b", decay="a")
WEIGHTS = (
    *SHARED_WEIGHTS,
    *(Rename(f"attn.block.{name}", f"linear_attn.in_proj_{stored}") for name, stored in STORED.items()),
    Skipped("model.visual.*", "the vision tower"),
)
DENSE = dict(num_key_value_heads=4)
SPARSE = dict(num_key_value_heads=2, num_experts=256, num_experts_per_tok=8)
SPARSE |= dict(moe_intermediate_size=512, shared_expert_intermediate_size=512)
KINDS = (
    ModelType("qwen3_5_text", "Qwen3_5ForCausalLM", defaults=DENSE),
    ModelType("qwen3_5", "Qwen3_5ForConditionalGeneration", defaults=DENSE),
    ModelType("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", defaults=SPARSE),
    ModelType("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", defaults=SPARSE),
)


@reads(*KINDS, expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    # Fields for computations that the reference always does, and for multi-token prediction layers.
    config.neutral(attn_output_gate=True, output_gate_type="swish", mamba_ssm_dtype="float32", mlp_only_layers=[])
    config.unused("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    # The number of pairs in a head that each of the three positions rotates.
    config.rope_fields.unused("mrope_section", "mrope_interleaved")
    shape = read_mixers(config)
    if config.model_type in ("qwen3_5_moe_text", "qwen3_5_moe"):
        config.unused("intermediate_size")  # there are no dense layers
        return hybrid(**shape, ffn=mixture(**config.integers(**EXPERTS, k="num_experts_per_tok")))
    return hybrid(**shape, ffn=GLU(config.integer("intermediate_size")))


def to_hf(spec: Decoder) -> ConfigFields:
    if not first(spec, MoE):
        return mixer_fields(spec)
    config = {"model_type": "qwen3_5_moe_text"} | mixer_fields(spec) | expert_fields(spec)
    return {name: value for name, value in config.items() if name != "norm_topk_prob"}


def gguf_fields(spec: Decoder) -> ConfigFields:
    """Returns the .gguf metadata that only this architecture has: how many pairs each of the three positions rotates.
    For text the positions are equal, so any numbers would do."""
    return {"rope.dimension_sections": ...}


def decoder(*, layers, key_heads=16, value_heads, head_dim=256, vocab=248_320, context=262_144, **rest):
    sizes = dict(key_heads=key_heads, value_heads=value_heads, key_dim=128, value_dim=128, conv=4)
    rest |= dict(head_dim=head_dim, vocab=vocab, context=context, rope=RoPE(1e7, fraction=0.25))
    return hybrid(types=pattern(layers), linear=sizes, **rest)


_SMALL = dict(layers=24, heads=8, kv_heads=2, value_heads=16, tied=True)
_MIDDLE = dict(layers=32, heads=16, kv_heads=4, value_heads=32)
_27B = dict(layers=64, heads=24, kv_heads=4, value_heads=48)
_LARGE = dict(heads=32, kv_heads=2, value_heads=64)
_35B = dict(layers=40, heads=16, kv_heads=2, value_heads=32, ffn=mixture(512, 512, experts=256, k=8))
_122B = dict(_LARGE, layers=48, ffn=mixture(1024, 1024, experts=256, k=8))
_397B = dict(_LARGE, layers=60, ffn=mixture(1024, 1024, experts=512, k=10))
_NOTE = "the config is put together from public copies of its sizes and the 27B file; the month is from memory"
_pieced, _size = partial(Size, released="2026-03", note=_NOTE), partial(Size, released="2026-02")
ABOUT = About(
    "Qwen3.5",
    "Qwen Team 2026",
    compared_with="qwen3-next",
    licence="Apache-2.0",
    report="https://huggingface.co/Qwen/Qwen3.5-27B",
    left_out="vision, multi-token prediction",
)
BEST_KNOWN = "qwen3.5-27b"
SIZES = {
    "qwen3.5-0.8b": _pieced("Qwen/Qwen3.5-0.8B", 752_393_024, decoder(**_SMALL, dim=1024, ffn=GLU(3584))),
    "qwen3.5-2b": _pieced("Qwen/Qwen3.5-2B", 1_881_825_088, decoder(**_SMALL, dim=2048, ffn=GLU(6144))),
    "qwen3.5-4b": _pieced("Qwen/Qwen3.5-4B", 4_205_751_296, decoder(**_MIDDLE, dim=2560, ffn=GLU(9216), tied=True)),
    "qwen3.5-9b": _pieced("Qwen/Qwen3.5-9B", 8_953_803_264, decoder(**_MIDDLE, dim=4096, ffn=GLU(12_288))),
    "qwen3.5-27b": _size("Qwen/Qwen3.5-27B", 26_895_998_464, decoder(**_27B, dim=5120, ffn=GLU(17_408))),
    "qwen3.5-35b-a3b": _size("Qwen/Qwen3.5-35B-A3B", 34_660_610_688, decoder(**_35B, dim=2048)),
    "qwen3.5-122b-a10b": _size("Qwen/Qwen3.5-122B-A10B", 122_111_526_912, decoder(**_122B, dim=3072)),
    "qwen3.5-397b-a17b": _size("Qwen/Qwen3.5-397B-A17B", 396_346_350_336, decoder(**_397B, dim=4096)),
}
