"""The grammar of `--swap`.

    KIND(field=value, ...)               edits every KIND in the model
    role=KIND(field=value, ...)          replaces the blocks of a role: attn, ffn, rope, norm, router or act
    norm=pre | olmo | sandwich | post    moves the norms
    norm=hyper                           four residual streams (zoo.blocks.hyper_connections)
    SWAP every N, SWAP except every N    in the last of every N layers alone, or in all others

Kinds are the names in `Spec.kinds`. MHA, MQA and SWA are aliases for forms of GQA: they edit the GQAs of that form or,
where the model has none, give every GQA that form. Fields that are not given are carried over (zoo.swaps.rebuild). A
value is a number, true, false, none, a word, a block, or several numbers: `ffn=MoE(experts=8,
router=SoftmaxTopK(k=2))`, `LongRoPE(short=(1, 1), long=(1, 4))`.
"""

import ast
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from zoo.blocks.layer import PLACEMENTS, Layer, Placement
from zoo.errors import UsageError, unknown
from zoo.model.decoder import Decoder
from zoo.registry import Spec
from zoo.swaps.rebuild import BlockCall, aliased_kinds, dropped_features, field_names, rebuild

MAX_CHARACTERS = 120  # of a swap in an error message
SOME_LAYERS = re.compile(r"(?P<swap>.*?\S)\s+(?P<others>except\s+)?every\s+(?P<every>\d{1,9})\s*", re.DOTALL)
CONSTANTS = {"none": None, "true": True, "false": False}


def apply_swaps(spec: Decoder, texts: Sequence[str]) -> tuple[Decoder, list[str]]:
    """Applies swaps in turn. Returns the new spec, and the dropped features without duplicates. Raises the errors of
    `apply_swap`."""
    dropped: dict[str, None] = {}
    for text in texts:
        spec, features = apply_swap(spec, text)
        dropped.update(dict.fromkeys(features))
    return spec, list(dropped)


def apply_swap(spec: Decoder, text: str) -> tuple[Decoder, list[str]]:
    """Applies one swap. Returns the new spec, and the features that were dropped: "sinks", "window 128", "biases", ...

    The spec is returned unchanged if it already has the swap's blocks. Raises UsageError for a swap that cannot be
    parsed or names blocks that the model does not have. Raises SpecError if the new fields describe no valid model.
    """
    dropped: dict[str, None] = {}
    try:
        block, which = _parse_layers(text, len(spec.layers))
        role, call = _parse_swap(block)
        if isinstance(call, str):
            return _move_norms(spec, call, which), []

        @cache  # a model has equal blocks in many layers
        def change(old: Spec) -> Spec:
            new = rebuild(call, old, (spec,), keeps_kind=not role)
            dropped.update(dict.fromkeys(dropped_features(old, new)))
            return new

        chosen = _blocks_of_role(spec, role, call) if role else _blocks_of_kind(spec, call)
        changed = cache(lambda child: _change(child, chosen, change))
        if which is None:
            new: Any = change(spec) if chosen(spec) else spec.map(changed)
            return new, list(dropped)
        if not any(chosen(node) for i in which for node in spec.layers[i].walk()):
            raise UsageError(f"none of the {len(which)} layers that were chosen has a {role or call.name}")
        layers = _changed_layers(spec, which, changed)
        return replace(spec, layers=layers) if layers != spec.layers else spec, list(dropped)
    except UsageError as error:
        shown = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
        raise type(error)(f"swap {shown!r}: {error}") from error


def _changed_layers(spec: Decoder, which: Collection[int], change: Callable[[Layer], Layer]) -> tuple[Layer, ...]:
    return tuple(change(layer) if i in which else layer for i, layer in enumerate(spec.layers))


def _move_norms(spec: Decoder, placement: str, which: Collection[int] | None) -> Decoder:
    def move(old: Any) -> Spec:
        if old.placement == placement == "hyper":
            return old
        return PLACEMENTS[placement](next(iter(old.norms()), spec.norm), old.block)

    moved = cache(lambda layer: _change(layer, lambda node: isinstance(node, Placement), move))
    layers = _changed_layers(spec, which or range(len(spec.layers)), moved)
    streams: Any = layers[0].stream_spec
    return replace(spec, layers=layers, streams=streams)


def _change(spec: Any, chosen: Callable[[Spec], bool], change: Callable[[Any], Spec]) -> Any:
    """Returns `spec` with its outermost chosen specs changed."""
    return change(spec) if chosen(spec) else spec.map(lambda child: _change(child, chosen, change))


