"""The grammar of `--swap`.

    KIND(field=value, ...)               edits every KIND in the model
    role=KIND(field=value, ...)          replaces the blocks of a role: attn, ffn, rope, norm, router or act
    role=KIND(...) from NAME             takes missing fields from a published model's KIND, scaled to this width
    norm=pre | olmo2 | sandwich | post   moves the norms; olmo means the same as olmo2
    norm=hyper                           four residual streams (zoo.blocks.hyper_connections)
    layers=N                             N layers in the same pattern
    SWAP every N, SWAP except every N    changes only the last of every N layers, or all others
    SWAP in 0,2,5-7, SWAP except in -1   changes only these layers, or all others; -1 is the last

Kinds are the names in `Spec.kinds`; kinds and roles ignore case. MHA, MQA and SWA are aliases for forms of GQA: they
edit the GQAs of that form. If the model has none, they give every GQA that form. Fields that are not given keep their
values or are derived from the model (zoo.swaps.rebuild). A value is a number, true, false, none, a word, a block, or a
tuple of these. A number can be arithmetic with fields of the replaced block and of the model; 4k is 4,096:
`GQA(window=4k, head_dim=dim/heads)`, `ffn=MoE(router=SoftmaxTopK(k=2))`, `LongRoPE(short=(1, 1), long=(1, 4))`.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from zoo.architectures import families, folded, published
from zoo.blocks.layer import PLACEMENTS, Layer, Placement
from zoo.errors import SpecError, UsageError
from zoo.hf.config import MAX_LAYERS
from zoo.model.decoder import Decoder
from zoo.registry import Spec, require_spec
from zoo.swaps.borrow import borrowed
from zoo.swaps.expressions import BlockCall, Formula, GrammarError, aliased_kinds, kind_name, parse
from zoo.swaps.rebuild import dropped_features, field_names, rebuild
from zoo.swaps.scaled import at_depth

SUMMARY = """\
A swap is one of these:
  KIND(field=value, ...)        edits every KIND: GQA(window=4k)
  ROLE=KIND(field=value, ...)   replaces a block: attn=MLA(kv_rank=dim/4)
  ROLE=KIND(...) from MODEL     borrows one: attn=GatedDeltaNet from qwen3-next
  norm=PLACEMENT                pre, olmo2, sandwich, post or hyper
  layers=N                      changes the number of layers
