"""Tensor parallelism: several ranks divide a model, and each rank runs its part of every block.

A rank's module is built from its own spec (`Decoder.shard`), and its blocks know nothing of other ranks. This file
connects the ranks: the input and output of each divided block, norms over divided elements, the embedding's rows and
the head's columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.expert_parallel import expert_parallel, has_whole_experts
from zoo.core.collectives import Group, gathered_columns, read_by_all, summed
from zoo.core.devices import allocating
from zoo.errors import UsageError
from zoo.kernel_choice import decide_for
from zoo.model.decoder import Decoder
from zoo.model.initialisation import drawn
from zoo.model.module import Model, fill_buffers
from zoo.registry import Spec
from zoo.sharding import Cuts, Divide, FirstRankOnly, cut_of


@dataclass(frozen=True)
class Ranks:
    """The processes that divide a model: a `group`, or None for a single process. Each rank holds a part of the width
    of every expert or, with `whole_experts`, all of some experts."""

    group: Group | None = None
    whole_experts: bool = False

    @property
    def count(self) -> int:
        """The number of ranks."""
        return 1 if self.group is None else self.group.rank.ranks

    def divided(self, spec: Decoder) -> Decoder:
        """Returns the whole model's spec before sharding: with `whole_experts`, mixtures become expert-parallel."""
        return expert_parallel(spec) if self.whole_experts else spec

    def own(self, spec: Decoder) -> Decoder:
        """Returns the spec of this process's part."""
        return spec if self.group is None else self.divided(spec).shard(self.group.rank)


class ParallelModel(Model):
    """One rank's part of a model: `spec` is the spec of this part, `whole` the spec of the whole model.

    All ranks run at the same time on the same tokens, and each gets all logits. If a parameter of a divided block is
    whole in every rank, each rank has only a partial sum of the parameter's gradient.
    """

    def __init__(self, whole: Decoder, group: Group) -> None:
        super().__init__(whole.shard(group.rank))
        self.whole, self.group, self.vocab = whole, group, whole.vocab
        held = [rank.held(whole.vocab, Divide.ANY, "vocab") for rank in group.rank.all()]
        self._columns, first = list(map(len, held)), held[group.rank.index].start
        connected(self.embed, _PartOfEmbedding, group, first=first)
        if self.per_layer is not None:
            connected(self.per_layer.get_submodule("embed"), _PartOfEmbedding, group, first=first)
        for spec, layer in zip(whole.layers, self.layers, strict=True):
            connect(layer, spec, group)

    def twin(self) -> Model:
        return allocate_part(self.whole, self.group)

    def reference(self) -> Model:
        return ParallelModel(replace(self.whole, layers=tuple(dict.fromkeys(self.whole.layers))), self.group)

    def compile(self, **options: Any) -> None:
        if has_whole_experts(self.spec):
            raise UsageError("a model whose ranks hold whole experts is not compiled: how many tokens each gets varies")
        super().compile(**options)

    def scores(self, x: Tensor) -> Tensor:
        return gathered_columns(super().scores(read_by_all(x, self.group)), self.group, self._columns)


def connect(module: nn.Module, whole: Spec, group: Group) -> None:
    """Connects a rank's module, built from its part of the `whole` spec, to the other ranks: outputs are summed."""
    for path in summing(whole):
        block: Any = module.get_submodule(path)
        spec: Spec = attrgetter(path)(whole)
        if hasattr(block, "over_ranks"):
            block.over_ranks(spec, group)
        kind: Any = type(block)
        connected(block, _summing_class(kind), group)


def connected(module: nn.Module, kind: type[nn.Module], group: Group, **attributes: Any) -> None:
    """Changes the class of a module to `kind`, a subclass that works with other ranks, and sets `attributes`."""
    module.__class__ = kind
    for name, value in {"group": group, **attributes}.items():
        setattr(module, name, value)


def summing(spec: Spec, path: str = "") -> Iterator[str]:
    """Yields the module names of the outermost blocks whose outputs are summed over ranks."""
    for name, child in spec.children():
        inside = f"{path}.{name}" if path else name
        if child.sums_over_ranks:
            yield inside
        else:
            yield from summing(child, inside)


@cache
def _summing_class(kind: Any) -> Any:
    """Returns a subclass of a block's class that sums the block's output over ranks."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        group = self.group
        args = tuple(read_by_all(each, group) if isinstance(each, Tensor) else each for each in args)
        kwargs = {name: read_by_all(each, group) if isinstance(each, Tensor) else each for name, each in kwargs.items()}
        return summed(kind.forward(self, *args, **kwargs), group)

    return type(f"Parallel{kind.__name__}", (kind,), {"forward": forward})


class _PartOfEmbedding(nn.Embedding):
    """One rank's rows of an embedding, from row `first` on. The lookup is summed over ranks."""

    first: int
    group: Group

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (b, t) -> (b, t, dim)"""
        rows = tokens - self.first
        inside = (rows >= 0) & (rows < self.weight.shape[0])
        x = F.embedding(rows.clamp(0, self.weight.shape[0] - 1), self.weight)
        return summed(torch.where(inside.unsqueeze(-1), x, 0), self.group)


def part_of(name: str, value: Tensor, cuts: Cuts, group: Group) -> Tensor:
    """Returns a rank's part of a parameter of the whole model. It is a copy unless the part is the whole parameter."""
    cut = cut_of(name, cuts)
    if isinstance(cut, FirstRankOnly):
        return value if group.rank.index == 0 else torch.zeros_like(value)
    if cut is None:
        return value
    parts = [value.narrow(cut.dim, part.start, len(part)) for part in cut.slices(value.shape[cut.dim], group.rank)]
    return torch.cat(parts, dim=cut.dim)


def allocate_part(
    whole: Decoder, group: Group, dtype: torch.dtype = torch.float32, device: str | torch.device = "meta"
) -> ParallelModel:
    """Returns a rank's part of a model with uninitialised weights, in eval mode."""
    with allocating(device, dtype):
        return ParallelModel(whole, group).eval()


@torch.no_grad()
def divide(model: Model, group: Group, whole_experts: bool = False) -> ParallelModel:
    """Returns a rank's part of a model that is present in every rank. Ranks divide the width of each expert or, with
    `whole_experts`, the list of experts."""
    spec = expert_parallel(model.spec) if whole_experts else model.spec
    part = allocate_part(spec, group, model.embed.weight.dtype)
    cuts = spec.cuts()
    parameters = {name: part_of(name, value, cuts, group) for name, value in model.state_dict().items()}
    part.load_state_dict(parameters, assign=True)
    fill_buffers(part, model.embed.weight.device)
    return part.train(model.training)


@torch.no_grad()
def build_part(
    spec: Decoder, ranks: Ranks, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> ParallelModel:
    """Returns a rank's part of the model that `zoo.build` draws from `seed` on the CPU. Only one whole parameter is in
    memory at a time."""
    assert ranks.group is not None
    spec = ranks.divided(spec)
    part, cuts = allocate_part(spec, ranks.group, dtype, device), spec.cuts()
    own = dict(part.named_parameters())
    with allocating("meta", dtype):
        whole = Model(spec)
    for name, value in drawn(whole, seed):
        own[name].copy_(part_of(name, value, cuts, ranks.group))
    decide_for(part, ranks.group)
    return part
