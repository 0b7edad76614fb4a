"""Tensor parallelism, without torch: the part of each parameter that a rank holds.

A block names the fields that are divided among ranks (`divides`), and the parameters that are divided with these fields
(`cuts`). These determine a rank's own spec (`Spec.shard`), the slices of every parameter, and which outputs are summed
over ranks. The scheme follows Megatron-LM (Shoeybi et al. 2019, section 3): the heads of attention and the width of a
feed-forward are divided, and each block ends in one sum over ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, NamedTuple

from zoo.errors import IndivisibleError, UsageError


class Divide(Enum):
    """The rule that divides a number of units among ranks."""

    EVENLY = "evenly"  # the same number of units for each rank
    REPEATED = "repeated"  # like EVENLY; but if there are fewer units than ranks, several ranks hold the same unit
    ANY = "any"  # as even as possible: three ranks hold 4, 3 and 3 of 10


@dataclass(frozen=True)
class Rank:
    """One of the ranks that divide a model; the first has index 0."""

    index: int
    ranks: int

    def all(self) -> "list[Rank]":
        """Returns every rank, in order."""
        return [replace(self, index=index) for index in range(self.ranks)]

    def share(self, count: int) -> range:
        """Returns this rank's share of `count` units, as even as possible. Some shares are empty if count < ranks."""
        each, more = divmod(count, self.ranks)
        first = self.index * each + min(self.index, more)
        return range(first, first + each + (self.index < more))

    def held(self, count: int, how: Divide = Divide.EVENLY, what: str = "count") -> range:
        """Returns which of `count` units this rank holds, as indices. Raises SpecError if ranks cannot divide them."""
        if how is Divide.REPEATED and count < self.ranks and self.ranks % count == 0:
            only = self.index * count // self.ranks
            return range(only, only + 1)
        if count < self.ranks or (how is not Divide.ANY and count % self.ranks):
            raise IndivisibleError(f"{what}={count}", self.ranks)
        return self.share(count)


def require_same_ranks(tp: int, ep: int) -> None:
    """Raises UsageError unless `ep` is 1 or equals `tp`: experts stay whole or are divided among all ranks."""
    if ep not in (1, tp):
        raise UsageError(f"--ep {ep} with --tp {tp}: the same ranks divide attention and experts, so give --ep {tp}")


class Section(NamedTuple):
    """Rows of a parameter that belong to `units` units, such as heads, with equally many rows each. `rows` is the
    number of rows in the section; None means all rows of the parameter. `what` names the units."""

    units: int
    how: Divide
    what: str
    rows: int | None = None


@dataclass(frozen=True)
class Cut:
    """A parameter that is divided along `dim`, section by section."""

    dim: int
    sections: tuple[Section, ...]

    def slices(self, size: int, rank: Rank) -> list[range]:
        """Returns the parts of a dimension of this size that a rank holds, in order."""
        found, start = [], 0
        for section in self.sections:
            rows = size if section.rows is None else section.rows
            unit, held = rows // section.units, rank.held(section.units, section.how, section.what)
            found.append(range(start + held.start * unit, start + held.stop * unit))
            start += rows
        return found


class Exchange(NamedTuple):
    """A collective operation in a forward pass: all-reduce, all-gather or all-to-all.

    `elements` is the number of elements per token or per pass (`for_each`). For "all-gather" it counts the result,
    otherwise the tensor. Elements have the activations' dtype, or four bytes each (`in_float32`). If `shared`, each
    rank has only the elements of its own share of the tokens.
    """

    kind: Literal["all-reduce", "all-gather", "all-to-all"]
    elements: int
    in_float32: bool = False
    shared: bool = False
    for_each: Literal["token", "pass"] = "token"

    def nbytes(self, tokens: int, itemsize: int) -> int:
        """Returns the bytes of the tensor in one rank; if `shared`, in all ranks together."""
        count = tokens if self.for_each == "token" else 1
        return self.elements * count * (4 if self.in_float32 else itemsize)

    def sent(self, tokens: int, itemsize: int, ranks: int) -> float:
        """Returns the bytes that one rank sends.

        The ranks form a ring: each part of the tensor passes through all other ranks twice in an all-reduce and once in
        an all-gather (Patarasuk and Yuan 2009). In an all-to-all, every rank is assumed to get the same number of
        bytes.
        """
        rounds = 2 if self.kind == "all-reduce" else 1
        share = 1 / ranks if self.shared else 1
        return rounds * (ranks - 1) / ranks * share * self.nbytes(tokens, itemsize)


class FirstRankOnly:
    """A parameter, such as a bias, that only the first rank adds to the sum of the ranks' outputs. The other ranks have
    zeros in its place."""


Cuts = Mapping[str, Cut | FirstRankOnly]
"""Maps a module or a parameter to its cut. Parameters that are not named are whole in every rank.

A linear map's name stands for its weight and its bias. If the outputs are divided, the bias is divided with them. If
the inputs are divided, only the first rank adds the bias.
"""


def prefixed(prefix: str, cuts: Cuts) -> dict[str, Cut | FirstRankOnly]:
    """Returns the cuts of an inner module under the names of the outer module."""
    return {f"{prefix}.{name}": cut for name, cut in cuts.items()}


def cut_of(parameter: str, cuts: Cuts) -> Cut | FirstRankOnly | None:
    """Returns the cut of a parameter; None if every rank holds all of it."""
    if parameter in cuts:
        return cuts[parameter]
    name, _, kind = parameter.rpartition(".")
    cut = cuts.get(name) if kind in ("weight", "bias") else None
    return FirstRankOnly() if kind == "bias" and isinstance(cut, Cut) and cut.dim > 0 else cut
