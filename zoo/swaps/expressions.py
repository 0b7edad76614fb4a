"""Parses the blocks and values of swaps: KIND(field=value, ...), 4k, dim/4, none. The text is parsed with ast and never
executed."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple, Self

from zoo.classes import accepts
from zoo.errors import UsageError, unknown
from zoo.model.decoder import Decoder
from zoo.registry import Alias, Spec
from zoo.units import parse_tokens

CONSTANTS = {"none": None, "true": True, "false": False}
WITH_UNIT = re.compile(r"(?<![\w.])\d[\d_]*(?:\.\d+)?[km]\b", re.IGNORECASE)
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda x, y: x + y,
    ast.Sub: lambda x, y: x - y,
    ast.Mult: lambda x, y: x * y,
    ast.Div: lambda x, y: x / y,
}
ARITHMETIC: tuple[type[ast.AST], ...] = (
    ast.BinOp,
    *OPERATIONS,
    ast.UnaryOp,
    ast.USub,
    ast.UAdd,
    ast.Name,
    ast.Load,
    ast.Constant,
)
Values = dict[str, Any]


class GrammarError(UsageError):
    """A text that is not a swap: it cannot be parsed, or it names an unknown kind, role or field."""

    @classmethod
    def unknown(cls, what: str, word: str, known: Iterable[str]) -> Self:
        """Returns the error for an unknown name (zoo.errors.unknown)."""
        return cls(str(unknown(what, word, known)))


class BlockCall(NamedTuple):
    """A block as written: KIND(field=value, ...). A value can itself be a BlockCall or a Formula."""

    name: str
    given: Values

    @property
    def kind(self) -> type[Spec]:
        """The registered kind. Raises UsageError, which suggests the nearest names, for an unknown name."""
        kinds = {**Spec.kinds, **aliased_kinds()}
        if self.name not in kinds:
            raise GrammarError.unknown("block", self.name, kinds)
        return kinds[self.name]

    @property
    def alias(self) -> Alias | None:
        """The alias with this name; None if the name is not an alias."""
        kind = aliased_kinds().get(self.name)
        return kind.aliases[self.name] if kind else None


class Formula(NamedTuple):
    """A word, or arithmetic with numbers and fields. Its value depends on the block that is replaced."""

    node: ast.expr

    @property
    def word(self) -> str:
        """The word if the formula is a single word, else ""."""
        return self.node.id if isinstance(self.node, ast.Name) else ""

    def value(self, kind: type[Spec], field: str, near: tuple[Spec, ...]) -> Any:
        """Returns the value for a field of a kind: a word that the field allows, a number, or a block. `near` holds the
        specs whose fields the formula may name: the replaced block, the specs around it, and the model last.

        Raises UsageError for a fraction in a field of integers.
        """
        if self.word and accepts(kind, field, self.word):
            return self.word
        if self.word and not any(_numbers(self.word, near)):
            call = BlockCall(kind_name(self.word), {})
            known = {**Spec.kinds, **aliased_kinds()}
            return call if call.name in known or self.word[0].isupper() else self.word
        number = self.number(near)
        if accepts(kind, field, 0.5) or accepts(kind, field, (0.5,)):
            return float(number)
        return self.integer(field, near)

    def integer(self, field: str, near: tuple[Spec, ...]) -> int:
        """Returns the number for a `field` of integers. Raises UsageError for a fraction."""
        number = self.number(near)
        if number.denominator != 1:
            exact = f"{number}, about " if number.denominator < 10**12 else ""
            raise UsageError(f"{field}={ast.unparse(self.node)} is {exact}{float(number):g}: it must be a whole number")
        return int(number)

    def number(self, near: tuple[Spec, ...]) -> Fraction:
        """Returns the exact number. Raises UsageError for unknown fields, a division by zero, or too large a number."""
        try:
            number = _number(self.node, near)
            float(number)  # raises OverflowError beyond the largest float
            return number
        except UsageError:
            raise
        except ZeroDivisionError as error:
            raise UsageError(f"{ast.unparse(self.node)} divides by zero") from error
        except (OverflowError, ValueError) as error:  # ValueError: a constant such as 1e999
            raise UsageError(f"{ast.unparse(self.node)} is beyond the largest number") from error


def _number(node: ast.expr, near: tuple[Spec, ...]) -> Fraction:
    match node:
        case ast.BinOp(left=left, op=operation, right=right):
            return OPERATIONS[type(operation)](_number(left, near), _number(right, near))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, near)
        case ast.UnaryOp(operand=operand):
            return _number(operand, near)
        case ast.Name(id=word):
            found = next(_numbers(word, near), None)
            if found is None:
                fields = {name for spec in near for part in spec.walk() for name in _fields(part)}
                raise GrammarError.unknown("field", word, fields)
            return found
        case ast.Constant(value=value):
            return Fraction(repr(value))  # 0.1 is a tenth, as it is written
    raise AssertionError(node)


def _numbers(word: str, near: tuple[Spec, ...]) -> Iterator[Fraction]:
    """Yields the values of a numeric field: those of the specs `near`, then those of all parts of these specs."""
    for part in (*near, *(inner for spec in near for inner in spec.walk())):
        if (value := _fields(part).get(word)) is not None:
            yield Fraction(repr(value))


def _fields(spec: Spec) -> dict[str, Any]:
    """Returns the numeric fields of a spec; for a model, also its number of layers."""
    held = {**vars(spec), "layers": len(spec.layers)} if isinstance(spec, Decoder) else vars(spec)
    return {name: value for name, value in held.items() if type(value) in (int, float)}


def aliased_kinds() -> dict[str, type[Spec]]:
    """Maps each alias to the kind that defines it. Kinds derived from this kind do not count."""
    return {name: kind for kind in Spec.kinds.values() for name in vars(kind).get("aliases", ())}


def kind_name(word: str) -> str:
    """Returns the name of a kind or an alias in the spelling of the registry; any other word unchanged."""
    known = [*Spec.kinds, *aliased_kinds()]
    return word if word in known else next((name for name in known if name.lower() == word.lower()), word)


def parse(text: str, before: int = 0) -> Any:
    """Returns the value of an expression: a number, true, false, none, a string, a block, a Formula, or a tuple of
    these. `before` is the number of characters before it in the swap, for error messages. Raises GrammarError."""
    added: list[tuple[int, int]] = []  # (position of a number with a unit, characters that its digits add)

    def without_unit(match: re.Match[str]) -> str:
        try:
            digits = str(parse_tokens(match[0]))
        except ValueError as error:
            raise GrammarError(str(error)) from error
        added.append((match.start(), len(digits) - len(match[0])))
        return digits

    try:
        return _value(ast.parse(WITH_UNIT.sub(without_unit, text), mode="eval").body)
    except SyntaxError as error:
        at = error.offset or 1
        for start, characters in added:
            at -= characters if at > start + 1 else 0
        raise GrammarError(f"{error.msg} at character {before + at}") from error
    except UsageError:
        raise
    except (ValueError, MemoryError, RecursionError) as error:  # null bytes, thousands of brackets
        raise GrammarError("expected KIND(field=value, ...)") from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=word) if word.lower() in CONSTANTS:
            return CONSTANTS[word.lower()]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            given = {each.arg: _value(each.value) for each in keywords if each.arg}
            if len(given) == len(keywords):
                return BlockCall(kind_name(name), given)
            raise GrammarError(f"{name}: duplicate field, or a field given by **")
        case ast.Call(func=ast.Name(id=name)):
            raise GrammarError(f"{name}: every value needs a field name, as in {name}(field=value)")
    parts = list(ast.walk(node))
    numbers = all(type(part.value) in (int, float) for part in parts if isinstance(part, ast.Constant))
    if numbers and all(isinstance(part, ARITHMETIC) for part in parts):
        return Formula(node)
    raise GrammarError(
        f"{ast.unparse(node)!r} must be a number, arithmetic such as dim/4, true, false, none, a word, a block or "
        "(several, of these)"
    )
