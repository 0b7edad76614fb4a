"""Specs: frozen descriptions of blocks, the table of their kinds, and swapping one for another.

A spec says everything that can be said before a tensor exists, and builds the module. Equal specs are equal blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from zoo.cost import Stored
from zoo.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

S = TypeVar("S", bound="Spec")


@dataclass(frozen=True)
class Spec(ABC):
    """A frozen description of a part of a model.

    `Spec.kinds` maps each public, concrete subclass by its name: the block registry. Classes enter it when they are
    defined; nobody writes to it by hand. `slot` names the place such a spec stands in (attn, ffn, norm, rope, ...).
    """

    kinds: ClassVar[dict[str, type[Spec]]] = {}
    slot: ClassVar[str] = ""

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not abstract and not cls.__name__.startswith("_"):
            Spec.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(self, field.name, str(field.type), getattr(self, field.name))
        self.check()

    def check(self) -> None:
        """Raise SpecError where fields contradict each other. Numbers have been checked one by one already."""

    def require(self, holds: bool, message: str) -> None:
        """Raise SpecError naming this kind unless `holds`."""
        if not holds:
            raise SpecError(f"{type(self).__name__}: {message}")

    def words(self) -> str:
        """This spec in a reader's words, on one line."""
        return repr(self)

    def children(self) -> Iterator[tuple[str, Spec]]:
        """(field name, spec) of every spec held directly, in field order; a tuple's members share its name."""
        for field in fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Spec):
                    yield field.name, item

    def walk(self) -> Iterator[Spec]:
        """This spec and every spec inside it, outermost first."""
        yield self
        for _, child in self.children():
            yield from child.walk()

    def map(self, change: Callable[[Spec], Spec]) -> Self:
        """This spec with `change` applied to each spec held directly."""

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(changed(item) for item in value)
            return change(value) if isinstance(value, Spec) else value

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        updates = {name: new for name, old in values.items() if (new := changed(old)) != old}
        return replace(self, **updates) if updates else self


class Block(Spec, abstract=True):
    """A part with parameters. `dim` is the width of the residual stream, handed down and never kept in a spec."""

    @abstractmethod
    def build(self, dim: int) -> nn.Module:
        """The module, allocated and not initialised."""

    @abstractmethod
    def params(self, dim: int) -> int:
        """Stored numbers."""

    def active_params(self, dim: int) -> int:
        """Stored numbers that one token uses: all but those of the experts it is not routed to."""
        return self.params(dim)

    @abstractmethod
    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        """FLOPs of a forward of `new` tokens after `past`, by the convention of zoo.cost. `causal=False` counts every
        pair that a dense masked kernel computes, not only the visible ones."""


class Mixer(Block, abstract=True):
    """A block in which tokens see each other."""

    slot = "attn"

    @abstractmethod
    def stored(self) -> Stored:
        """What a layer keeps of each token."""

    def rotary(self) -> tuple[tuple[Spec, int], ...]:
        """The (position encoding, width) pairs whose tables a forward looks up."""
        return ()


def _check_number(spec: Spec, name: str, annotation: str, value: Any) -> None:
    """An int field is a positive integer, a float field a finite number; `| None` allows None."""
    kinds = annotation.replace(" ", "").split("|")
    if value is None and "None" in kinds:
        return
    if "int" in kinds:
        spec.require(isinstance(value, int) and not isinstance(value, bool), f"{name}={value!r} is no integer")
        spec.require(value > 0, f"{name}={value} is not positive")
    elif "float" in kinds:
        spec.require(isinstance(value, int | float) and not isinstance(value, bool), f"{name}={value!r} is no number")
        spec.require(isfinite(value), f"{name}={value} is not finite")
    elif "bool" in kinds:
        spec.require(isinstance(value, bool), f"{name}={value!r} is neither True nor False")


def swap(spec: S, kind: type[Spec], change: Spec | Callable[[Any], Spec]) -> S:
    """`spec` with each outermost spec of `kind` replaced by `change`, a spec or a function of the old one.

    Raises SpecError when there is none of that kind, so that a swap never silently does nothing.
    """
    swapped = _swap(spec, kind, change if callable(change) else lambda _: change)
    if not any(isinstance(node, kind) for node in spec.walk()):
        held = sorted({type(node).__name__ for node in spec.walk() if type(node).__name__ in Spec.kinds})
        raise SpecError(f"nothing to swap: no {kind.__name__} here, only {', '.join(held)}")
    return swapped


def _swap(spec: Any, kind: type[Spec], change: Callable[[Any], Spec]) -> Any:
    return change(spec) if isinstance(spec, kind) else spec.map(lambda child: _swap(child, kind, change))
