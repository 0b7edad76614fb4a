"""Making a block from a few of its fields, in the place of another; and what was lost on the way.

A field that is not given comes from the block that was there, else from a block of the new kind elsewhere in the model,
else from the kind's default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, get_args, get_type_hints

from zoo.blocks.gqa import ALIASES, GQA
from zoo.errors import UsageError, unknown
from zoo.registry import Spec

Values = dict[str, Any]
# What a reader calls an optional field that is in use, where that is not the field's own name; "" where it goes unsaid.
TERMS = {
    "bias": "biases",
    "context": "",
    "embed_scale": "embedding scale",
    "gain": "gain on cos and sin",
    "qk_norm": "QK-norm per {qk_norm_over}",
    "qk_norm_over": "",
    "renormalise": "not renormalised",
    "scale": "attention scale",
    "scale_in_fp32": "scaled in float32",
    "shared": "shared expert",
    "tied": "tied head",
    "truncate": "unrounded ramp",
    "unit_offset": "scales by 1 + w",
}


class Call(NamedTuple):
    """KIND(field=value, ...) as it was written; a value may be a Call itself."""

    word: str
    given: Values

    @property
    def kind(self) -> type[Spec]:
        """The registered kind. Raises UsageError with the nearest ones."""
        if self.word in ALIASES:
            return GQA
        if self.word not in Spec.kinds:
            raise unknown("block", self.word, [*Spec.kinds, *ALIASES])
        return Spec.kinds[self.word]


def rebuild(call: Call, old: Spec | None, around: tuple[Spec, ...]) -> Spec:
    """The block that was called for, in the place of `old`. Its parts are looked for in `old`, then `around`.

    Raises UsageError for fields that are unknown or missing, SpecError where they contradict each other.
    """
    kind, near = call.kind, (*((old,) if old else ()), *around)
    values: Values = {}
    for source in (_first(kind, near), old):  # of either only the fields that the kind has: it may be a subclass
        values |= {name: value for name, value in _values(source).items() if name in field_names(kind)}
    for name, takes in _parts(kind).items():
        if name not in values and (found := _first(takes, near)):
            values[name] = found
    own = {name: value for name, value in call.given.items() if name in field_names(kind)}
    left = _hand_down(kind, values, {name: value for name, value in call.given.items() if name not in own}, near)
    if left:
        raise _no_field(call.word, kind, next(iter(left)))
    for name, value in own.items():
        held = values.get(name)
        is_block = isinstance(held, Spec)
        values[name] = rebuild(value, held if is_block else None, near) if isinstance(value, Call) else value
    if call.word in ALIASES:
        _move(call, values)
    missing = [name for name in field_names(kind) if name in _required(kind) and name not in values]
    if missing:
        example = ", ".join(f"{name}={_example(_parts(kind).get(name))}" for name in missing)
        raise UsageError(f"{call.word} needs {', '.join(missing)}: {call.word}({example})")
    return kind(**values)


def dropped_features(old: Spec, new: Spec) -> Iterator[str]:
    """The features of `old` that no block in `new` has a field for: "sinks", "window 128", ..."""
    kept = {name for node in new.walk() for name in field_names(type(node))}
    for node in old.walk():
        for name, term in features(node).items():
            value = getattr(node, name)
            if name not in kept and isinstance(value, Spec) and value.role == name:
                yield value.describe()
            elif name not in kept:
                yield f"{term} {_amount(value)}".strip()


def features(spec: Spec) -> dict[str, str]:
    """The optional fields of a block that are in use, by name, as a reader calls them."""
    values = _values(spec)
    used = [
        name for name, value in values.items() if name not in _required(type(spec)) and value != _default(spec, name)
    ]
    terms = {name: _term(name, values) for name in used}
    return {name: term for name, term in terms.items() if term}


def _term(name: str, values: Values) -> str:
    """A field as a reader calls it: by TERMS, where the block has what the term names, else by its own name."""
    try:
        if name in TERMS:
            return TERMS[name].format(**values)
    except KeyError:
        pass
    off = values[name] is False or values[name] is None  # by default it is on
    return f"no {name.replace('_', ' ')}" if off else name.replace("_", " ")


def _amount(value: Any) -> str:
    """What stands behind a term to say how much of it, or which: "" of what is there or is not."""
    if value is None or isinstance(value, bool | Spec):
        return ""
    if isinstance(value, tuple | list):
        return ", ".join(each.describe() if isinstance(each, Spec) else _amount(each) or str(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_names(kind: type[Spec]) -> list[str]:
    """The fields that a kind is made of."""
    return [field.name for field in fields(kind) if field.init]


def _hand_down(kind: type[Spec], values: Values, given: Values, near: tuple[Spec, ...]) -> Values:
    """Fields that the kind itself has not go to the parts it is made of: k to a router, hidden to an expert. A part of
    which there is none yet becomes the kind that takes most of them. Returns what nobody takes."""
    for name, takes in _parts(kind).items():
        held = values.get(name)
        options = [type(held)] if held else [option for option in Spec.kinds.values() if issubclass(option, takes)]
        part = max(options, key=lambda option: len(given.keys() & set(field_names(option))))
        taken = {each: value for each, value in given.items() if each in field_names(part)}
        if taken and (held or _required(part) <= taken.keys()):
            values[name] = rebuild(Call(part.__name__, taken), held, near)
            given = {each: value for each, value in given.items() if each not in taken}
    return given


def _move(call: Call, values: Values) -> None:
    """To the point of GQA that the word stands for."""
    if call.word == "SWA":
        if values.get("window") is None:
            raise UsageError("SWA needs a window: SWA(window=512)")
        return
    if "kv_heads" in call.given:
        raise UsageError(f"{call.word} sets kv_heads itself; for another number write GQA(kv_heads=...)")
    if "heads" in values:
        values["kv_heads"] = values["heads"] if call.word == "MHA" else 1


def _no_field(word: str, kind: type[Spec], name: str) -> UsageError:
    inner = [
        (each, f"{part}={option}({each}=...)")
        for part, takes in _parts(kind).items()
        for option, its in Spec.kinds.items()
        if issubclass(its, takes)
        for each in field_names(its)
    ]
    elsewhere = next((f"; {written} has one" for each, written in inner if each == name), "")
    close = get_close_matches(name, [*field_names(kind), *(each for each, _ in inner)], n=1)
    meant = elsewhere or (f"; did you mean {close[0]}?" if close else "")
    return UsageError(f"{word} has no field {name!r}{meant} (fields: {', '.join(field_names(kind)) or 'none'})")


def _example(takes: tuple[type[Spec], ...] | None) -> str:
    """A value to show for a field: of a part, the first kind it may be of."""
    return next((f"{name}(...)" for name, kind in Spec.kinds.items() if takes and issubclass(kind, takes)), "...")


def _first(kind: type[Spec] | tuple[type[Spec], ...], near: tuple[Spec, ...]) -> Spec | None:
    return next((node for spec in near for node in spec.walk() if isinstance(node, kind)), None)


def _values(spec: Spec | None) -> Values:
    return {name: getattr(spec, name) for name in field_names(type(spec))} if spec else {}


def _required(kind: type[Spec]) -> set[str]:
    """The fields that must be given."""
    return {each.name for each in fields(kind) if each.init and each.default is each.default_factory is MISSING}


def _default(spec: Spec, name: str) -> Any:
    """What a field is if nobody gives it."""
    field = next(each for each in fields(spec) if each.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def _parts(kind: type[Spec]) -> dict[str, tuple[type[Spec], ...]]:
    """The required fields of a kind that hold one block, and what each takes."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in _required(kind)}
    takes = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    return {name: of for name, of in takes.items() if all(isinstance(t, type) and issubclass(t, Spec) for t in of)}
