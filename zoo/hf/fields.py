"""Reads a JSON object strictly: every field has a checked type, and a field that nobody read is an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from reprlib import repr as brief
from sys import float_info
from typing import Any, get_type_hints

from zoo.errors import MalformedError, enough
from zoo.hf.inert_fields import alike
from zoo.registry import Spec

MAX_INTEGER = 2**31 - 1  # above this, a size is damage
MAX_NAME_CHARACTERS = 200  # longer names are shortened in errors
_ABSENT = object()


class Fields:
    """The fields of an object in config.json, each read by its name; `finish` checks that all were read.

    `defaults` are the values of absent fields. `where` is the path to the object: "", "rope_scaling.", ... Every method
    raises MalformedError, with the field's name and value, where the field is missing or of another type.
    """

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any] | None = None, where: str = "") -> None:
        self.values, self.defaults, self.where = values, defaults or {}, where
        self.read: set[str] = set()
        self.inner: dict[str, Fields] = {}
        self.off: dict[str, Any] = {}

    def error(self, message: str) -> MalformedError:
        """Returns an error about this object."""
        return MalformedError(f"config.json: {self.where}{message}")

    def get(self, name: str) -> Any:
        """Returns the field's value, or its default."""
        self.read.add(name)
        value = self.values.get(name, self.defaults.get(name, _ABSENT))
        if value is _ABSENT:
            raise self.error(f"{name} is missing, and has no default")
        return value

    def _typed(self, name: str, wanted: str, types: Any, most: float) -> Any:
        value = self.get(name)
        if not isinstance(value, types) or isinstance(value, bool) or not 0 < value <= most:
            raise self.error(f"{name} must be {wanted}, got {brief(value)}")
        return value

    def integer(self, name: str, most: int = MAX_INTEGER) -> int:
        """Returns an integer from 1 to `most`."""
        return int(self._typed(name, f"an integer from 1 to {most}", int, most))

    def integers(self, **names: str) -> dict[str, int]:
        """Returns integers under other names: integers(kv_rank="kv_lora_rank") -> {"kv_rank": ...}."""
        return {field: self.integer(name) for field, name in names.items()}

    def typed(self, kind: type[Spec], **names: str) -> dict[str, Any]:
        """Returns arguments for a kind of spec, each read as the type of its annotation: typed(MLA,
        kv_rank="kv_lora_rank")."""
        readers: dict[Any, Callable[[str], Any]] = {int: self.integer, float: self.number, bool: self.flag}
        readers |= {int | None: self.optional, tuple[float, ...]: self.numbers}
        hints = get_type_hints(kind)
        return {field: readers[hints[field]](name) for field, name in names.items()}

    def number(self, name: str) -> float:
        """Returns a positive, finite number."""
        return float(self._typed(name, "a positive number", int | float, float_info.max))

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a list of positive, finite numbers."""
        value = self.get(name)
        if not isinstance(value, list) or not value:
            raise self.error(f"{name} must be a list of positive numbers, got {brief(value)}")
        each = Fields({f"{name}[{i}]": item for i, item in enumerate(value)}, where=self.where)
        return tuple(map(each.number, each.values))

    def optional(self, name: str) -> int | None:
        """Returns an `integer`, or None where the field is null."""
        return None if self.get(name) is None else self.integer(name)

    def optional_number(self, name: str) -> float | None:
        """Returns a `number`, or None where the field is null."""
        return None if self.get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """Returns True or False."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false, got {brief(value)}")
        return value

    def object(self, name: str, defaults: dict[str, Any] | None = None) -> Fields:
        """Returns the fields of an object in this one. Where it is absent, null or empty, they are its default or none.

        `finish` checks that object too.
        """
        self.read.add(name)
        if name not in self.inner:
            value = self.values.get(name)
            if not isinstance(value, dict | None):
                raise self.error(f"{name} must be an object, got {brief(value)}")
            self.inner[name] = Fields(value or self.defaults.get(name) or {}, defaults, f"{self.where}{name}.")
        return self.inner[name]

    def spelled(self, *names: str) -> str:
        """Returns the first of a field's `names` that is present, or else the first. Values under other names must
        agree."""
        used = next((name for name in names if self.values.get(name) is not None), names[0])
        self.unused(*(name for name in names if alike(self.values.get(name), self.values.get(used))))
        return used

    def expect(self, **only: Any) -> None:
        """Reads fields with one supported value, which is also their default unless `defaults` has another."""
        for name, value in only.items():
            self.read.add(name)
            if (given := self.values.get(name, self.defaults.get(name, value))) != value:
                source = "" if name in self.values else " (its default)"
                raise self.error(f"{name}={brief(given)}{source} is not supported, only {value!r}")

    def neutral(self, **off: Any) -> None:
        """Reads fields that name a feature, with the value that turns it off. `finish` refuses any other value."""
        self.off |= off
        self.read.update(name for name, value in off.items() if alike(self.values.get(name, value), value))

    def agrees(self, name: str, layers: Iterable[Any]) -> None:
        """Checks that a list with one entry per layer, where present, equals `layers`."""
        expected, given = list(layers), self.values.get(name)
        self.read.add(name)
        if given is None or given == expected:
            return
        if not isinstance(given, list):
            raise self.error(f"{name} must be a list, got {brief(given)}")
        if len(given) != len(expected):
            raise self.error(f"{name} has {len(given)} entries for {len(expected)} layers")
        i = next(i for i, pair in enumerate(zip(given, expected, strict=True)) if pair[0] != pair[1])
        raise self.error(f"{name}[{i}]={brief(given[i])} is not supported, only {expected[i]!r} in this architecture")

    def plan(self, name: str, kinds: Collection[str], default: Sequence[str]) -> list[str]:
        """Returns a list with one of `kinds` for each layer; `default`, of the same length, where it is absent or
        null."""
        given = self.values.get(name)
        self.read.add(name)
        if given is None:
            return list(default)
        if not isinstance(given, list):
            raise self.error(f"{name} must be a list, got {brief(given)}")
        if len(given) != len(default):
            raise self.error(f"{name} has {len(given)} entries for {len(default)} layers")
        for i, kind in enumerate(given):
            if kind not in kinds:
                raise self.error(f"{name}[{i}]={brief(kind)} is unknown; known: {', '.join(kinds)}")
        return given

    def unused(self, *names: str) -> None:
        """Marks fields as read that have no effect because of the values of other fields."""
        self.read.update(names)

    def left(self) -> Iterator[tuple[str, str]]:
        """Yields (path, "path=value") for every field that was not read. A null field counts as absent."""
        for name, value in self.values.items():
            if name not in self.read and value is not None:
                path = self.where + (name if name.isprintable() and len(name) <= MAX_NAME_CHARACTERS else brief(name))
                only = f" (only {self.off[name]!r} is)" if name in self.off else ""
                yield path, f"{path}={brief(value)}{only}"
        for inner in self.inner.values():
            yield from inner.left()

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Raises MalformedError naming every field that was not read, except those in `ignore`."""
        ignore = set(ignore)
        left = [shown for path, shown in self.left() if path not in ignore]
        if left:
            advice = "pass --ignore-field NAME (ignore_fields=) to ignore one"
            raise MalformedError(f"config.json: not understood: {enough(left)}; {advice}")
