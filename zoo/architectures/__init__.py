"""One file an architecture. The folder is scanned: a new file is in every table, test and command without an edit."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


@cache
def families() -> dict[str, ModuleType]:
    """Family name -> its module, in order of the files' names: "deepseek-v3", "gemma3", ..."""
    names = sorted(info.name for info in iter_modules(__path__) if not info.name.startswith("_"))
    return {name.replace("_", "-"): import_module(f"{__name__}.{name}") for name in names}
