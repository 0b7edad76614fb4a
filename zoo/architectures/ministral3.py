"""Ministral 3 (Mistral AI 2025), text part. New here: queries that grow with the logarithm of their position, in every
layer and after rotation, from the context on that YaRN stretches; YaRN without a gain.

The sizes of 3B and 14B and the latter's RoPE base are from memory; other fields are the reference's class defaults."""

from zoo.blocks import GLU, GQA, Layer, LogTemperature, RMSNorm, RoPE, YarnScaling, pre
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import (
    ConfigFields,
    dense_fields,
    fields_of,
    first,
    first_rope,
    rope_fields,
    temperature_fields,
)
from zoo.model.decoder import Decoder


def decoder(*, layers, heads, hidden, kv_heads=8, head_dim=128, rope, temperature, window=None, eps=1e-5, **rest):
    norm = RMSNorm(eps)
    attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window, temperature=temperature)
    layer = Layer(pre(norm, attn), pre(norm, GLU(hidden)))
    return Decoder(layers=(layer,) * layers, norm=norm, **rest)


YARN = dict(rope_type="yarn", rope_theta=1e6, factor=16.0, original_max_position_embeddings=16_384)
YARN |= dict(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)
HEADS = dict(num_key_value_heads=8, head_dim=128, sliding_window=None, max_position_embeddings=262_144)
OTHERS = dict(rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=1e4)


@reads("ministral3", ModelType("mistral3", "Mistral3ForConditionalGeneration"), **HEADS, **OTHERS, rope_scaling=YARN)
def from_hf(config: Config) -> Decoder:
    config.expect(hidden_act="silu")
    shape = config.dense() | dict(head_dim=config.head_dim(), window=config.optional("sliding_window"))
    return decoder(**shape, temperature=config.temperature(), rope=config.rope())


def to_hf(spec: Decoder) -> ConfigFields:
    scaling = getattr(first_rope(spec), "scaling", None)
    without_gain = 1.0 if isinstance(scaling, YarnScaling) and scaling.gain == 1 else None
    # A file without the field uses the released YaRN.
    config = dense_fields(spec) | rope_fields(spec, unscaled={"rope_type": "default"}, mscale_all_dim=without_gain)
    config["rope_scaling"] = (config.get("rope_scaling") or {}) | temperature_fields(spec)
    return {"model_type": "ministral3", "hidden_act": "silu"} | config | fields_of(spec, GQA, window="sliding_window")


def gguf_fields(spec: Decoder) -> ConfigFields:
    """Returns the metadata of .gguf files that this architecture alone has: a multiplier that undoes YaRN's gain."""
    return {"rope.scaling.yarn_log_multiplier": 1.0} if first(spec, LogTemperature) else {}


def _rope(theta):
    return RoPE(theta, YarnScaling(factor=16, original=16_384, gain=1.0))


_BOTH = dict(heads=32, temperature=LogTemperature(0.1, 16_384), vocab=131_072, context=262_144)
_3B = dict(_BOTH, dim=3072, layers=26, hidden=9216, rope=_rope(1e6), tied=True)
_8B = dict(_BOTH, dim=4096, layers=34, hidden=14_336, rope=_rope(1e6))
_14B = dict(_BOTH, dim=5120, layers=40, hidden=16_384, rope=_rope(1e9))
NOTE = "config from memory and the reference's class defaults"
ABOUT = About(
    "Ministral 3",
    "Mistral AI 2025",
    came_from="mistral3",
    licence="Apache-2.0",
    report="https://arxiv.org/abs/2601.08584",
    left_out="vision",
)
BEST_KNOWN = "ministral3-8b"
SIZES = {
    "ministral3-3b": Size(
        "mistralai/Ministral-3-3B-Base-2512", 3_429_006_336, decoder(**_3B), released="2025-12", note=NOTE
    ),
    "ministral3-8b": Size(
        "mistralai/Ministral-3-8B-Base-2512", 8_489_553_920, decoder(**_8B), released="2025-12", note=NOTE
    ),
    "ministral3-14b": Size(
        "mistralai/Ministral-3-14B-Base-2512", 13_506_073_600, decoder(**_14B), released="2025-12", note=NOTE
    ),
}
