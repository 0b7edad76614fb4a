"""The headers of a published size's files, as a release writes them: names and shapes, without weights."""

from __future__ import annotations

from functools import cache

import torch

from weights.matching import TABLE_DTYPES, layout, match, stored_tensors
from zoo.architectures import families
from zoo.catalog import allocate, family_name, sizes
from zoo.hf.stored_shapes import StoredShapes


@cache
def released_shapes(name: str) -> StoredShapes:
    """The stored tensors of a preset, by its family's checkpoint layout."""
    model = allocate(sizes()[name].spec, "meta", torch.bfloat16)
    parameters = {key: tensor.detach() for key, tensor in stored_tensors(model).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    tables: set[str] = set()
    for mapping in match(model.spec, parameters, layout(families()[family_name(name)]), stored=()):
        expected = mapping.expected(parameters)
        shapes |= expected
        if parameters[mapping.module_names[0]].dtype in TABLE_DTYPES:
            tables |= expected.keys()
    return StoredShapes(shapes, tables=frozenset(tables))
