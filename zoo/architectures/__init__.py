"""One file an architecture. The folder is scanned: a new file is in every table, test and command without an edit."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


@cache
def families() -> dict[str, ModuleType]:
    """Returns the module of each family by name ("llama3", "olmo2", ...), in order of release, then by name."""
    names = sorted(info.name for info in iter_modules(__path__) if not info.name.startswith("_"))
    found = {name.replace("_", "-"): import_module(f"{__name__}.{name}") for name in names}
    return dict(sorted(found.items(), key=lambda family: released(family[1])))


def released(family: ModuleType) -> str:
    """Returns the release month of a family's earliest size: "2024-04"."""
    return min(size.released for size in family.SIZES.values())
