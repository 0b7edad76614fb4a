"""DeepSeek Sparse Attention: latent attention over the tokens that an indexer chooses (DeepSeek-V3.2, section 2.1)."""

from collections.abc import Hashable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.blocks.indexer import Indexer
from zoo.blocks.mla import MLA, MLAModule
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.indexing import choose_keys, chooses_all, sees_all
from zoo.core.ops.latent_attention import sparse_latent_attention
from zoo.costs import Breakdown, CacheSpec, Reach, Window, linear_flops, sum_breakdowns
from zoo.facts import Fact

__all__ = ["SparseMLA"]


@dataclass(frozen=True)
class SparseMLA(MLA):
    """MLA in which a token attends to the `indexer.k` tokens that its indexer chooses, or to all tokens while there are
    at most k.

    The cache keeps the index keys beside the latents. Tokens beyond the first k attend to gathered latents, in the
    absorbed form. The first k tokens attend in MLA's own forms. With gradients, MLA's forms run under a mask of the
    chosen tokens.

    `shares_choice`: the layer reuses the choice of the nearest earlier layer with an indexer of this k. It then has no
    indexer and keeps no index keys (GLM-5.2; "IndexCache", arXiv 2603.12201).
    """

    _: KW_ONLY
    indexer: Indexer
    shares_choice: bool = False

    def check(self) -> None:
        super().check()
        self.require(self.q_rank is not None, "q_rank is None: the indexer projects its queries from that latent")
        wide = f"rope_dim={self.rope_dim} is above the indexer's head_dim={self.indexer.head_dim}"
        self.require(self.rope_dim <= self.indexer.head_dim, wide)

    def resized(self, to: Any) -> dict[str, Any]:
        new = super().resized(to)
        return new | {"indexer": to.indexer(self.indexer, self, new)}

    def build(self, dim: int) -> nn.Module:
        return _SparseMLA(self, dim)

    def param_breakdown(self, dim: int) -> Breakdown:
        assert self.q_rank is not None
        own = {} if self.shares_choice else {"indexer": self.indexer.params(dim, self.q_rank)}
        return {**super().param_breakdown(dim), **own}

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        assert self.q_rank is not None
        first = sees_all(self.indexer.k, past, new)
        choosing = new - first
        over_all = super().flop_breakdown(dim, past, first, causal) if first else {}
        widths = 2 * self.kv_rank + self.rope_dim + (0 if causal else self.rope_dim)  # as in MLA
        folded = linear_flops(choosing, self.kv_rank, self.heads * (self.nope_dim + self.v_dim))
        over_chosen = {
            "projections": sum(linear_flops(choosing, *each) for each in self.projections(dim)) + folded,
            "scores": linear_flops(choosing * self.indexer.k, self.heads, widths),
        }
        if not self.shares_choice:
            over_chosen["indexer"] = self.indexer.flops(dim, self.q_rank, past, new, causal)
        return sum_breakdowns([(1, over_all), (1, over_chosen)])

    def cache_spec(self) -> CacheSpec:
        if self.shares_choice:
            return super().cache_spec()
        return CacheSpec(per_token=(*super().cache_spec().per_token, ("index_keys", (1, self.indexer.head_dim))))

    @property
    def choice(self) -> Hashable:
        """The key under which later layers find the chosen tokens: ids (b, t, k), or None if all tokens are chosen."""
        return "top", self.indexer.k

    def hands_on(self) -> tuple[Hashable, ...]:
        return () if self.shares_choice else (self.choice,)

    def takes(self) -> Mapping[Hashable, str]:
        return {self.choice: f"top {self.indexer.k}"} if self.shares_choice else {}

    def flop_reach(self, part: str) -> Reach:
        return Window(self.indexer.k) if part == "scores" else super().flop_reach(part)

    def flop_start(self, part: str) -> int:
        return self.indexer.k if part == "indexer" else super().flop_start(part)

    def names(self) -> list[str]:
        return [*super().names(), "MLA"]

    def facts(self) -> tuple[Fact, ...]:
        kind, *others = super().facts()
        chosen = Fact("indexer", self.indexer)
        if self.shares_choice:
            chosen = Fact("indexer", self.indexer.k, phrase="the top {} of an earlier layer")
        return kind._replace(phrase="sparse {}"), *others, chosen


class _SparseMLA(MLAModule):
    spec: SparseMLA

    def __init__(self, spec: SparseMLA, dim: int) -> None:
        super().__init__(spec, dim)
        assert spec.q_rank is not None
        own = not spec.shares_choice
        self.indexer = spec.indexer.build(dim, spec.q_rank, spec.rope, spec.rope_dim) if own else None

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        assert isinstance(self.q, nn.Sequential)
        down, norm, up = self.q
        q_latent = norm(down(x))
        q_nope, q_rope = self.split_queries(up(q_latent), ctx)
        chosen: Tensor | None
        if self.indexer is None:
            latent, mask = cache.append(ctx, self.compress(x, ctx))
            chosen = ctx.shared[self.spec.choice]
        else:
            latent, index_keys, mask = cache.append(ctx, self.compress(x, ctx), self.indexer.keys(x, ctx))
            is_all = chooses_all(x.shape[1], latent.shape[2], self.spec.indexer.k, mask)
            index = self.indexer(x, q_latent, ctx, index_keys, used=not is_all)
            past = latent.shape[2] - x.shape[1]
            chosen = None if index is None else choose_keys(index, past, mask=mask)
            ctx.hand_on(self.spec.choice, chosen)
        if chosen is None:
            out = self.attend(q_nope, q_rope, latent, mask)
        else:
            up = self.kv_up.weight.unflatten(0, (self.spec.heads, -1))
            under = partial(self.attend, q_nope, q_rope, latent)
            out = sparse_latent_attention(q_nope, q_rope, latent, up, chosen, mask, self.scale, under)
        return self.o(out.transpose(1, 2).flatten(2))
