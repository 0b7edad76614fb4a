"""Specs changed in one field that leave every parameter its shape: a parity test has to find each of them.

A field has its changes by name, or by its annotation where that says what else it could be. Any other field is an
error here, until somebody says how to change it: a field that nobody changes is a field that nobody tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import zoo

# Fields that parameters take their shapes from: a change of one is found before a number is computed.
SHAPES = {"vocab", "dim", "heads", "kv_heads", "head_dim", "hidden", "experts", "tied"}
SHAPES |= {"q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim"}
# Parts that have no field here: what they hold is changed inside them, or in the place of its kind.
PARTS = {"attn", "ffn", "block", "expert", "router", "norm", "layers"}
# Fields that change no logit in float32: what is said of training, and where a norm rounds.
UNSEEN = {"context", "scale_in_fp32"}
# Fields of which a model may allow no other value: of a single group one is kept.
FIXED = {"keep"}

Changes = Callable[[Any], list[Any]]
# By field name, the changes of values that are not None.
NAMED: dict[str, Changes] = {
    **dict.fromkeys((*SHAPES, *PARTS, *UNSEEN), lambda value: []),
    "window": lambda value: [value - 1, value + 1, None],
    **dict.fromkeys(("theta", "factor", "high", "limit"), lambda value: [value * 2]),
    "low": lambda value: [value * 2, value / 2],
    "original": lambda value: [value * 4],  # enough to move a ramp whose ends are rounded
    **dict.fromkeys(("scale", "alpha", "gain", "embed_scale"), lambda value: [value * 1.1]),
    "fast": lambda value: [value / 16],  # within the few pairs of a toy: from 4 turns on, none turns as fast
    "slow": lambda value: [value * 4, value / 4],
    "eps": lambda value: [0.1],
    **dict.fromkeys(("qk_norm", "pre", "post", "scaling", "shared"), lambda value: [None]),
    "qk_norm_over": lambda value: [],  # another width of the norm's weights
    **dict.fromkeys(("sinks", "bias"), lambda value: [False] if value else []),
    "k": lambda value: [value - 1, value + 1],
    **dict.fromkeys(("groups", "keep"), lambda value: [value // 2, value + 1]),
    "act": lambda value: [zoo.GeGLU() if value != zoo.GeGLU() else zoo.SwiGLU()],
    "rope": lambda value: [zoo.RoPE(1e4) if value == zoo.NoPE() else zoo.NoPE()],
}


def mutants(spec: zoo.Decoder) -> Iterator[tuple[str, zoo.Decoder]]:
    """(what was changed, the spec with it), for each distinct part and each field that could be misread."""
    for part in dict.fromkeys(spec.walk()):
        if isinstance(part, zoo.Branch) and (part.pre is None) != (part.post is None):
            yield "the norm on the other side", _replace(spec, part, replace(part, pre=part.post, post=part.pre))
        for name, value in ((field.name, getattr(part, field.name)) for field in fields(part)):
            others = changes(part, name)
            made = 0
            for other in others:
                try:
                    changed = _replace(spec, part, replace(part, **{name: other}))
                except zoo.ZooError:
                    continue  # no such model
                made += 1
                yield f"{type(part).__name__}.{name}: {value} -> {other}", changed
            assert made or not others or name in FIXED, f"{type(part).__name__}.{name}: none of {others} makes a model"


def changes(part: zoo.Spec, name: str) -> list[Any]:
    """Other values of a field that leave every parameter its shape.

    Raises AssertionError for a field of which neither its name nor its annotation says any.
    """
    value = getattr(part, name)
    if name == "layers" and isinstance(part, zoo.Decoder):
        alike = len({layer.params(part.dim) for layer in value}) == 1
        return [value[1:] + value[:1]] if alike and len(set(value)) > 1 else []
    found = known(type(part), name)
    assert found is not None, (
        f"no mutant changes {type(part).__name__}.{name}: say in tests/mutants.py what a wrong value of it is"
    )
    return [] if value is None else found(value)


def known(kind: type[zoo.Spec], name: str) -> Changes | None:
    """The changes of a field: by its name, else by its annotation, else None."""
    return NAMED.get(name) or _annotated(get_type_hints(kind)[name])


def _annotated(hint: Any) -> Changes | None:
    """What else a field may be, where its annotation tells: of a truth value the other, of words the others, of a
    number that need not be whole its double; and None, where that is allowed."""
    origin, of = get_origin(hint), get_args(hint)
    if hint is bool:
        return lambda value: [not value]
    if hint is float:
        return lambda value: [value * 2]
    if origin is Literal:
        return lambda value: [other for other in of if other != value]
    if origin in (Union, UnionType) and type(None) in of:
        inner = [_annotated(each) for each in of if each is not type(None)]
        return lambda value: [None, *(other for change in inner if change for other in change(value))]
    return None


def _replace(spec: zoo.Decoder, old: zoo.Spec, new: zoo.Spec) -> zoo.Decoder:
    return new if spec == old else spec.map(lambda child: _replace(child, old, new))
