"""Tiny models: published models at toy widths, with every kind of layer, small enough to run anywhere in a moment."""

from dataclasses import fields, replace
from functools import cache
from math import gcd
from typing import Any

from zoo.blocks.layer import Layer
from zoo.blocks.rope_scaling import yarn_gain
from zoo.model.decoder import Decoder

MIN_STEP = 1e-9  # below every time step, so that decode and prefill agree
# Field name -> largest toy value, for all kinds of blocks. A new block that uses these names shrinks without more code.
TOY: dict[str, Any] = {"heads": 4, "kv_heads": 2, "hidden": 96, "window": 16, "chunk": 16, "original": 64, "step": 16}
TOY |= {"experts": 8, "k": 3, "groups": 4, "keep": 2, "latent": 40, "state": 16, "channels": 64, "width": 24}
TOY |= {"q_rank": 40, "o_rank": 20, "kv_rank": 32, "nope_dim": 32, "rope_dim": 16, "v_dim": 24}
TOY |= {"min_step": MIN_STEP}
TOY |= {"key_heads": 2, "value_heads": 4, "key_dim": 16, "value_dim": 24}
TOY |= {"limit": 1.0, "cap": 1.0}  # low enough to clamp toy activations
VOCAB, DIM, CONTEXT = 512, 64, 1024
LOGIT_CAP = 8.0  # low enough to change toy logits, high enough for a probability near 1
LOGITS_SCALING = 1.5  # low enough that toy logits reach 1
MAX_LAYERS = 12
FULL_SIZE = 4  # times the toy size; a larger value was probably meant for the full model
WIDE_HEAD = 24  # head_dim of the narrowest heads if heads * head_dim != dim; 8 more for each wider kind


@cache
def tiny(spec: Decoder) -> Decoder:
    """Returns `spec` at toy widths. The layers end with the first layer of the last new kind; there are at least two.
    If more than MAX_LAYERS remain, repeated groups are dropped."""
    last = max(map(spec.layers.index, set(spec.layers)))  # index of the last layer that has no equal before it
    kept = _without_repeats(spec.layers[: max(last + 1, 2)])
    small = replace(spec, layers=kept, context=CONTEXT).with_vocab(VOCAB)
    embed_scale = DIM**0.5 if spec.embed_scale == spec.dim**0.5 else spec.embed_scale
    logit_cap = min(spec.logit_cap, LOGIT_CAP) if spec.logit_cap else None
    kinds: set[Any] = {part for layer in set(spec.layers) for part in layer.walk()}
    heads = sorted({part.head_dim for part in kinds if hasattr(part, "kv_heads")})
    shrunk = small.map(lambda part: _shrink(part, spec.dim, heads))
    layers = tuple(_widened(layer, full, spec) for layer, full in zip(shrunk.layers, kept, strict=True))
    scaled = replace(shrunk, logit_cap=logit_cap, logits_scaling=min(spec.logits_scaling, LOGITS_SCALING))
    return replace(scaled, layers=layers, dim=DIM, embed_scale=embed_scale)


def full_sizes(spec: Decoder, toy: Decoder) -> list[str]:
    """Returns the sizes in a changed toy model that were probably meant for a full model, such as "window=4096". Sizes
    that `toy` itself has do not count."""
    held = {(name, value) for part in toy.walk() for name, value in vars(part).items() if type(value) is int}
    found: dict[str, None] = {}
    for part in spec.walk():
        most = {"head_dim": WIDE_HEAD, **TOY, **part.toy}
        for name, value in vars(part).items():
            if type(value) is int and name in most and value > FULL_SIZE * most[name] and (name, value) not in held:
                found[f"{name}={value}"] = None
    return list(found)


