"""Holds one file per architecture. The folder is scanned, so all tables, tests and commands include a new file."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from zoo.errors import unknown


@cache
def families() -> dict[str, ModuleType]:
    """Maps the name of each family ("llama3", "olmo2", ...) to its module, ordered by release, then by name."""
    names = sorted(info.name for info in iter_modules(__path__) if not info.name.startswith("_"))
    found = {name.replace("_", "-"): import_module(f"{__name__}.{name}") for name in names}
    return dict(sorted(found.items(), key=lambda family: released(family[1])))


def released(family: ModuleType) -> str:
    """Returns the release month of a family's earliest size: "2024-04"."""
    return min(size.released for size in family.SIZES.values())


def published(name: str) -> tuple[str, Any]:
    """Returns (preset, size) for a preset's name, a family (its smallest size) or a hub id. Raises UsageError for other
    names."""
    found = _by_name().get(folded(str(name)))
    if found is None:
        presets = [preset for module in families().values() for preset in module.SIZES]
        raise unknown("model", str(name), [*presets, *families()], listed=families())
    return found


def is_known(name: str) -> bool:
    """Whether a name is the name of a preset, the name of a family, or the hub id of a preset."""
    return folded(name) in _by_name()


@cache
def _by_name() -> dict[str, tuple[str, Any]]:
    """Maps each name of a preset, in the form that `folded` returns, to (preset, size)."""
    known: dict[str, tuple[str, Any]] = {}
    for module in families().values():
        known |= {folded(preset): (preset, size) for preset, size in module.SIZES.items()}
        known |= {folded(size.hub): (preset, size) for preset, size in module.SIZES.items()}
    for family, module in families().items():
        known.setdefault(folded(family), min(module.SIZES.items(), key=lambda item: item[1].params))
    return known


def folded(name: str) -> str:
    """Returns a name in a form for comparison: qwen2.5, Qwen2_5 and qwen2-5 become equal."""
    return name.lower().replace("_", "-").replace(".", "-")