A ROLE is attn, ffn, rope, norm, router or act. A swap may end with
every N, except every N, in 0,2,5-7 or except in -1: then some layers change."""
MAX_CHARACTERS = 120  # of a swap that an error message shows
MAX_TEXT = 10_000  # characters of a swap
SOME_LAYERS = re.compile(
    r"(?P<swap>.*?\S)\s+(?P<others>except\s+)?(?:every\s+(?P<every>\d{1,9})|in\s+(?P<listed>\S.*?))\s*", re.DOTALL
)
LAYER_RANGE = re.compile(r"(-?\d{1,9})(?:\s*-\s*(-?\d{1,9}))?")
LENDER = re.compile(r"(?P<swap>.*?\S)\s+from\s+(?P<name>\S+)\s*", re.DOTALL)
PLACEMENT_ALIASES = {"olmo2": "olmo"}


def apply_swaps(spec: Decoder, texts: Sequence[str]) -> tuple[Decoder, list[str]]:
    """Applies swaps in turn. Returns the new spec and the distinct features that were dropped. Raises the errors of
    `apply_swap`."""
    dropped: dict[str, None] = {}
    for text in texts:
        spec, features = apply_swap(spec, text)
        dropped.update(dict.fromkeys(features))
    return spec, list(dropped)


def apply_swap(spec: Decoder, text: str) -> tuple[Decoder, list[str]]:
    """Applies one swap. Returns the new spec, and the features that were dropped: "sinks", "window 128", "biases", ...

    The spec is returned unchanged if it already has the swap's blocks. Raises UsageError for a swap that cannot be
    applied, such as one of blocks that the model does not have; the grammar is a note of the error if the swap cannot
    be parsed, or names an unknown kind, role or field. Raises SpecError if the new fields describe no valid model.
    """
    require_spec(spec, "apply_swap")
    if not isinstance(text, str):
        raise UsageError(f"a swap is a text such as 'GQA(window=512)', not a {type(text).__name__}")
    try:
        if len(text) > MAX_TEXT:
            raise UsageError(f"must have at most {MAX_TEXT:,} characters")
        return _apply_swap(spec, text)
    except (UsageError, RecursionError) as error:
        shown = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
        if isinstance(error, SpecError):
            raise type(error)(f"swap {shown!r}: {error}") from error
        reason = "is nested too deeply" if isinstance(error, RecursionError) else error
        refused = UsageError(f"swap {shown!r}: {reason}")
        if isinstance(error, GrammarError | RecursionError):
            refused.add_note(SUMMARY)
        raise refused from error


def _apply_swap(spec: Decoder, text: str) -> tuple[Decoder, list[str]]:
    block, which = _parse_layers(text, len(spec.layers))
    block, lender = _parse_lender(block)
    role, call = _parse_swap(block)
    if role == "layers" or isinstance(call, str):
        if lender:
            raise GrammarError("from NAME needs a KIND before it, as in attn=GatedDeltaNet from qwen3-next")
        if role != "layers":
            return _move_norms(spec, call, which), []
        if which is not None:
            raise UsageError("layers= changes the whole model: leave the choice of layers out")
        return _with_depth(spec, call), []
    lent = _lent(call, lender, spec) if lender else None
    dropped: dict[str, None] = {}

    @cache  # many layers of a model have equal blocks
    def change(old: Spec) -> Spec:
        new = rebuild(call, lent, (old, spec)) if lent else rebuild(call, old, (spec,), keeps_kind=not role)
        dropped.update(dict.fromkeys(dropped_features(old, new)))
        return new

    chosen = _blocks_of_role(spec, role, call) if role else _blocks_of_kind(spec, call, has_fields=lent is not None)
    changed = cache(lambda child: _change(child, chosen, change))
    if which is None:
        new: Any = change(spec) if chosen(spec) else spec.map(changed)
        return new, list(dropped)
    if not any(chosen(node) for i in which for node in spec.layers[i].walk()):
        raise UsageError(f"none of the {len(which)} layers that were chosen has a {role or call.name}")
    layers = _changed_layers(spec, which, changed)
    return replace(spec, layers=layers) if layers != spec.layers else spec, list(dropped)


def _lent(call: BlockCall, lender: str, taker: Decoder) -> Spec:
    """Returns the first block of a kind in the model `lender`, scaled to the width of `taker`. If `lender` is a family,
    its smallest size with such a block lends it. Raises UsageError if it is unknown or has no such block."""
    preset, size = published(lender)
    family = families().get(folded(lender))
    sizes = sorted(family.SIZES.values(), key=lambda each: each.params) if family else [size]
    blocks = (borrowed(call.kind, each.spec, taker, call.alias) for each in sizes)
    found = next(filter(None, blocks), None)
    if found is None:
        kinds = {type(node).__name__ for each in sizes for node in each.spec.walk() if node.role == call.kind.role}
        name = lender if family else preset
        raise UsageError(f"{name} has no {call.name}" + (f", only {', '.join(sorted(kinds))}" if kinds else ""))
    return found


def _with_depth(spec: Decoder, wanted: Any) -> Decoder:
    """Returns `spec` with another number of layers, in the same pattern."""
    depth = wanted.integer("layers", (spec,)) if isinstance(wanted, Formula) else wanted
    if type(depth) is not int or not 1 <= depth <= MAX_LAYERS:
        raise UsageError(f"layers must be an integer from 1 to {MAX_LAYERS:,}, not {depth!r:.40}")
    return spec if depth == len(spec.layers) else replace(spec, layers=at_depth(spec.layers, depth))


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
    """Returns `spec` with every chosen spec changed, except those inside another chosen spec."""
    return change(spec) if chosen(spec) else spec.map(lambda child: _change(child, chosen, change))


# The blocks that a swap changes.


def _blocks_of_kind(spec: Decoder, call: BlockCall, has_fields: bool) -> Callable[[Spec], bool]:
    """Returns a predicate for every block of the kind. For an alias: the GQAs of that form, or every GQA if there is
    none."""
    kind = call.kind
    if not any(isinstance(node, kind) for node in spec.walk()):
        present = sorted({type(node).__name__ for node in spec.walk()} & Spec.kinds.keys())
        hint = f"; {kind.role}={call.name}(...) puts one in" if kind.role in _roles(spec) else ""
        raise UsageError(f"there is no {call.name} here, only {', '.join(present)}{hint}")
    if call.alias:
        matching = {node for node in spec.walk() if isinstance(node, kind) and call.alias.holds(node)}
        return lambda node: isinstance(node, kind) and (node in matching or not matching)
    if not call.given and not has_fields:
        known = ", ".join(field_names(kind))
        raise UsageError(f"nothing to edit: write {call.name}(field=value) with a field of {known}")
    return lambda node: isinstance(node, kind)


def _blocks_of_role(spec: Decoder, role: str, call: BlockCall) -> Callable[[Spec], bool]:
    """Returns a predicate for every block of the role. Raises UsageError if the new kind has another role."""
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
    """Returns a swap without the words that choose layers, and the chosen layers; None means the whole model."""
    found = SOME_LAYERS.fullmatch(text)
    if not found:
        return text, None
    if found["listed"]:
        named, words = _listed(found["listed"], layers), f"in {found['listed']}"
    else:
        every, words = int(found["every"]), f"every {found['every']}"
        if every == 0:
            raise UsageError("every 0: N must be at least 1")
        named = frozenset(range(every - 1, layers, every))
    chosen = frozenset(range(layers)) - named if found["others"] else named
    if not chosen:
        words = f"except {words}" if found["others"] else words
        raise UsageError(f"{words!r} chooses none of {layers} layers")
    return found["swap"], chosen


def _listed(text: str, layers: int) -> frozenset[int]:
    """Returns the layers in a list such as 0,2,5-7. Negative numbers count from the end: -1 is the last layer."""
    chosen: set[int] = set()
    for item in text.split(","):
        found = LAYER_RANGE.fullmatch(item.strip())
        if not found:
            raise GrammarError(f"{item.strip()!r} is not a layer or a range of layers: write in 0,2,5-7")
        ends = [int(end) for end in found.groups() if end is not None]
        for end in ends:
            if not -layers <= end < layers:
                raise UsageError(f"there is no layer {end}: the model has {layers}, from 0 to {layers - 1}")
        first, last = (end % layers for end in (ends[0], ends[-1]))
        if last < first:
            raise UsageError(f"the range {item.strip()!r} ends before it starts")
        chosen.update(range(first, last + 1))
    return frozenset(chosen)


def _parse_lender(text: str) -> tuple[str, str]:
    """Returns a swap without `from NAME`, and the name, which is "" if the swap has no `from`."""
    found = LENDER.fullmatch(text)
    return (found["swap"], found["name"]) if found else (text, "")


def _parse_swap(text: str) -> tuple[str, Any]:
    """Returns the role ("" if none is given) and its value: a block, for norm= also the name of a placement, for
    layers= a number or a Formula."""
    match = re.fullmatch(r"\s*(?:(\w+)\s*=)?\s*(.*?)\s*", text, re.DOTALL)
    assert match is not None
    role, block = (match[1] or "").lower(), match[2]
    if role and role not in (roles := {kind.role for kind in Spec.kinds.values() if kind.role} | {"layers"}):
        raise GrammarError(f"unknown role {role[:80]!r}; known: {', '.join(sorted(roles))}")
    placement = PLACEMENT_ALIASES.get(block.lower(), block.lower())
    if role == "norm" and placement in PLACEMENTS:
        return role, placement
    if not block:
        raise GrammarError("a block is missing: write KIND(field=value), as in GQA(window=512)")
    value = parse(block, match.start(2))
    if role == "layers":
        return role, value
    if isinstance(value, Formula) and value.word:
        value = BlockCall(kind_name(value.word), {})
        known = [*Spec.kinds, *aliased_kinds(), *((*PLACEMENTS, *PLACEMENT_ALIASES) if role == "norm" else ())]
        if value.name not in known:
            raise GrammarError.unknown("block", value.name, known)
    if isinstance(value, BlockCall):
        return role, value
    raise GrammarError(f"{block[:80]!r} is not a block: write KIND(field=value), as in GQA(window=512)")