def _without_repeats(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Drops the first group of layers while an equal group follows it and there are more than MAX_LAYERS layers. Gemma
    4 E2B needs this: 15 layers come before the first layer of another kind."""
    while len(layers) > MAX_LAYERS:
        sizes = (size for size in range(len(layers) // 2, 0, -1) if layers[:size] == layers[size : 2 * size])
        if (size := next(sizes, 0)) == 0:
            break
        layers = layers[size:]
    return layers


def _widened(layer: Layer, full: Layer, spec: Decoder) -> Layer:
    """Returns the tiny `layer` made from a `full` one. A dense width keeps its ratio to the narrowest one."""
    if full.dense_width is None or layer.dense_width is None:
        return layer
    times = round(full.dense_width / min(each.dense_width for each in set(spec.layers) if each.dense_width))
    return layer.with_width(times * layer.dense_width)


def _shrink(spec: Any, dim: int, heads: list[int]) -> Any:
    """Returns `spec` with its sizes limited to TOY. MHA stays MHA and MQA stays MQA. heads * head_dim stays equal to
    dim if it was. The head widths in `heads` keep their order."""
    values: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(spec)}
    toy = {**TOY, **spec.toy}
    cut = {name: min(value, toy[name]) for name, value in values.items() if name in toy and value is not None}
    if "kv_heads" in cut and values["kv_heads"] == values["heads"]:
        cut["kv_heads"] = cut["heads"]
    if "heads" in cut and "groups" in cut and values["groups"] < values["heads"]:
        cut["groups"] = min(cut["groups"], cut["heads"] // 2)  # Mamba-2: if several heads share a group, they still do
    if "key_heads" in cut:
        cut["key_heads"] = gcd(cut["key_heads"], cut["value_heads"])
    if "head_dim" in values:
        square = values["heads"] * values["head_dim"] == dim and DIM % cut["heads"] == 0
        wide = WIDE_HEAD + 8 * heads.index(values["head_dim"]) if values["head_dim"] in heads else WIDE_HEAD
        cut["head_dim"] = DIM // cut["heads"] if square else wide
        times, rest = divmod(values["heads"] * values["head_dim"], dim)
        if "state" in values and not rest:  # Mamba-2: the inner width stays a multiple of the model's width
            cut["head_dim"] = times * DIM // cut["heads"]
        if values.get("scale") and values["scale"] * values["head_dim"] == 1:  # Granite: the scale is 1 / head_dim
            cut["scale"] = 1 / cut["head_dim"]
    scaling = getattr(values.get("rope"), "scaling", None)
    if "nope_dim" in values and values["scale"] is not None:  # width**-0.5 times a gain: keep the gain
        before, after = (held["nope_dim"] + held["rope_dim"] for held in (values, values | cut))
        cut["scale"] = _score_scale(values["scale"], before, after, getattr(scaling, "factor", 1))
    if scaling and (width := cut.get("rope_dim", cut.get("head_dim"))):
        cut["rope"] = _shrink(values["rope"], dim, heads).at_width(width)
    temperature = values.get("temperature")
    if temperature and temperature.step == getattr(scaling, "original", None):  # a config has one number for both
        cut["temperature"] = replace(temperature, step=min(temperature.step, TOY["original"]))
    if cut.get("keep") == 1:
        cut["groups"] = min(cut["groups"], 2)  # the one group must have at least k experts
    small = spec.map(lambda part: _shrink(part, dim, heads), **cut)
    if not (shared := values.get("shared")):
        return small
    width = max(1, round(small.expert.width * shared.width / values["expert"].width))  # keeps the ratio to an expert
    return replace(small, shared=small.shared.with_width(width))


def _score_scale(scale: float, before: int, after: int, factor: float) -> float:
    """Returns the scale of the scores for another width of keys. It includes YaRN's gain, if `factor`, the stretch of
    the context, is above 1. The gain is computed from a rounded mscale, as in a config: an unrounded one would differ
    in the last bit."""
    gain = (scale * before**0.5) ** 0.5
    if factor > 1:
        gain = yarn_gain(factor, round((gain - 1) / (yarn_gain(factor) - 1), 9))
    return float(after**-0.5 * gain * gain)
