"""Which stored tensors each tensor of the reference is made of, by transformers' own table of conversions.

The modules of transformers 5 have other names than the files they are read from, and hold the experts of a layer in one
tensor. Nothing here reads the zoo's rules: a mistake in those must not come into the reference as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.errors import require_package

Get = Callable[[str], Tensor]


@dataclass
class Recipe:
    """How one conversion makes tensors: the stored names by the pattern that each matched, and transformers' converter,
    None where a tensor only has another name. `first` is the converter's name for its first result."""

    first: str
    converter: Any = None
    stored: dict[str, list[str]] = field(default_factory=dict)

    def make(self, name: str, like: Tensor, get: Get, config: Any) -> Tensor:
        """The tensor `name`, of the shape and dtype of `like`. Experts are converted one by one where that gives the
        same, so that they are not in memory twice."""
        if self.converter is None:
            ((only,),) = self.stored.values()
            return get(only)
        counts = {len(names) for names in self.stored.values()}
        if len(like) > 1 and counts == {len(like)} and _merges(self.converter):
            one = self._converted(name, get, config, slice(1))
            if one.shape == (1, *like.shape[1:]):
                whole = torch.empty(like.shape, dtype=like.dtype)
                whole[:1] = one
                for e in range(1, len(like)):
                    whole[e : e + 1] = self._converted(name, get, config, slice(e, e + 1))
                return whole
        return self._converted(name, get, config, slice(None))

    def _converted(self, name: str, get: Get, config: Any, experts: slice) -> Tensor:
        converter = deepcopy(self.converter)
        for pattern, names in self.stored.items():
            for each in names[experts]:
                converter.add_tensor(self.first, each, pattern, get(each))
        made = converter.convert(self.first, config=config)
        value = made[name]
        return value[0] if isinstance(value, list) else value


def recipes(model: Any, stored: Iterable[str]) -> Mapping[str, Recipe]:
    """Name of a parameter or buffer of the reference -> its recipe, for every stored name that is read into one."""
    loading = require_package("transformers.core_model_loading", "parity")
    mapping = require_package("transformers.conversion_mapping", "parity").get_model_conversion_mapping(model)
    converters = [each for each in mapping if isinstance(each, loading.WeightConverter)]
    renamings = [each for each in mapping if isinstance(each, loading.WeightRenaming)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    wanted, found = model.state_dict(), dict[str, Recipe]()
    for name in sorted(stored, key=loading.dot_natural_key):  # experts in the order of their numbers
        first, pattern = loading.rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        converter = by_pattern.get(pattern)
        recipe = found.setdefault(first, Recipe(first, converter))
        recipe.stored.setdefault(pattern or name, []).append(name)
        if converter is not None:
            for other in converter.target_patterns[1:]:
                found[first.replace(converter.target_patterns[0], other)] = recipe
    return found


def _merges(converter: Any) -> bool:
    """Whether a converter starts by stacking one tensor an expert along the first axis."""
    first = converter.operations[0]
    return type(first).__name__ == "MergeModulelist" and first.dim == 0
