"""Specs changed in one field, with every parameter's shape unchanged: a parity test has to detect each of them.

The other values of a field follow from its annotation, or are listed here by its name. A field without either is an
error: a field that no mutant changes is a field that no test covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import zoo

# Fields that set the shapes of parameters: a wrong one is found before anything is computed.
SHAPES = {"vocab", "dim", "heads", "kv_heads", "head_dim", "hidden", "experts", "tied"}
SHAPES |= {"q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim", "gate", "latent", "count", "keys_as_values", "block"}
SHAPES |= {"shares_choice", "width"}
SHAPES |= {"key_heads", "value_heads", "key_dim", "value_dim", "conv"}
SHAPES |= {"state", "channels", "Mamba2.groups"}
SHAPES |= {"o_rank", "CompressedAttention.groups", "every", "overlap", "compressor", "indexer", "Streams.count"}
# Fields that must be equal in all layers: no mutant changes them in a single place.
SHAPES |= {"streams"}
# Fields that change no logit in float32: the trained context, where a norm rounds, and the least time step, which no
# random one is below (tests/zoo/architectures/test_nemotron3.py has a larger one).
UNSEEN = {"context", "scale_in_fp32", "min_step"}
# Fields for which a model may allow no other value: of a single group, one is kept; 1 + w needs a w, and the other way;
# a layer of one branch needs that, inputs of layers are computed once for all, and later layers take what an attention
# hands on.
FIXED = {"keep", "weight", "unit_offset", "attn", "ffn", "inputs", "per_layer"}

Changes = Callable[[Any], list[Any]]
# Field name, or that of a kind's field -> the other values, for a value that is not None.
NAMED: dict[str, Changes] = {
    **dict.fromkeys((*SHAPES, *UNSEEN), lambda value: []),
    **dict.fromkeys(("window", "chunk"), lambda value: [value - 1, value + 1, None]),
    "step": lambda value: [value * 2],
    "theta": lambda value: [value**0.5],  # enough where two pairs rotate, and within few tokens
    "fraction": lambda value: [value / 2],
    "weight": lambda value: [False] if value else [],
    "low": lambda value: [value * 2, value / 4],  # Llama 4 Scout's tiny form has no pair of 1/2 to 1 turns
    "original": lambda value: [value * 4],  # enough to move a ramp whose ends are rounded
    "LongRoPE.original": lambda value: [value * 100],  # a toy's is 1: beyond the tokens that are compared
    "LongRoPE.short": lambda value: [],  # a toy's long pass has none: tests/zoo/blocks/test_longrope.py changes them
    "LongRoPE.long": lambda value: [tuple(2 * each for each in value), value[::-1]],
    **dict.fromkeys(("scale", "alpha", "gain", "embed_scale"), lambda value: [value * 1.1]),
    "fast": lambda value: [value / 32],  # within the few pairs of a tiny model: some rotate once, few twice
    "slow": lambda value: [value * 16, value / 4],
    **dict.fromkeys(("eps", "norm_eps"), lambda value: [0.1]),
    "iterations": lambda value: [1] if value > 1 else [],
    "qk_norm_over": lambda value: [],  # another width of the norm's weights
    **dict.fromkeys(("sinks", "bias"), lambda value: [False] if value else []),
    "k": lambda value: [value - 1, value + 1],
    "HashTopK.k": lambda value: [],  # another width of the table
    **dict.fromkeys(("groups", "keep"), lambda value: [value // 2, value + 1]),
    "rope": lambda value: [zoo.RoPE(1e4) if value == zoo.NoPE() else zoo.NoPE()],
}


def mutants(spec: zoo.Decoder) -> Iterator[tuple[str, zoo.Decoder]]:
    """(what was changed, the changed spec), for each distinct part and each of its fields."""
    for part in dict.fromkeys(spec.walk()):
        if isinstance(part, zoo.Branch) and (part.pre is None) != (part.post is None):
            yield "the norm on the other side", _replace(spec, {part: replace(part, pre=part.post, post=part.pre)})
        for name, value in ((field.name, getattr(part, field.name)) for field in fields(part)):
            if name == "output_scale" and part not in spec.layers[:-1]:
                continue  # the last norm removes the last layer's
            others = changes(part, name)
            made = 0
            for other in others:
                try:
                    sharing = (part, *_sharing(spec, part, name))
                    changed = _replace(spec, {each: _with(each, name, other) for each in sharing})
                except zoo.ZooError:
                    continue  # no such model
                made += 1
                yield f"{type(part).__name__}.{name}: {value} -> {other}", changed
            assert made or not others or name in FIXED, f"{type(part).__name__}.{name}: none of {others} makes a model"


# Values that float32 cannot tell from the right ones, by the field's name: an eps of twice the size (LFM2's released
# code adds 1e-6 to a sum of weights, others 1e-20), a constant whose sixth digit is wrong.
SUBTLE: dict[str, Changes] = {
    **dict.fromkeys(("eps", "norm_eps"), lambda value: [max(2 * value, 1e-6)]),
    **dict.fromkeys(("scale", "gain", "embed_scale", "factor", "alpha"), lambda value: [value * (1 + 2**-19)]),
}


def subtle_mutants(spec: zoo.Decoder) -> Iterator[tuple[str, zoo.Decoder]]:
    """(what was changed, the changed spec), for each distinct part with a field in SUBTLE. Indexers are left out:
    their scores reach the logits through what they choose alone."""
    indexers = (part for part in spec.walk() if part.role == "indexer")
    unseen = {part for indexer in indexers for part in indexer.walk()}
    for part in dict.fromkeys(spec.walk()):
        for name, value in ((field.name, getattr(part, field.name)) for field in fields(part)):
            if name in SUBTLE and isinstance(value, float) and part not in unseen:
                for other in SUBTLE[name](value):
                    changed = _replace(spec, {part: _with(part, name, other)})
                    yield f"{type(part).__name__}.{name}: {value} -> {other}", changed


def changes(part: zoo.Spec, name: str) -> list[Any]:
    """Other values of a field that leave the shapes of all parameters unchanged.

    Raises AssertionError for a field whose other values follow neither from its name nor from its annotation.
    """
    value = getattr(part, name)
    if name == "layers" and isinstance(part, zoo.Decoder):
        alike = len({layer.params(part.dim) for layer in value}) == 1
        return [value[1:] + value[:1]] if alike and len(set(value)) > 1 else []
    if name == "truncate" and isinstance(part, zoo.YarnScaling) and part.fast == part.slow:
        return []  # the ramp is a step between two dimensions, rounded or not
    found = known(type(part), name)
    assert found is not None, (
        f"no mutant changes {type(part).__name__}.{name}: add its other values to tests/mutants.py"
    )
    return [] if value is None else found(value)


def known(kind: type[zoo.Spec], name: str) -> Changes | None:
    """The changes of a field: by its name, else by its annotation, else None."""
    return NAMED.get(f"{kind.__name__}.{name}") or NAMED.get(name) or _annotated(get_type_hints(kind)[name])


def _annotated(hint: Any) -> Changes | None:
    """The other values of a field by its annotation: the other bool or literal, twice a float, None where allowed, and
    every kind of spec for the same place that needs no arguments. (The fields inside a spec are changed in their turn.)
    """
    origin, of = get_origin(hint), get_args(hint)
    if hint is bool:
        return lambda value: [not value]
    if hint is float:
        return lambda value: [value * 2]
    if origin is Literal:
        return lambda value: [other for other in of if other != value]
    if isinstance(hint, type) and issubclass(hint, zoo.Spec):
        kinds = (kind for kind in zoo.Spec.kinds.values() if issubclass(kind, hint))
        plain = [kind() for kind in kinds if all(field.default is not MISSING for field in fields(kind))]
        return lambda value: [other for other in plain if other != value]
    if origin in (Union, UnionType, tuple):
        inner = [change for each in of if (change := _annotated(each))]
        none = [None] if type(None) in of else []
        return lambda value: [*none, *(other for change in inner for other in change(value))] if inner or none else []
    return None


def _with(part: zoo.Spec, name: str, value: Any) -> zoo.Spec:
    """`part` with another value of a field; LongRoPE on another fraction of a head has the first of its factors."""
    new = replace(part, **{name: value})
    if name != "fraction" or not isinstance(new, zoo.RoPE) or not isinstance(new.scaling, zoo.LongRoPE):
        return new
    pairs = round(len(new.scaling.short) * value / getattr(part, name))
    first = {each: getattr(new.scaling, each)[:pairs] for each in ("short", "long")}
    return replace(new, scaling=replace(new.scaling, **first))


def _sharing(spec: zoo.Decoder, part: zoo.Spec, name: str) -> Iterator[zoo.Spec]:
    """The attention blocks that share keys and values with this one, whose reach is theirs."""
    kinds = zoo.KVSource | zoo.SharedKV
    if isinstance(part, kinds) and name in ("window", "chunk"):
        yield from (each for each in spec.walk() if isinstance(each, kinds) and each.reach == part.reach)


def _replace(spec: Any, new: dict[zoo.Spec, zoo.Spec]) -> Any:
    return new[spec] if spec in new else spec.map(lambda child: _replace(child, new))
