"""The references of presets in their toy forms, each built once for all tests of a process. A test that changes one
must copy it first: `copy.deepcopy(toys.reference(name))`. Tests of one family go to one worker
(`tests.presets.screen_by_family`), so that they share what is here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

import zoo
from tests.reference import exact_twin, toy_config, toy_reference
from weights.reference.float64 import as_stored


def config(name: str) -> dict[str, Any]:
    """The published config of a preset at toy widths, with as many layers as its tiny spec has."""
    return toy_config(name, layers=len(zoo.spec(name, tiny=True).layers))


@cache
def reference(name: str) -> nn.Module:
    """The reference of that config, with random parameters. Tests must not change it."""
    with as_stored():  # also where it is first asked for inside `in_float64`
        return toy_reference(config(name))


@cache
def exact_reference(name: str) -> nn.Module:
    """The reference in float64, with the same weights, for use inside `in_float64`. Tests must not change it."""
    return exact_twin(config(name), reference(name))
