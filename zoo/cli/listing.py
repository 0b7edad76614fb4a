"""The registry as a table: blocks and what they can do, against the architectures that use them.

Everything is found by walking specs: a new architecture is a new column, a new block or option a new row.
"""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from zoo.architectures import families
from zoo.blocks.gqa import ALIASES, GQA, aliases
from zoo.blocks.layer import PLACEMENTS, Placement
from zoo.registry import Spec
from zoo.swaps.rebuild import features

WIDTH = 80
SLOTS = {
    "attn": "attention",
    "rope": "position",
    "scaling": "RoPE scaling",
    "ffn": "feed-forward",
    "router": "router",
    "act": "activation",
    "norm": "norm",
    "placement": "norm placement",
    "model": "model",
}
Word = tuple[str, str, bool]  # the slot, a block or one of its options, and whether it is an option


def rows() -> list[dict[str, Any]]:
    """For each block and option its slot, and the architectures of which some size uses it."""
    used = {family: dict.fromkeys(_of_family(family)) for family in families()}
    words = dict.fromkeys([*_registered(), *(word for found in used.values() for word in found)])
    order = [*SLOTS, *dict.fromkeys(slot for slot, _, _ in words if slot not in SLOTS)]
    return [
        {
            "slot": word[0],
            "block": word[1],
            "option": word[2],
            "architectures": [family for family in used if word in used[family]],
        }
        for word in sorted(words, key=lambda word: (order.index(word[0]), word[2]))
    ]


def sizes() -> dict[str, list[str]]:
    """Architecture -> its published sizes."""
    return {family: list(module.SIZES) for family, module in families().items()}


def text() -> str:
    """The table in 80 columns, each architecture's name above its own column, then the names of all sizes."""
    known, table = list(families()), rows()
    cells = [f"  {'+ ' * row['option']}{row['block']}" for row in table]
    label = max(map(len, cells)) + 2
    lines = [f"{'':{label}}{'| ' * i}{name}" for i, name in enumerate(known)]
    slot = None
    for row, cell in zip(table, cells, strict=True):
        if row["slot"] != slot:
            slot = row["slot"]
            lines.append(f"{SLOTS.get(slot, slot):{label}}{'| ' * len(known)}".rstrip())
        lines.append(f"{cell:{label}}" + " ".join("x" if name in row["architectures"] else "." for name in known))
    lines += ["", "sizes (an architecture's name alone is its smallest)"]
    indent = max(map(len, known)) + 4
    for family, names in sizes().items():
        lines += wrap(
            f"  {family:{indent - 2}}{' '.join(names)}", WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False
        )
    return "\n".join(lines)


def _registered() -> Iterator[Word]:
    """Every block of the registry, used or not."""
    for name, kind in Spec.kinds.items():
        if kind.role:
            yield kind.role, name, False
        if kind is GQA:
            yield from ((kind.role, word, False) for word in ALIASES)
    yield from (("placement", word, False) for word in PLACEMENTS)


def _of_family(family: str) -> Iterator[Word]:
    for size in families()[family].SIZES.values():
        yield from _of(size.spec)


def _of(spec: Spec) -> Iterator[Word]:
    """The words for a spec and for all that is in it."""
    if isinstance(spec, Placement):
        yield "placement", spec.placement, False
    else:
        yield from ((spec.role, word, False) for word in aliases(spec) if spec.role)
        for name, term in features(spec).items():
            value = getattr(spec, name)
            if name != "window" and not (isinstance(value, Spec) and value.role == name):  # those have their own row
                yield spec.role or "model", term, True
    for child in dict.fromkeys(child for _, child in spec.children()):
        yield from _of(child)
