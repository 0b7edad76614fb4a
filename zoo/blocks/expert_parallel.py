"""Expert parallel: ranks hold whole experts, and tokens travel to them (GShard, Lepikhin et al. 2020, section 3.2).

Each rank sends its share of the tokens to the ranks that hold their experts (all-to-all). These ranks compute the
expert outputs and send them back. Each rank then sums the weighted outputs for its own tokens, which is its part of the
block's output. Every rank routes all tokens: the router is small beside the experts, and its choices can be recorded.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.feed_forward import LinearFeedForward
from zoo.blocks.moe import MoE, MoEModule, StackedExperts
from zoo.core.collectives import Group, exchanged_counts, exchanged_rows
from zoo.core.forward_context import ForwardContext
from zoo.costs import Breakdown
from zoo.registry import S, Spec, swap
from zoo.sharding import Cut, Cuts, Divide, Exchange, Rank, prefixed

__all__: list[str] = []


def expert_parallel(spec: S) -> S:
    """Returns the spec with mixtures that ranks divide by whole experts, instead of by the width of each expert."""
    if not any(isinstance(part, MoE) for part in spec.walk()):
        return spec
    return swap(spec, MoE, _ExpertParallelMoE.of)


def has_whole_experts(spec: Spec) -> bool:
    """Whether the spec is a result of `expert_parallel`, or one rank's part of such a spec."""
    return any(isinstance(part, _ExpertParallelMoE) for part in spec.walk())


@dataclass(frozen=True)
class _ExpertParallelMoE(MoE):
    """One rank's part of a mixture: `experts` of the `routed` experts. The shared expert is divided by its width."""

    routed: int = 1

    divides: ClassVar = {"experts": Divide.EVENLY}
    sums_over_ranks = True

    @classmethod
    def of(cls, moe: MoE) -> Self:
        return cls(**{field.name: getattr(moe, field.name) for field in fields(MoE)}, routed=moe.experts)

    def check(self) -> None:
        super().check()
        self.require(isinstance(self.expert, LinearFeedForward), "ranks divide experts that are stacked linear maps")
        self.require(self.shared is None or bool(self.shared.cuts()), "ranks cannot divide its shared expert")

    def shard(self, rank: Rank) -> Self:
        shared = self.shared and self.shared.shard(rank)
        return replace(self, experts=len(rank.held(self.experts, what="experts")), shared=shared)

    def cuts(self) -> Cuts:
        assert isinstance(self.expert, LinearFeedForward)
        names = (each for name, *_ in self.expert.linears(1) for each in (name, f"{name}_bias"))
        own: dict[str, Cut] = dict.fromkeys(names, self.cut("experts"))
        return prefixed("experts", own) | (prefixed("shared", self.shared.cuts()) if self.shared else {})

    def exchanges(self, dim: int, ranks: int) -> tuple[Exchange, ...]:
        """Returns the exchanges of a pass. Each token of a rank's share goes to k experts and comes back."""
        rows = Exchange("all-to-all", self.router.k * (self.latent or dim), shared=True)
        counts = Exchange("all-to-all", 2 * ranks**2, in_float32=True, shared=True, for_each="pass")  # eight bytes each
        ids = Exchange("all-to-all", self.router.k, in_float32=True, shared=True)
        return counts, ids, rows, rows, Exchange("all-reduce", dim)

    def build(self, dim: int) -> nn.Module:
        return _ExpertParallel(self, dim)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns the FLOPs of one rank by part. Tokens are spread evenly over ranks and experts."""
        whole = super().flop_breakdown(dim, past, new, causal)
        return {**whole, "routed": round(whole["routed"] * self.experts / self.routed)}


class _ExpertParallel(MoEModule):
    spec: _ExpertParallelMoE
    experts: StackedExperts
    group: Group

    def __init__(self, spec: _ExpertParallelMoE, dim: int) -> None:
        super().__init__(spec, dim)
        self.spec = spec

    def over_ranks(self, whole: Spec, group: Group) -> None:
        self.group = group

    def forward(self, x: Tensor, ctx: ForwardContext | None = None, routed_by: Tensor | None = None) -> Tensor:
        """(b, t, dim) -> the rank's partial output (b, t, dim): the routed output for its own tokens, plus the output
        of its part of the shared expert."""
        routed = self.router(x if routed_by is None else routed_by, ctx)
        tokens = x[..., 0].numel()
        own = self.group.rank.share(tokens)
        rows, weights, chosen = (each.flatten(0, -2)[own.start : own.stop] for each in (x, *routed))
        out = self._routed(rows if self.latent_in is None else self.latent_in(rows), weights, chosen)
        if self.latent_out is not None:
            out = self.latent_out(out)
        whole = F.pad(out, (0, 0, own.start, tokens - own.stop)).view_as(x)  # zero for tokens of other ranks
        return whole if self.shared is None else whole + self.shared(x, ctx)

    def _routed(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (n, dim), weights and expert ids (n, k) -> weighted sums of the expert outputs (n, dim)."""
        held, ranks = self.spec.experts, self.group.rank.ranks
        ids = chosen.flatten()
        order = ids.argsort(stable=True)  # by expert, hence by rank
        sending = ids.div(held, rounding_mode="floor").bincount(minlength=ranks)
        sent, received = sending.tolist(), exchanged_counts(sending, self.group).tolist()
        rows = x[order // chosen.shape[1]]
        if self.experts.scales_input:
            rows = rows * weights.flatten()[order, None]
        arrived_ids = exchanged_rows((ids[order] % held).int(), self.group, sent, received).long()
        arrived = exchanged_rows(rows, self.group, sent, received)
        if len(arrived):
            arrived = self.experts.outputs(arrived.unsqueeze(0), arrived_ids[None, :, None])[0, :, 0]
        back = exchanged_rows(arrived, self.group, received, sent)
        out = torch.empty_like(back).index_copy(0, order, back).unflatten(0, chosen.shape)
        return (out if self.experts.scales_input else out * weights.unsqueeze(-1)).sum(1)
