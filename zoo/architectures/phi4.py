"""Phi-4 (Abdin et al. 2024) and Phi-4-mini (Abouelenin et al. 2025). New here: Phi-4-mini has LongRoPE, with a factor
for each rotary frequency. One matrix stores queries, keys and values; another stores gate and up."""

from zoo.architectures import mistral3
from zoo.architectures.mistral3 import decoder
from zoo.blocks import LongRoPE, RoPE, longrope_gain
from zoo.hf.checkpoint_layout import Rearranged, fused_qkv
from zoo.hf.config import ORIGINAL, PARTIAL, About, Config, ModelType, Remote, Size, reads
from zoo.hf.write_config import ConfigFields, fields_of, first, first_rope
from zoo.model.decoder import Decoder

WEIGHTS = (
    fused_qkv("self_attn.qkv_proj"),
    Rearranged(("ffn.block.gate", "ffn.block.up"), "mlp.gate_up_proj", "(gate_up hidden) dim -> gate_up hidden dim"),
)
KIND = ModelType("phi3", remote=Remote("phi3", "Phi3", publishers=("microsoft",)))
WIDTHS = dict(num_key_value_heads=None, head_dim=None, sliding_window=None)
CONTEXTS = dict.fromkeys(("max_position_embeddings", ORIGINAL), 4096)
DEFAULTS = WIDTHS | CONTEXTS | dict(rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False)


@reads(KIND, expected=dict(hidden_act="silu"), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.neutral(attention_bias=False, mlp_bias=False, lm_head_bias=False, full_attn_mod=1, interpolate_factor=1)
    shape, window = config.dense(fraction=1.0, synonyms={"su": "longrope"}), config.optional("sliding_window")
    rope = shape["rope"]
    if rope.scaling is None:
        config.unused(ORIGINAL)
    elif not isinstance(rope.scaling, LongRoPE):  # the reference supports no other scaling here
        raise config.error(f"{rope.scaling.describe()} as the scaling of RoPE is not supported, only LongRoPE")
    elif (original := config.integer(ORIGINAL)) != rope.scaling.original:  # the reference reads the top-level field
        raise config.error(f"{ORIGINAL} is {original}, but {rope.scaling.original} in the scaling of RoPE")
    if window and window >= shape["context"]:  # a window as long as the context hides nothing
        window = None
    return decoder(**shape, window=window)


def to_hf(spec: Decoder) -> ConfigFields:
    config = mistral3.to_hf(spec) | fields_of(spec, RoPE, fraction=PARTIAL)
    scaling, rope = config.pop("rope_scaling", None), first_rope(spec)
    if rope and isinstance(rope.scaling, LongRoPE):
        config |= {"rope_scaling": scaling, ORIGINAL: scaling.pop(ORIGINAL)}
        if rope.scaling.gain == _usual_gain(spec.context, rope.scaling.original):
            scaling.pop("attention_factor")
    return config


def gguf_fields(spec: Decoder) -> ConfigFields:
    """Returns the .gguf metadata that only this architecture has: the context before scaling, which is the whole
    context if there is no scaling."""
    scaling = first(spec, LongRoPE)
    return {"rope.scaling.original_context_length": scaling.original if scaling else spec.context}


def _usual_gain(context: int | None, original: int) -> float | None:
    """Returns the gain that follows from the model's context and the original one; None if it is not defined."""
    return longrope_gain(context / original, original) if context and original > 1 else None


_14B = dict(dim=5120, layers=40, heads=40, kv_heads=10, hidden=17_920, rope=RoPE(2.5e5), vocab=100_352, context=16_384)
# Divisors of the frequencies of Phi-4-mini's 48 rotated pairs beyond 4,096 tokens; up to 4,096 they are not divided.
# The first 32 are a geometric series, published with ten digits.
_SERIES = (float(f"{32.03 ** (i / 31):.10g}") for i in range(32))
_LAST = (32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77)
_LONGROPE = LongRoPE(
    short=(1.0,) * 48, long=(*_SERIES, *_LAST), original=4096, gain=longrope_gain(131_072 / 4096, 4096)
)
_MINI = dict(dim=3072, layers=32, heads=24, kv_heads=8, hidden=8192, vocab=200_064, context=131_072, tied=True)
ABOUT = About(
    "Phi-4", "Abdin et al. 2024", compared_with="llama3", licence="MIT", report="https://arxiv.org/abs/2412.08905"
)
SIZES = {
    "phi4-14b": Size("microsoft/phi-4", 14_659_507_200, decoder(**_14B), released="2024-12"),
    "phi4-mini-3.8b": Size(
        "microsoft/Phi-4-mini-instruct",
        3_836_021_760,
        decoder(**_MINI, rope=RoPE(1e4, _LONGROPE, fraction=0.75)),
        released="2025-02",
    ),
}
