"""DeepSeek Sparse Attention: latent attention over the tokens that an indexer chooses (DeepSeek-V3.2, section 2.1)."""

from dataclasses import KW_ONLY, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.library import custom_op

from zoo.blocks.indexer import Indexer
from zoo.blocks.mla import _MLA, MLA, absorbed, absorbing_is_cheaper, expand
from zoo.core.attention import attention
from zoo.core.flash import token_by_token
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.indexing import choose_keys, sees, sees_all
from zoo.core.linear import linear
from zoo.core.sparse_attention import allows_operators, sparse_attention
from zoo.costs import Breakdown, CacheSpec, Reach, Window, linear_flops, sum_breakdowns
from zoo.facts import Fact

__all__ = ["SparseMLA"]


@dataclass(frozen=True)
class SparseMLA(MLA):
    """MLA in which a token attends to the `indexer.k` tokens that its indexer chooses, to all while no more are there.

    The cache keeps the index keys beside the latents. Tokens that choose attend over gathered latents, absorbed; the
    first k tokens attend in MLA's own forms. With gradients, MLA's forms run under the mask of what was chosen.

    `shares_choice`: the tokens are those that the nearest earlier layer with an indexer of this k chose. Then the layer
    has no indexer and keeps no index keys (GLM-5.2; "IndexCache", arXiv 2603.12201).
    """

    _: KW_ONLY
    indexer: Indexer
    shares_choice: bool = False

    def check(self) -> None:
        super().check()
        self.require(self.q_rank is not None, "q_rank is None: the indexer projects its queries from that latent")
        wide = f"rope_dim={self.rope_dim} is above the indexer's head_dim={self.indexer.head_dim}"
        self.require(self.rope_dim <= self.indexer.head_dim, wide)

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
            "projections": sum(linear_flops(choosing, *each) for each in self._projections(dim)) + folded,
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
    def choice(self) -> str:
        """The name under which the chosen tokens are handed on: (b, t, k) as of `top_keys`, None where all are."""
        return f"top {self.indexer.k}"

    def hands_on(self) -> tuple[str, ...]:
        return () if self.shares_choice else (self.choice,)

    def takes(self) -> tuple[str, ...]:
        return (self.choice,) if self.shares_choice else ()

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


class _SparseMLA(_MLA):
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
            is_all = self._attends_to_all(x, latent, mask)
            index = self.indexer(x, q_latent, ctx, index_keys, used=not is_all)
            past = latent.shape[2] - x.shape[1]
            chosen = None if index is None else choose_keys(index, past, mask=mask)
            ctx.hand_on(self.spec.choice, chosen)
        if chosen is None:
            out = self.attend(q_nope, q_rope, latent, mask)
        else:
            out = self.attend_to_chosen(q_nope, q_rope, latent, mask, chosen)
        return self.o(out.transpose(1, 2).flatten(2))

    def _attends_to_all(self, x: Tensor, latent: Tensor, mask: Tensor | None) -> bool:
        """Whether no more tokens are stored than are chosen. False where compiled code does not know: a number of
        tokens is known there with gradients and in a static cache, and is not for all lengths of one graph."""
        is_known = mask is not None if x.shape[1] == 1 else torch.is_grad_enabled()
        return (is_known or not torch.compiler.is_compiling()) and latent.shape[2] <= self.spec.indexer.k

    def attend_to_chosen(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, mask: Tensor | None, chosen: Tensor
    ) -> Tensor:
        up = self.kv_up.weight.unflatten(0, (self.spec.heads, -1))
        given = q_nope, q_rope, latent, up, chosen, mask, self.scale
        if q_nope.shape[2] == 1:
            return _over_chosen(*given)
        if not torch.compiler.is_compiling():
            if not torch.is_grad_enabled():
                return _prefill(*given)
        elif allows_operators(*given[:4]):
            return _prefill_operator(*given)
        return self.attend(q_nope, q_rope, latent, sees(chosen, latent.shape[2]))


def _over_chosen(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, chosen: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """q (b, h, t, d), latent (b, 1, s, r + rope_dim), up (h, nope_dim + v, r), chosen (b, t, k) -> (b, h, t, v)."""
    attend = partial(sparse_attention, latent=latent, chosen=chosen, mask=mask, scale=scale, width=up.shape[2])
    return absorbed(q_nope, q_rope, up, attend)


def _prefill(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, chosen: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """The same for several tokens. The first ones, which see at most k, attend to all in the cheaper form of MLA."""
    new, past = q_nope.shape[2], latent.shape[2] - q_nope.shape[2]
    first = sees_all(chosen.shape[2], past, new)
    out = []
    if first:
        seen, seen_mask = latent[:, :, : past + first], None if mask is None else mask[:first, : past + first]
        out.append(_over_all(q_nope[:, :, :first], q_rope[:, :, :first], seen, up, seen_mask, scale))
    if first < new:
        later = q_nope[:, :, first:], q_rope[:, :, first:], latent, up, chosen[:, first:], mask, scale
        out.append(_over_chosen(*later))
    return torch.cat(out, dim=2)


def _over_all(q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    (heads, new, nope_dim), kv_rank = q_nope.shape[1:], up.shape[2]
    if absorbing_is_cheaper(latent.shape[2] - new, new, kv_rank, up.shape[1]):
        return absorbed(q_nope, q_rope, up, partial(attention, k=latent, v=latent, mask=mask, scale=scale))
    k, v = expand(latent, partial(linear, weight=up.flatten(0, 1)), heads, kv_rank, nope_dim)
    return attention(torch.cat([q_nope, q_rope], dim=-1), k, v, mask, scale)


@custom_op("zoo::sparse_mla_prefill", mutates_args=())
def _prefill_operator(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, chosen: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    return token_by_token(_prefill(q_nope, q_rope, latent, up, chosen, mask, scale))


@_prefill_operator.register_fake
def _like_prefill(q_nope: Tensor, q_rope: Tensor, latent: Tensor, up: Tensor, *_: object) -> Tensor:
    return token_by_token(q_nope.new_empty(*q_nope.shape[:3], up.shape[1] - q_nope.shape[3]))
