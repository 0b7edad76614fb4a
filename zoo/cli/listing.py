"""The registry as a table: blocks and their options, and the architectures that use them. The table is computed from
the specs: a new architecture adds a column, a new block or option adds a row."""

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any, NamedTuple

from zoo.architectures import families, released
from zoo.blocks.layer import PLACEMENTS, Placement
from zoo.model.decoder import Decoder
from zoo.registry import Spec, options

WIDTH = 80  # characters
ROLES = {"attn": "attention", "rope": "position", "scaling": "RoPE scaling"}
ROLES |= {"ffn": "feed-forward", "router": "router", "act": "activation"}
ROLES |= {"norm": "norm", "placement": "norm placement", "model": "model"}


class RegistryEntry(NamedTuple):
    """A block, or an option that blocks of a role can have."""

    role: str
    block: str
    option: bool = False


def block_rows() -> list[dict[str, Any]]:
    """Returns a row for each block and option: its role, its name, whether it is an option, and the architectures that
    use it in at least one size."""
    used = {
        name: dict.fromkeys(e for size in family.SIZES.values() for e in _used(size.spec))
        for name, family in families().items()
    }
    entries = dict.fromkeys([*_registered(), *(entry for found in used.values() for entry in found)])
    order = [*ROLES, *dict.fromkeys(entry.role for entry in entries if entry.role not in ROLES)]
    return [
        entry._asdict() | {"architectures": [family for family in used if entry in used[family]]}
        for entry in sorted(entries, key=lambda entry: (order.index(entry.role), entry.option))
    ]


def published_sizes() -> dict[str, list[str]]:
    """Maps each architecture to its published sizes, in order of release."""
    return {family: list(module.SIZES) for family, module in families().items()}


def listing_text() -> str:
    """Formats the table in 80 columns, with an architecture per column, and then the names of all sizes. Columns that
    do not fit are put into further tables below."""
    rows = block_rows()
    cells = [f"  {'+ ' * row['option']}{row['block']}" for row in rows]
    width = max(map(len, cells)) + 2
    lines = []
    for names in _panels(families(), WIDTH - width):
        lines += [f"{'':{width}}{'| ' * i}{name}" for i, name in enumerate(names)]
        role = None
        for row, cell in zip(rows, cells, strict=True):
            if row["role"] != role:
                role = row["role"]
                lines.append(f"{ROLES.get(role, role):{width}}{'| ' * len(names)}".rstrip())
            lines.append(f"{cell:{width}}" + " ".join("x" if name in row["architectures"] else "." for name in names))
        lines.append("")
    lines.append("sizes, in order of release (an architecture's name alone is its smallest)")
    indent = " " * (max(map(len, families())) + 13)
    for family, module in families().items():
        line = f"  {family:{len(indent) - 11}}{released(module)}  {' '.join(module.SIZES)}"
        lines += wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


def used_names(spec: Spec) -> set[str]:
    """Returns the names that the table has for the blocks and options in a spec: "MLA", "SWA", "sinks", ..."""
    return {entry.block for entry in _used(spec)}


def _panels(names: Iterable[str], width: int) -> list[list[str]]:
    """Divides the names, in order, among tables that fit the width. A column is two characters wide. Each name stands
    above its column and extends to the right, above the next columns."""
    panels: list[list[str]] = [[]]
    for name in names:
        if panels[-1] and 2 * len(panels[-1]) + len(name) > width:
            panels.append([])
        panels[-1].append(name)
    return panels


def _registered() -> Iterator[RegistryEntry]:
    """Yields every block in the registry, even if no architecture uses it."""
    for name, kind in Spec.kinds.items():
        names = (name, *vars(kind).get("aliases", ()))
        yield from (RegistryEntry(kind.role, each) for each in names if kind.role)
    yield from (RegistryEntry("placement", name) for name in PLACEMENTS)


def _used(spec: Spec) -> Iterator[RegistryEntry]:
    """Yields the blocks and options of a spec and of all its parts."""
    names, role = spec.names(), spec.role
    encodes_positions = isinstance(spec, Decoder) and spec.positions is not None
    if isinstance(spec, Placement):
        names, role = [spec.placement], "placement"
    yield from (RegistryEntry(role, name) for name in names if role)
    for key, fact in options(spec).items():
        has_row = key == "window" or getattr(fact.value, "role", "") == key  # the block has its own row
        if not has_row:
            yield RegistryEntry(role or "model", fact.name, option=True)
    for child in dict.fromkeys(child for _, child in spec.children()):
        yield from (entry for entry in _used(child) if not encodes_positions or entry.block != "NoPE")