# The blocks that a swap changes.


def _blocks_of_kind(spec: Decoder, call: BlockCall) -> Callable[[Spec], bool]:
    """Chooses every block of the kind; for an alias, the GQAs of that form or, if there are none, every GQA."""
    kind = call.kind
    if not any(isinstance(node, kind) for node in spec.walk()):
        present = sorted({type(node).__name__ for node in spec.walk()} & Spec.kinds.keys())
        hint = f"; {kind.role}={call.name}(...) puts one in" if kind.role in _roles(spec) else ""
        raise UsageError(f"there is no {call.name} here, only {', '.join(present)}{hint}")
    if call.alias:
        matching = {node for node in spec.walk() if isinstance(node, kind) and call.alias.holds(node)}
        return lambda node: isinstance(node, kind) and (node in matching or not matching)
    if not call.given:
        known = ", ".join(field_names(kind))
        raise UsageError(f"nothing to edit: write {call.name}(field=value) with a field of {known}")
    return lambda node: isinstance(node, kind)


def _blocks_of_role(spec: Decoder, role: str, call: BlockCall) -> Callable[[Spec], bool]:
    """Chooses every block of the role. The kind that replaces them must have the same role."""
    known = {kind.role for kind in Spec.kinds.values() if kind.role}
    if role not in known:
        raise unknown("role", role, known)
    if call.kind.role != role:
        suitable = ", ".join(sorted(name for name, kind in Spec.kinds.items() if kind.role == role))
        raise UsageError(f"{call.name} does not go into {role}, which takes {suitable}")
    if role not in _roles(spec):
        holders = [f"{name}({role}=...)" for name, kind in Spec.kinds.items() if role in field_names(kind)]
        raise UsageError(f"there is no {role} here" + (f"; {' or '.join(holders)} has one" if holders else ""))
    return lambda node: node.role == role


def _roles(spec: Decoder) -> set[str]:
    return {node.role for node in spec.walk() if node.role}


# Parsing.


def _parse_layers(text: str, layers: int) -> tuple[str, frozenset[int] | None]:
    """Returns a swap without the words that choose layers, and the chosen layers; None: the whole model."""
    found = SOME_LAYERS.fullmatch(text)
    if not found:
        return text, None
    every = int(found["every"])
    last = frozenset(range(every - 1, layers, every)) if every else frozenset[int]()
    chosen = frozenset(range(layers)) - last if found["others"] else last
    if not every or not chosen:
        words = f"{'except ' if found['others'] else ''}every {every}"
        raise UsageError(f"{words!r} chooses none of {layers} layers")
    return found["swap"], chosen


def _parse_swap(text: str) -> tuple[str, BlockCall | str]:
    """Returns the role ("" if none is given), and the block; after norm=, a placement is a string."""
    match = re.fullmatch(r"\s*(?:(\w+)\s*=)?\s*(.*?)\s*", text, re.DOTALL)
    assert match is not None
    role, block = match[1] or "", match[2]
    if role == "norm" and block in PLACEMENTS:
        return role, block
    if not block:
        raise UsageError("a block is missing: write KIND(field=value), as in GQA(window=512)")
    try:
        expression = ast.parse(block, mode="eval")  # never evaluated
    except SyntaxError as error:
        raise UsageError(f"{error.msg} at character {match.start(2) + (error.offset or 1)}") from error
    except (ValueError, MemoryError, RecursionError) as error:  # null bytes, thousands of brackets
        raise UsageError("expected KIND(field=value, ...)") from error
    value = _value(expression.body)
    if isinstance(value, BlockCall):
        return role, value
    raise unknown("block", block, [*Spec.kinds, *aliased_kinds(), *(PLACEMENTS if role == "norm" else ())])


def _value(node: ast.expr) -> Any:
    """Returns the value of an expression: a number, true, false, none, a block (its name starts with a capital), a
    word, or several of them."""
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=word) if word.lower() in CONSTANTS:
            return CONSTANTS[word.lower()]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Name(id=word):
            return BlockCall(word, {}) if word[0].isupper() else word
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            given = {each.arg: _value(each.value) for each in keywords if each.arg}
            if len(given) == len(keywords):
                return BlockCall(name, given)
            raise UsageError(f"{name}: duplicate field, or a field given by **")
        case ast.Call(func=ast.Name(id=name)):
            raise UsageError(f"{name}: every value needs a field name, as in {name}(field=value)")
    raise UsageError(
        f"{ast.unparse(node)!r} must be a number, true, false, none, a word, a block or (several, of these)"
    )
