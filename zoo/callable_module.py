"""Makes the module of a command callable, like the function of the same name.

`zoo.build` is a function, and `python -m zoo.build` a command. `import zoo.build` sets the package's attribute to the
command's module; calling that module then calls the function.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that passes calls on to its `__wrapped__` function."""

    __wrapped__: Callable[..., Any]  # inspect.signature and help() follow this name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Makes an imported module callable: its calls are passed on to the function. A module that is run without being
    imported (runpy.run_module) does not change."""
    found: Any = sys.modules.get(module)
    if found is not None:
        found.__class__ = CallableModule
        found.__wrapped__ = function
