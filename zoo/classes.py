"""Checks field values against the annotations of a class, and keeps tables of classes by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from sys import float_info
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def add_kind(kinds: dict[str, type[Any]], cls: type[Any]) -> None:
    """Adds a class to the table `kinds` by its name. A redefined class, as after importlib.reload or in a notebook,
    replaces its old definition. Raises TypeError if another class has the name."""
    known = kinds.setdefault(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        both = " and ".join(f"{each.__module__}.{each.__qualname__}" for each in (known, cls))
        raise TypeError(f"two kinds are called {cls.__name__}: {both}")
    kinds[cls.__name__] = cls


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Returns field name -> its evaluated annotation."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


@cache
def field_tests(kind: Any) -> dict[str, Callable[[Any], bool]]:
    """Returns field name -> a function that tells whether the field may hold a value."""
    return {name: _test(hint) for name, hint in _hints(kind).items()}


def accepts(kind: Any, name: str, value: Any) -> bool:
    """Whether the annotation of a class's field allows a value."""
    return field_tests(kind)[name](value)


@cache
def _test(hint: Any) -> Callable[[Any], bool]:
    """Returns a function that tells whether a field annotated `hint` may hold a value. Cached, since specs are checked
    often."""
    origin, of = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        options = [_test(option) for option in of]
        return lambda value: any(fits(value) for fits in options)
    if origin is Literal:
        return lambda value: value in of
    if origin is tuple:
        each = _test(of[0])
        return lambda value: isinstance(value, tuple) and all(each(item) for item in value)
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        return lambda value: isinstance(value, kinds) and value is not True and 0 < value <= float_info.max
    allowed: dict[type, bool] = {}  # cached: isinstance is several times slower for an abstract class

    def fits(value: object) -> bool:
        if (kind := type(value)) not in allowed:
            allowed[kind] = issubclass(kind, hint)
        return allowed[kind]

    return fits


def allowed_values(kind: Any, name: str) -> str:
    """Returns the values that a class's field may hold, for an error message: "a positive integer or None"."""
    return _allowed(_hints(kind)[name])


def _allowed(hint: Any) -> str:
    origin, of = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_allowed, of))
    if origin is Literal:
        return " or ".join(map(repr, of))
    if origin is tuple:
        return f"a tuple of {_allowed(of[0])}"
    names = {int: "a positive integer", float: "a positive number", bool: "True or False", type(None): "None"}
    return names[hint] if hint in names else str(hint.__name__)
