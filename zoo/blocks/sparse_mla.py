"""DeepSeek Sparse Attention (DeepSeek-V3.2, section 2.1): latent attention over the tokens that an indexer chooses.

A few narrow index heads score every stored token, which is cheap compared with attention. Attention then runs over the
best k tokens.
Sizes: b sequences, t queries, s stored tokens; h index heads, d their width.
"""

from collections.abc import Hashable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.blocks.mla import MLA, MLAModule
from zoo.blocks.norms import Norm
from zoo.blocks.parts import Parts, PartsModule, matrix, normed
from zoo.blocks.positions import Position
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.indexing import Index, choose_keys, chooses_all, query_blocks, sees_all
from zoo.core.ops.latent_attention import sparse_latent_attention
from zoo.costs import Breakdown, CacheSpec, Window, linear_flops, sum_breakdowns
from zoo.facts import Fact
from zoo.registry import FlopGrowth, Spec

__all__ = ["Indexer", "SparseMLA"]


@dataclass(frozen=True)
class Indexer(Spec):
    """Chooses for each token t the `k` stored tokens s with the highest scores (DeepSeek-V3.2, equation 1):

        score(t, s) = sum over heads of weight(t, head) * relu(query(t, head) . key(s))

    in float32. All `heads` share one key of `head_dim` elements per token, norm(projection of x). Queries are projected
    from attention's query latent, and weights from x. The first elements of queries and keys are rotated like
    attention's. Released code also multiplies scores by (heads * head_dim)^-1/2, which does not change the choice.

    No gradient passes through the choice, and the parameters require none: DeepSeek trains the indexer with a separate
    loss.
    """

    heads: int
    head_dim: int
    k: int
    norm: Norm

    role = "indexer"
    # With few heads, many scores would be zero after the ReLU, and the reference breaks ties differently.
    toy: ClassVar[Mapping[str, Any]] = {"heads": 16, "k": 24}

    def build(self, dim: int, q_rank: int, rope: Position, rope_dim: int) -> "_Indexer":
        """Returns the module for a residual stream of width `dim` and a query latent of `q_rank` elements. `rope`
        encodes the first `rope_dim` elements of each index head."""
        return _Indexer(self, dim, q_rank, rope, rope_dim)

    def parts(self, dim: int, q_rank: int) -> Parts:
        """Returns the table of the indexer's parameters and inner modules."""
        return {
            "q": matrix(q_rank, self.heads * self.head_dim),
            "k": matrix(dim, self.head_dim),
            "k_norm": normed(self.norm, self.head_dim),
            "head_weights": matrix(dim, self.heads),
        }

    def params(self, dim: int, q_rank: int) -> int:
        """The number of parameters."""
        return sum(part.params for part in self.parts(dim, q_rank).values() if part)

    def flops(self, dim: int, q_rank: int, past: int, new: int, causal: bool = True) -> int:
        """Returns the FLOPs for `new` tokens after `past`. Only keys are computed while at most k tokens are stored."""
        keys = linear_flops(new, dim, self.head_dim)
        first = sees_all(self.k, past, new)
        if first == new:
            return keys
        if causal:
            pairs = (new - first) * past + (new * (new + 1) - first * (first + 1)) // 2
        else:
            pairs = sum((end - start) * (past + end) for start, end in query_blocks(first, new))
        queries = linear_flops(new, q_rank, self.heads * self.head_dim) + linear_flops(new, dim, self.heads)
        return keys + queries + linear_flops(pairs, self.heads, self.head_dim + 1)

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("k", (self.k, self.heads, self.head_dim), "keys", "top {} keys of {} index heads of {}"),)


@dataclass(frozen=True)
class SparseMLA(MLA):
    """MLA in which a token attends to k = `indexer.k` tokens that its indexer chooses (all, if there are at most k).

    The cache holds index keys besides the latents. Tokens beyond the first k attend to gathered latents, in the
    absorbed form. The first k tokens attend as in MLA. With gradients, all tokens attend as in MLA, under a mask of the
    chosen tokens.

    `shares_choice`: the layer reuses the choice of the nearest earlier layer that has an indexer with this k. It then
    has no indexer and no index keys of its own (GLM-5.2; "IndexCache", arXiv 2603.12201).
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
        return _SparseMLA(self, self.parts(dim), dim)

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
            "projections": self.projection_flops(dim, choosing) + folded,
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
        """The key under which later layers find the chosen tokens: indices (b, t, k), or None if all are chosen."""
        return "top", self.indexer.k

    def hands_on(self) -> tuple[Hashable, ...]:
        return () if self.shares_choice else (self.choice,)

    def takes(self) -> Mapping[Hashable, str]:
        return {self.choice: f"top {self.indexer.k}"} if self.shares_choice else {}

    def flop_growth(self, part: str) -> FlopGrowth:
        if part == "scores":
            return FlopGrowth(Window(self.indexer.k))
        return super().flop_growth(part)._replace(start=self.indexer.k if part == "indexer" else 0)

    def names(self) -> list[str]:
        return [*super().names(), "MLA"]

    def facts(self) -> tuple[Fact, ...]:
        kind, *others = super().facts()
        chosen = Fact("indexer", self.indexer)
        if self.shares_choice:
            chosen = Fact("indexer", self.indexer.k, phrase="the top {} of an earlier layer")
        return kind._replace(phrase="sparse {}"), *others, chosen


class _Indexer(PartsModule):
    residual_outputs = ()

    def __init__(self, spec: Indexer, dim: int, q_rank: int, rope: Position, rope_dim: int) -> None:
        super().__init__(spec, spec.parts(dim, q_rank))
        self.rope, self.rope_dim = rope, rope_dim
        self.requires_grad_(False)

    @torch.no_grad()
    def keys(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """x (b, t, dim) -> keys to store, (b, 1, t, d)."""
        return self.rope.rotate(self.k_norm(self.k(x)).unsqueeze(1), ctx.tables[self.rope, self.rope_dim])

    @torch.no_grad()
    def forward(self, x: Tensor, q_latent: Tensor, ctx: ForwardContext, keys: Tensor) -> Index:
        """x (b, t, dim), q_latent (b, t, q_rank), stored keys (b, 1, s, d) -> the tensors that select tokens."""
        q = self.q(q_latent).unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)
        q = self.rope.rotate(q, ctx.tables[self.rope, self.rope_dim]).transpose(1, 2)  # the first elements
        return Index(q, self.head_weights(x), keys, self.spec.k)


class _SparseMLA(MLAModule):
    spec: SparseMLA

    def __init__(self, spec: SparseMLA, parts: Parts, dim: int) -> None:
        super().__init__(spec, parts)
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
            chosen = None
            if not chooses_all(x.shape[1], latent.shape[2], self.spec.indexer.k, mask):
                index = self.indexer(x, q_latent, ctx, index_keys)
                chosen = choose_keys(index, latent.shape[2] - x.shape[1], mask=mask)
            ctx.hand_on(self.spec.choice, chosen)
        if chosen is None:
            out = self.attend(q_nope, q_rope, latent, mask)
        else:
            up = self.kv_up.weight.unflatten(0, (self.spec.heads, -1))
            under = partial(self.attend, q_nope, q_rope, latent)
            out = sparse_latent_attention(q_nope, q_rope, latent, up, chosen, mask, self.scale, under)
        return self.o(out.transpose(1, 2).flatten(2))
