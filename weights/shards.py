"""Tensor parallelism: the part of each stored tensor that a rank reads. Nothing else in the files is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weights.matching import Part, StoredTensor, TensorMapping
from zoo.blocks.layer import Layer
from zoo.core.collectives import Group
from zoo.hf.checkpoint_layout import Stacked
from zoo.model.decoder import Decoder
from zoo.sharding import Cut, Cuts, FirstRankOnly, cut_of


@dataclass(frozen=True)
class Shards:
    """A rank's part of a model with the spec `whole`, which has these `parameters`, on the meta device."""

    whole: Decoder
    group: Group
    parameters: Mapping[str, Tensor]

    @cached_property
    def _cuts(self) -> Cuts:
        return self.whole.cuts()

    def layer(self, mapping: TensorMapping) -> Layer | None:
        """Returns the rank's part of a mapping's layer: with it a rule makes parameters of the part that the rank
        reads."""
        return None if mapping.layer is None else mapping.layer.shard(self.group.rank)

    def names(self, mapping: TensorMapping) -> tuple[str, ...]:
        """Returns the stored tensors that a rank reads: of experts that are stored one by one, those that it holds."""
        cut = cut_of(mapping.module_names[0], self._cuts)
        if isinstance(mapping.rule, Stacked) and isinstance(cut, Cut) and cut.dim == 0:
            (held,) = cut.slices(len(mapping.checkpoint_names), self.group.rank)
            return mapping.checkpoint_names[held.start : held.stop]
        return mapping.checkpoint_names

    def is_absent(self, parameter: str) -> bool:
        """Whether only the first rank has the values of a parameter, and this rank has zeros."""
        return self.group.rank.index > 0 and isinstance(cut_of(parameter, self._cuts), FirstRankOnly)

    def part(self, mapping: TensorMapping, stored: Mapping[str, StoredTensor]) -> Part | None:
        """Returns the part of each stored tensor in a mapping that the rank reads; None: all of it."""
        shape = stored[mapping.checkpoint_names[0]].shape
        dims, rows = set(), []
        for i, name in enumerate(mapping.module_names):
            cut = cut_of(name, self._cuts)
            if not isinstance(cut, Cut) or (isinstance(mapping.rule, Stacked) and cut.dim == 0):
                return None
            size = self.parameters[name].shape[cut.dim]
            own = torch.cat([torch.arange(each.start, each.stop) for each in cut.slices(size, self.group.rank)])
            dim, found = mapping.rule.stored_rows(i, cut.dim, own, shape, mapping.layer)
            dims.add(dim)
            rows.append(found)
        (dim,) = dims
        return Part(dim, tuple(_ranges(torch.cat(rows).unique())))


def _ranges(rows: Tensor) -> Iterator[range]:
    """Yields the ranges without gaps in sorted rows."""
    ends = (rows.diff() != 1).nonzero().flatten() + 1
    for run in rows.tensor_split(ends.tolist()):
        yield range(int(run[0]), int(run[-1]) + 1)
