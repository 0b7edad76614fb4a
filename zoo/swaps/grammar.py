"""Swaps in words.

    KIND(field=value, ...)               edits every KIND in the model
    slot=KIND(field=value, ...)          puts a KIND in the place of what stands in attn, ffn, rope, norm, router or act
    norm=pre | olmo | sandwich | post    moves the norms

Kinds are the names in `Spec.kinds`. MHA, MQA and SWA are words for points of GQA: they edit the GQAs that are there or,
where none is, move every GQA there. Fields that are not given are carried over (zoo.swaps.rebuild). Values are numbers,
true, false, none, words, and blocks again: `ffn=MoE(experts=8, router=SoftmaxTopK(k=2))`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from zoo.blocks.gqa import ALIASES, GQA
from zoo.blocks.layer import PLACEMENTS, Placement
from zoo.errors import UsageError, unknown
from zoo.model.decoder import Decoder
from zoo.registry import Spec
from zoo.swaps.rebuild import Call, dropped_features, field_names, rebuild

LONGEST = 120  # characters of a swap that an error repeats
CONSTANTS = {"none": None, "true": True, "false": False}


def apply_swap(spec: Decoder, text: str) -> tuple[Decoder, list[str]]:
    """One swap -> the new spec, and the features that it dropped: "sinks", "window 128", "biases", ...

    The spec comes back as it is where the swap asks for what is there already. Raises UsageError for what is not
    understood or not in the model, SpecError where the new fields describe no model.
    """
    try:
        return _apply(spec, text)
    except UsageError as error:
        shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
        raise type(error)(f"swap {shown!r}: {error}") from error


def _apply(spec: Decoder, text: str) -> tuple[Decoder, list[str]]:
    slot, call = _read(text)
    if isinstance(call, str):
        return _move_norms(spec, call), []
    chosen = _standing(spec, slot, call) if slot else _present(spec, call)
    dropped: dict[str, None] = {}

    def change(old: Spec) -> Spec:
        new = rebuild(call, old, (spec,))
        dropped.update(dict.fromkeys(dropped_features(old, new)))
        return new

    return _everywhere(spec, chosen, change), list(dropped)


def _move_norms(spec: Decoder, place: str) -> Decoder:
    def move(old: Any) -> Spec:
        return PLACEMENTS[place](next(iter(old.norms()), spec.norm), old.block)

    return _everywhere(spec, lambda node: isinstance(node, Placement), move)


def _everywhere(spec: Any, chosen: Callable[[Spec], bool], change: Callable[[Spec], Spec]) -> Any:
    """`spec` with the outermost chosen specs changed."""
    return change(spec) if chosen(spec) else spec.map(lambda child: _everywhere(child, chosen, change))


# What a swap is about.


def _present(spec: Decoder, call: Call) -> Callable[[Spec], bool]:
    """Every block of the kind; for MHA, MQA and SWA the GQAs there or, where none is, every GQA."""
    kind = call.kind
    if not any(isinstance(node, kind) for node in spec.walk()):
        held = sorted({type(node).__name__ for node in spec.walk()} & Spec.kinds.keys())
        hint = f"; {kind.role}={call.word}(...) puts one in" if kind.role in _slots(spec) else ""
        raise UsageError(f"there is no {call.word} here, only {', '.join(held)}{hint}")
    if call.word in ALIASES:
        there = {node for node in spec.walk() if isinstance(node, GQA) and ALIASES[call.word](node)}
        return lambda node: isinstance(node, GQA) and (node in there or not there)
    if not call.given:
        raise UsageError(
            f"nothing to edit: write {call.word}(field=value), a field being {', '.join(field_names(kind))}"
        )
    return lambda node: isinstance(node, kind)


def _standing(spec: Decoder, slot: str, call: Call) -> Callable[[Spec], bool]:
    """Whatever stands in the slot."""
    every = {kind.role for kind in Spec.kinds.values() if kind.role}
    if slot not in every:
        raise unknown("slot", slot, every)
    if call.kind.role != slot:
        takes = ", ".join(name for name, kind in Spec.kinds.items() if kind.role == slot)
        raise UsageError(f"{call.word} does not go into {slot}, which takes {takes}")
    if slot not in _slots(spec):
        holders = [f"{name}({slot}=...)" for name, kind in Spec.kinds.items() if slot in field_names(kind)]
        hint = f"; {' or '.join(holders)} has one" if holders else ""
        raise UsageError(f"nothing stands in {slot} here{hint}")
    return lambda node: node.role == slot


def _slots(spec: Decoder) -> set[str]:
    return {node.role for node in spec.walk() if node.role}


# Reading.


def _read(text: str) -> tuple[str, Call | str]:
    """The slot, "" where none is named, and the block that is called for, or the word of a placement after norm=."""
    match = re.fullmatch(r"\s*(?:(\w+)\s*=)?\s*(.*?)\s*", text, re.DOTALL)
    assert match is not None
    slot, written = match[1] or "", match[2]
    if slot == "norm" and written in PLACEMENTS:
        return slot, written
    value = _value(_parse(written, match.start(2)))
    if isinstance(value, Call):
        return slot, value
    places = PLACEMENTS if slot == "norm" else ()
    raise unknown("block", written, [*Spec.kinds, *ALIASES, *places])


def _parse(written: str, start: int) -> ast.expr:
    """Text as a Python expression, which is never run."""
    if not written:
        raise UsageError("a block is missing: write KIND(field=value), as in GQA(window=512)")
    try:
        return ast.parse(written, mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"{error.msg} at character {start + (error.offset or 1)}") from error
    except (ValueError, MemoryError, RecursionError) as error:  # null bytes, thousands of brackets
        raise UsageError("this is no KIND(field=value, ...)") from error


def _value(node: ast.expr) -> Any:
    """A number, true, false, none, a block (its name starts with a capital), or a word."""
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=word) if word.lower() in CONSTANTS:
            return CONSTANTS[word.lower()]
        case ast.Name(id=word):
            return Call(word, {}) if word[0].isupper() else word
        case ast.Call(func=ast.Name(id=word), args=[], keywords=keywords):
            given = {each.arg: _value(each.value) for each in keywords if each.arg}
            if len(given) == len(keywords):
                return Call(word, given)
            raise UsageError(f"{word}: a field is given twice, or by **")
        case ast.Call(func=ast.Name(id=word)):
            raise UsageError(f"{word}: every value is named, as in {word}(field=value)")
    raise UsageError(f"{ast.unparse(node)!r} is no number, true, false, none, word or block")
