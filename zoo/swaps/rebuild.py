"""Replaces a block by another that is given by a few of its fields, and names the features that are lost."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args, get_type_hints

from zoo.blocks.positions import Position
from zoo.classes import accepts
from zoo.errors import SpecError, UsageError
from zoo.model.decoder import Decoder
from zoo.registry import Spec, fields_in_use, stated
from zoo.swaps.borrow import borrowed, introduced_by
from zoo.swaps.expressions import BlockCall, Formula, GrammarError, Values


def rebuild(call: BlockCall, old: Spec | None, around: tuple[Spec, ...], keeps_kind: bool = False) -> Spec:
    """Returns the block that `call` describes, to replace `old`. `around`: the specs to search, the model last.

    A field that `call` does not give is taken from `old`, else from the first block of the same kind in `around`, else
    it has its default. If it has no default, it is taken from the first block of the same role (such as attention) that
    has the field, else from a published model, scaled to the width of the model in `around` (zoo.swaps.borrow).

    With `keeps_kind`, the new block has the kind of `old` if that is a subclass of the kind in `call`.

    Raises UsageError for fields that are unknown or missing, SpecError if they contradict each other.
    """
    kind = type(old) if old and keeps_kind and isinstance(old, call.kind) else call.kind
    near = (*((old,) if old else ()), *around)
    names, parts = field_names(kind), _parts(kind)
    values: Values = {}
    for source in filter(None, (_first(kind, near), old)):  # the source may have a derived kind with more fields
        values |= {name: value for name, value in vars(source).items() if name in names and accepts(kind, name, value)}
    for name, kinds in parts.items():
        if name not in values and (found := _first(kinds, near)):
            values[name] = found
    _give_to_parts(call, values, near)
    for name, value in call.given.items():
        if name in names:
            previous = values.get(name) if isinstance(values.get(name), Spec) else None
            value = _evaluated(value, kind, name, near)
            values[name] = rebuild(value, previous, near) if isinstance(value, BlockCall) else value
    peers = [vars(node) for spec in near for node in spec.walk() if node.role == kind.role]
    peers += map(vars, near)  # fields of the model itself, such as its vocabulary
    for name in required_fields(kind) - values.keys():
        values |= next(({name: held[name]} for held in peers if name in held and accepts(kind, name, held[name])), {})
    missing = [name for name in names if name in required_fields(kind) and name not in values]
    refused: list[SpecError] = []
    for attempt in _completed(call, kind, values, missing, near[-1]):
        try:
            return _construct(call, kind, attempt)
        except SpecError as error:
            refused.append(error)
    raise refused[0]


def _completed(call: BlockCall, kind: type[Spec], values: Values, missing: list[str], model: Spec) -> Iterator[Values]:
    """Yields candidates for all fields of a block. A published model lends the `missing` fields. If the candidate
    contradicts itself, for example if the groups do not divide the heads, the next one takes more fields from the
    lender: first sizes, then blocks. Raises UsageError if fields are still missing."""
    if not missing:
        yield values
        if call.given:
            return
    lender = introduced_by(kind)
    block = borrowed(kind, lender, model) if lender and isinstance(model, Decoder) else None
    lent = {name: getattr(block, name) for name in required_fields(kind)} if block else {}
    if missing := [name for name in missing if name not in lent]:
        example = ", ".join(f"{name}={_example(_parts(kind).get(name))}" for name in missing)
        raise UsageError(f"{call.name} needs {', '.join(missing)}: {call.name}({example})")
    if lent:
        yield lent | values
        yield lent | {name: value for name, value in values.items() if name in call.given or isinstance(value, Spec)}
    if lent and not call.given:
        yield lent


def _evaluated(value: Any, kind: type[Spec], field: str, near: tuple[Spec, ...]) -> Any:
    """Returns the value of a field, with every formula in it evaluated."""
    if isinstance(value, Formula):
        return value.value(kind, field, near)
    return tuple(_evaluated(item, kind, field, near) for item in value) if type(value) is tuple else value


def _construct(call: BlockCall, kind: type[Spec], values: Values) -> Spec:
    """Returns the block with these fields and those that its alias sets. Its rotation fits the head width."""
    values = dict(values)
    _apply_alias(call, values)
    rope, width = values.get("rope"), values.get("rope_dim", values.get("head_dim"))
    if isinstance(rope, Position) and isinstance(width, int) and "rope" not in call.given:
        values["rope"] = rope.at_width(width)
    return kind(**values)


def _give_to_parts(call: BlockCall, values: Values, near: tuple[Spec, ...]) -> None:
    """Passes given fields on to the part of the block that has them (k to the router, hidden to the expert), and puts
    the rebuilt parts into `values`. A missing part gets the kind that accepts most of these fields. Raises UsageError
    for a field that no part accepts."""
    given = {name: value for name, value in call.given.items() if name not in field_names(call.kind)}
    for name, kinds in _parts(call.kind).items():
        held = values.get(name)
        options = [type(held)] if held else [option for option in Spec.kinds.values() if issubclass(option, kinds)]
        part = max(options, key=lambda option: len(given.keys() & set(field_names(option))))
        taken = {each: value for each, value in given.items() if each in field_names(part)}
        if taken and (held or required_fields(part) <= taken.keys()):
            values[name] = rebuild(BlockCall(part.__name__, taken), held, near)
            given = {each: value for each, value in given.items() if each not in taken}
    if given:
        raise _unknown_field(call.name, call.kind, next(iter(given)))


def _apply_alias(call: BlockCall, values: Values) -> None:
    """Adds the fields that the alias of the call fixes to `values`."""
    if call.alias is None:
        return
    for name, example in call.alias.needs.items():
        if values.get(name) is None:
            raise UsageError(f"{call.name} needs a {name}: {call.name}({name}={example})")
    for name, value in call.alias.sets.items():
        if name in call.given:
            kind = call.kind.__name__
            raise UsageError(f"{call.name} sets {name} itself; for another number write {kind}({name}=...)")
        with suppress(KeyError):  # a required field is missing: constructing the block raises the error
            values[name] = value(values)


def _unknown_field(name: str, kind: type[Spec], field: str) -> GrammarError:
    inner = {  # field of a part -> the spelling that sets it; if several parts have the field, the first counts
        each: f"{part}={option}({each}=...)"
        for part, kinds in reversed(_parts(kind).items())
        for option, of in reversed(Spec.kinds.items())
        if issubclass(of, kinds)
        for each in field_names(of)
    }
    close = get_close_matches(field, [*field_names(kind), *inner], n=1)
    hint = f"; {inner[field]} has one" if field in inner else f"; did you mean {close[0]}?" if close else ""
    return GrammarError(f"{name} has no field {field!r}{hint} (fields: {', '.join(field_names(kind)) or 'none'})")


def _example(kinds: tuple[type[Spec], ...] | None) -> str:
    """Returns an example value for a missing field. For a part, it is the first kind that the field accepts."""
    return next((f"{name}(...)" for name, kind in Spec.kinds.items() if kinds and issubclass(kind, kinds)), "...")


def _first(kind: type[Spec] | tuple[type[Spec], ...], near: tuple[Spec, ...]) -> Spec | None:
    return next((node for spec in near for node in spec.walk() if isinstance(node, kind)), None)


def dropped_features(old: Spec, new: Spec) -> Iterator[str]:
    """Yields the optional fields that `old` uses and no block in `new` has: "sinks", "window 128", ..."""
    kept = {name for node in new.walk() for name in field_names(type(node))}
    for node in old.walk():
        facts = stated(node)
        yield from filter(None, (str(facts[name]) for name in fields_in_use(node) if name not in kept))


# Fields of a kind.


def field_names(kind: type[Spec]) -> list[str]:
    """Returns the names of the fields that construct a block of this kind."""
    return [field.name for field in fields(kind)]


def required_fields(kind: type[Spec]) -> set[str]:
    """Returns the names of the fields without a default."""
    return {each.name for each in fields(kind) if each.default is each.default_factory is MISSING}


@cache
def _parts(kind: type[Spec]) -> dict[str, tuple[type[Spec], ...]]:
    """Maps each required field that holds a block to the kinds of block that it accepts."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in required_fields(kind)}
    kinds = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    return {name: of for name, of in kinds.items() if all(isinstance(t, type) and issubclass(t, Spec) for t in of)}
