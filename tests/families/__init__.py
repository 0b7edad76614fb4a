"""What the tests know of one architecture beyond its published config: a file FAMILY.py here, where there is anything.

The folder is scanned, so that an architecture is added without an edit to a file that another one shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Each FAMILY.py holds one, named FAMILY."""

    widths: dict[str, float] = field(default_factory=dict)
    """Config field -> its largest value in a toy config, beside those in `tests.reference.TOY`."""
    names: dict[str, str] = field(default_factory=dict)
    """The usual name of a config field, where this family has another: {"hidden_size": "n_embd"}."""
    settled: tuple[str, ...] = ()
    """Config fields that have one value for the values of others: how many layers there are where a list names each."""
    toy: Callable[[Config, Config, int], Config] = lambda config, full, layers: {}
    """(the toy config so far, the published one, how many layers) -> the fields of the toy config to set otherwise."""
    wrappers: dict[str, str] = field(default_factory=dict)
    """model_type of the text model -> that of the multimodal model around it."""
    misnamed: dict[str, str] = field(default_factory=dict)
    """Part of a tensor's name that the reference writes -> what released files, which it reads too, have there."""
    transposed: tuple[str, ...] = ()
    """Ends of the names of the reference's matrices that are multiplied as x @ W: their fan-in is the next to last
    side, where everyone else's is the last."""
    factors: dict[str, float] = field(default_factory=dict)
    """Ends of the names of the reference's tensors -> a factor of their random values."""


@cache
def known() -> dict[str, Family]:
    """Family -> what its file says."""
    names = sorted(info.name for info in iter_modules(__path__))
    return {name: import_module(f"{__name__}.{name}").FAMILY for name in names}


def family(name: str) -> Family:
    """What the tests know of a family, by the name of its module in zoo/architectures."""
    return known().get(name, Family())


def wrappers() -> dict[str, str]:
    """model_type of a text model -> that of the multimodal model around it, of all families."""
    return {text: wrapper for each in known().values() for text, wrapper in each.wrappers.items()}
