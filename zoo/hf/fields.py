"""Reading a JSON object strictly: each field as what it must be, and none left over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from reprlib import repr as brief
from sys import float_info
from typing import Any

from zoo.errors import MalformedError, enough
from zoo.hf.inert_fields import alike

MOST = 2**31 - 1  # of anything a model has: what is above is a damaged file
LONGEST = 200  # of the names that are told as they are
_ABSENT = object()


class Fields:
    """The fields of an object in config.json, each read by its name, and `finish` to see that all were.

    `defaults` stand in for fields that are absent. `where` is the path to the object: "", "rope_scaling.", ... Every
    method raises MalformedError, naming the field and its value, for what is missing or of another kind.
    """

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any] | None = None, where: str = "") -> None:
        self.values, self.defaults, self.where = values, defaults or {}, where
        self.read: set[str] = set()
        self.inner: dict[str, Fields] = {}
        self.off: dict[str, Any] = {}

    def wrong(self, message: str) -> MalformedError:
        """An error about this object."""
        return MalformedError(f"config.json: {self.where}{message}")

    def get(self, name: str) -> Any:
        """The field's value, or its default."""
        self.read.add(name)
        value = self.values.get(name, self.defaults.get(name, _ABSENT))
        if value is _ABSENT:
            raise self.wrong(f"{name} is missing, and there is no default for it")
        return value

    def integer(self, name: str, most: int = MOST) -> int:
        """An integer from 1 to `most`."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.wrong(f"{name}={brief(value)} is no integer from 1 to {most}")
        return value

    def integers(self, **names: str) -> dict[str, int]:
        """Integers under our names: integers(kv_rank="kv_lora_rank")."""
        return {ours: self.integer(name) for ours, name in names.items()}

    def number(self, name: str) -> float:
        """A positive, finite number."""
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= float_info.max:
            raise self.wrong(f"{name}={brief(value)} is no positive number")
        return float(value)

    def optional(self, name: str) -> int | None:
        """An `integer`, or None where the field is null."""
        return None if self.get(name) is None else self.integer(name)

    def optional_number(self, name: str) -> float | None:
        """A `number`, or None where the field is null."""
        return None if self.get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.wrong(f"{name}={brief(value)} is neither true nor false")
        return value

    def object(self, name: str, defaults: dict[str, Any] | None = None) -> Fields:
        """The fields of an object in this one; where it is absent, null or empty, of its default or of an empty one.

        `finish` looks there too.
        """
        self.read.add(name)
        if name not in self.inner:
            value = self.values.get(name)
            if not isinstance(value, dict | None):
                raise self.wrong(f"{name}={brief(value)} is no object")
            self.inner[name] = Fields(value or self.defaults.get(name) or {}, defaults, f"{self.where}{name}.")
        return self.inner[name]

    def expect(self, **only: Any) -> None:
        """Fields that are understood in one value only, the one they have where they are absent and have no default."""
        for name, value in only.items():
            self.read.add(name)
            if (given := self.values.get(name, self.defaults.get(name, value))) != value:
                whence = "" if name in self.values else " (its default)"
                raise self.wrong(f"{name}={brief(given)}{whence} is not supported, only {value!r}")

    def neutral(self, **off: Any) -> None:
        """Fields that name a feature, read in the value that says it is off. In any other, `finish` refuses them."""
        self.off |= off
        self.read.update(name for name, value in off.items() if alike(self.values.get(name, value), value))

    def agrees(self, name: str, plan: Iterable[Any]) -> None:
        """A list with one entry a layer that must say, where it is given, what the plan says."""
        plan, given = list(plan), self.values.get(name)
        self.read.add(name)
        if given is None or given == plan:
            return
        if not isinstance(given, list):
            raise self.wrong(f"{name}={brief(given)} is no list")
        if len(given) != len(plan):
            raise self.wrong(f"{name} has {len(given)} entries for {len(plan)} layers")
        i = next(i for i, (entry, planned) in enumerate(zip(given, plan, strict=True)) if entry != planned)
        raise self.wrong(f"{name}[{i}]={brief(given[i])}, where this architecture's plan has {plan[i]!r}")

    def unused(self, *names: str) -> None:
        """Fields that other fields have switched off."""
        self.read.update(names)

    def left(self) -> Iterator[tuple[str, str]]:
        """(path, "path=value") of every field that nobody has read. One that is null counts as absent."""
        for name, value in self.values.items():
            if name not in self.read and value is not None:
                path = self.where + (name if name.isprintable() and len(name) <= LONGEST else brief(name))
                only = f" (only {self.off[name]!r} is)" if name in self.off else ""
                yield path, f"{path}={brief(value)}{only}"
        for inner in self.inner.values():
            yield from inner.left()

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Raise MalformedError naming every field that nobody has read, but for those in `ignore`."""
        ignore = set(ignore)
        left = [told for path, told in self.left() if path not in ignore]
        if left:
            vouch = "pass --ignore-field NAME (ignore_fields=) to vouch for one"
            raise MalformedError(f"config.json: not understood: {enough(left)}; {vouch}")
