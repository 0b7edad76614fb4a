"""Writes a published config.json: the fields that architectures share, each from the spec that it describes.

An architecture's `to_hf(spec)` returns its fields in the older spelling (`rope_theta`, `rope_scaling`), which every
version of the reference reads. It omits the `expected` fields of `from_hf`, and the fields of blocks that the spec
lacks. `zoo.to_hf` checks the result by reading it back.
"""

from collections.abc import Callable
from functools import cache
from itertools import chain
from sys import float_info
from typing import Any, TypeVar, get_type_hints

from zoo.blocks import GLU, GQA, LogTemperature, LongRoPE, MoE, RoPE, Scaling, YarnScaling, yarn_gain
from zoo.hf.config import COMMON, EPS, ORIGINAL, SCALINGS, layer_types
from zoo.model.decoder import Decoder
from zoo.registry import Spec

S = TypeVar("S", bound=Spec)
HEADS = dict(heads="num_attention_heads", kv_heads="num_key_value_heads", head_dim="head_dim")
ConfigFields = dict[str, Any]


def first(spec: Spec, kind: type[S]) -> S | None:
    """Returns the first block of a kind; None if the spec has none."""
    parts = spec.parts if isinstance(spec, Decoder) else spec.walk()
    return next((part for part in parts if isinstance(part, kind)), None)


def fields_of(spec: Spec, kind: type[Spec], **names: str) -> ConfigFields:
    """Returns the values of fields of the first block of a kind, under their published names: fields_of(spec, GQA,
    bias="attention_bias"). Returns no fields if the spec has no such block."""
    block = first(spec, kind)

    def value(field: str) -> Any:
        held = getattr(block, field)
        if isinstance(held, tuple):
            return list(map(float, held))
        return float(held) if field in _floats(kind) else held

    return {name: value(field) for field, name in names.items()} if block else {}


@cache
def _floats(kind: type[Spec]) -> frozenset[str]:
    """Returns the names of the fields of type float. A spec may hold an int in them."""
    return frozenset(name for name, hint in get_type_hints(kind).items() if hint is float)


def common_fields(spec: Decoder, eps: str = EPS, **names: str) -> ConfigFields:
    """Returns the fields that every config has, apart from those of its blocks. It is the inverse of `Config.common`
    with the same `names`."""
    names = COMMON | names
    common = {
        names["vocab"]: spec.vocab,
        names["dim"]: spec.dim,
        names["layers"]: len(spec.layers),
        eps: float(spec.norm.eps),
        "tie_word_embeddings": spec.tied,
    }
    return common | ({names["context"]: spec.context} if spec.context else {})


def dense_fields(spec: Decoder) -> ConfigFields:
    """Returns `common_fields` and the fields of grouped-query attention, its positions and a dense feed-forward. It is
    the inverse of `Config.dense`."""
    blocks = fields_of(spec, GQA, **HEADS) | fields_of(spec, GLU, hidden="intermediate_size")
    return common_fields(spec) | rope_fields(spec) | blocks


def mixture_fields(spec: Decoder, experts: str, hidden: str, shared: str | None = None) -> ConfigFields:
    """Returns the fields of the first mixture of experts. It is the inverse of `Config.mixture` with the same names."""
    moe = first(spec, MoE)
    if moe is None:
        return {}
    # The config states the width of a shared expert as a multiple of a routed expert's width.
    beside = {shared: moe.shared.width // moe.expert.width or 1} if shared and moe.shared else {}
    return {experts: moe.experts, hidden: moe.expert.width} | beside


def layers_before_experts(spec: Decoder) -> int:
    """Returns the number of layers before the first layer with experts, or of all layers if none has experts."""
    return [*(layer.mixture is not None for layer in spec.layers), True].index(True)


def window_fields(spec: Decoder) -> ConfigFields:
    """Returns `layer_types` and the sizes of windows and chunks, each from the first layer that has one."""
    reaches = [layer.cache_spec().reach for layer in reversed(spec.layers)]
    return {"layer_types": layer_types(spec)} | {reach.size_field: reach.limit for reach in reaches if reach.size_field}


def rope_fields(
    spec: Decoder, unscaled: ConfigFields | None = None, mscale_all_dim: float | None = None
) -> ConfigFields:
    """Returns `rope_theta` and `rope_scaling` of layers without a window. If there is no scaling, it is `unscaled`."""
    rope = first_rope(spec)
    if rope is None:
        return {}
    scaling = scaling_fields(rope.scaling, mscale_all_dim) if rope.scaling else unscaled
    return {"rope_theta": float(rope.theta), "rope_scaling": scaling}


def temperature_fields(spec: Decoder) -> ConfigFields:
    """Returns the fields in `rope_scaling` that `Config.temperature` reads."""
    return fields_of(spec, LogTemperature, scale="llama_4_scaling_beta", step=ORIGINAL)


def first_rope(spec: Decoder, windowed: bool = False) -> RoPE | None:
    """Returns the rotary encoding of the first layer with a window (if `windowed`) or of the first layer without one.
    If no such layer has RoPE, it is that of the first layer with RoPE."""
    layers = sorted(dict.fromkeys(spec.layers), key=lambda layer: (layer.cache_spec().reach.limit is None) is windowed)
    return next((rope for layer in layers if (rope := first(layer, RoPE))), None)


def scaling_fields(scaling: Scaling, mscale_all_dim: float | None = None) -> ConfigFields | None:
    """Returns a scaling as a value of `rope_scaling`; None for a kind of scaling that configs cannot express.
    `mscale_all_dim` is the gain on the scores."""
    kinds = {kind: (rope_type, names) for rope_type, (kind, names) in SCALINGS.items()}
    if type(scaling) not in kinds:
        return None
    rope_type, names = kinds[type(scaling)]
    # LongRoPE's usual gain depends on the model's context, which is not known here.
    usual = yarn_gain(scaling.factor) if isinstance(scaling, YarnScaling) else None
    gain: ConfigFields = {"mscale_all_dim": mscale_all_dim} if mscale_all_dim else {}
    if isinstance(scaling, YarnScaling) and scaling.gain == 1 and mscale_all_dim:
        gain["mscale"] = mscale_all_dim  # the gain is mscale / mscale_all_dim, as in DeepSeek's configs
    elif isinstance(scaling, YarnScaling | LongRoPE) and scaling.gain != usual:
        gain["attention_factor"] = float(scaling.gain)
    return {"rope_type": rope_type, **fields_of(scaling, type(scaling), **names), **gain}


def solve(formula: Callable[[float], float], value: float, guess: float) -> float:
    """Returns a number near `guess` for which `formula` is exactly `value`, preferably one with few digits. Returns
    `guess` if there is none."""
    shorter = (float(f"{guess:.{digits}g}") for digits in range(1, 17))
    near = (guess * (1 + step * float_info.epsilon) for step in range(-8, 9))
    return next((number for number in chain(shorter, near) if formula(number) == value), guess)
