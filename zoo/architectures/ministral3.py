"""Ministral 3 (Mistral AI 2025), text part. New here: in every layer, rotated queries grow with the logarithm of their
position, beyond the context that YaRN extends. YaRN has no gain.

The sizes of 3B and 14B and the RoPE base of 14B are from memory; other fields are the reference's class defaults."""

from functools import partial

from zoo.architectures import mistral3
from zoo.architectures.mistral3 import WRAPPER, decoder
from zoo.blocks import LogTemperature, RoPE, YarnScaling
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, first, first_rope, rope_fields, temperature_fields
from zoo.model.decoder import Decoder

YARN = dict(rope_type="yarn", rope_theta=1e6, factor=16.0, original_max_position_embeddings=16_384)
YARN |= dict(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)
HEADS = dict(num_key_value_heads=8, head_dim=128, sliding_window=None, max_position_embeddings=262_144)
OTHERS = dict(rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=1e4)


@reads("ministral3", WRAPPER, expected=dict(hidden_act="silu"), **HEADS, **OTHERS, rope_scaling=YARN)
def from_hf(config: Config) -> Decoder:
    return decoder(**config.dense(), window=config.optional("sliding_window"), temperature=config.temperature())


def to_hf(spec: Decoder) -> ConfigFields:
    scaling = getattr(first_rope(spec), "scaling", None)
    without_gain = 1.0 if isinstance(scaling, YarnScaling) and scaling.gain == 1 else None
    # Without this field, the reference would use the released YaRN.
    config = mistral3.to_hf(spec) | rope_fields(spec, {"rope_type": "default"}, without_gain)
    return config | {"rope_scaling": (config.get("rope_scaling") or {}) | temperature_fields(spec)}


def gguf_fields(spec: Decoder) -> ConfigFields:
    """Returns the .gguf metadata that only this architecture has: a multiplier that cancels YaRN's gain."""
    return {"rope.scaling.yarn_log_multiplier": 1.0} if first(spec, LogTemperature) else {}


def _rope(theta):
    return RoPE(theta, YarnScaling(factor=16, original=16_384, gain=1.0))


_BOTH = dict(heads=32, temperature=LogTemperature(0.1, 16_384), vocab=131_072, context=262_144)
_3B = dict(_BOTH, dim=3072, layers=26, hidden=9216, rope=_rope(1e6), tied=True)
_8B = dict(_BOTH, dim=4096, layers=34, hidden=14_336, rope=_rope(1e6))
_14B = dict(_BOTH, dim=5120, layers=40, hidden=16_384, rope=_rope(1e9))
_size = partial(Size, released="2025-12", note="config from memory and the reference's class defaults")
ABOUT = About(
    "Ministral 3",
    "Mistral AI 2025",
    compared_with="mistral3",
    licence="Apache-2.0",
    report="https://arxiv.org/abs/2601.08584",
    left_out="vision",
)
BEST_KNOWN = "ministral3-8b"
SIZES = {
    "ministral3-3b": _size("mistralai/Ministral-3-3B-Base-2512", 3_429_006_336, decoder(**_3B)),
    "ministral3-8b": _size("mistralai/Ministral-3-8B-Base-2512", 8_489_553_920, decoder(**_8B)),
    "ministral3-14b": _size("mistralai/Ministral-3-14B-Base-2512", 13_506_073_600, decoder(**_14B)),
}
