"""Attention over a sliding window and compressed keys (DeepSeek-V4, section 2.3): heavily compressed attention (HCA)
and compressed sparse attention (CSA)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.blocks.compressor import Compressor
from zoo.blocks.norms import Norm
from zoo.blocks.parts import Parts, PartsModule, TableMixer, matrix, normed, vector
from zoo.blocks.positions import Position
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.attention import attention
from zoo.core.ops.entry_attention import chooses_all_entries, dense_entry_pairs, entry_attention
from zoo.core.ops.linear import per_head
from zoo.costs import Breakdown, CacheSpec, Full, Window, entry_pairs, linear_flops
from zoo.facts import Fact
from zoo.registry import FlopGrowth, Spec
from zoo.sharding import Divide

__all__ = ["CompressedAttention"]


@dataclass(frozen=True)
class CompressedAttention(TableMixer):
    """Attention in which `heads` query heads share one key of `head_dim` elements, which is also the value. A token
    attends to the last `window` tokens, itself included, and to the entries of a `compressor`, all in one softmax. In
    HCA an entry stands for many tokens, and a token sees all entries. In CSA an entry stands for few tokens, and a
    token sees the entries that an indexer chooses.

    Queries are projected through a latent of `q_rank` elements. `norm` normalises this latent and the keys, and
    `q_norm` each query head. The last `rope_dim` elements of queries and keys are rotated. Since keys are also the
    values, the output is rotated back by its own position: a token's contribution then depends on its distance.
    Each head has a sink. The output of each of `groups` groups of heads is projected to `o_rank` elements, and all
    groups together to the model's width.
    """

    heads: int
    head_dim: int
    rope_dim: int
    q_rank: int
    groups: int
    o_rank: int
    window: int
    norm: Norm
    q_norm: Norm
    rope: Position
    compressor: Compressor | None = None

    cache_width: ClassVar = "head_dim"
    divides: ClassVar = {"heads": Divide.EVENLY, "groups": Divide.EVENLY}

    def check(self) -> None:
        self.require(self.heads % self.groups == 0, f"groups={self.groups} must divide heads={self.heads}")
        self.require(self.rope_dim % 2 == 0, f"rope_dim={self.rope_dim} must be even: rotation pairs its halves")
        widths = {"head_dim": self.head_dim}
        if self.compressor and self.compressor.indexer:
            widths["the indexer's head_dim"] = self.compressor.indexer.head_dim
        for name, width in widths.items():
            self.require(self.rope_dim <= width, f"rope_dim={self.rope_dim} is above {name}={width}")

    def resized(self, to: Any) -> dict[str, Any]:
        new = to.heads_of_one_key(self) | {"window": to.window(self.window)}
        return new | {"compressor": self.compressor and to.compressor(self.compressor, self, new)}

    def build(self, dim: int) -> nn.Module:
        return _CompressedAttention(self, self.parts(dim), dim)

    @property
    def nope_dim(self) -> int:
        """The number of elements of a head that are not rotated."""
        return self.head_dim - self.rope_dim

    @property
    def index_nope_dim(self) -> int:
        """The number of elements of an index head that are not rotated."""
        assert self.compressor is not None
        assert self.compressor.indexer is not None
        return self.compressor.indexer.head_dim - self.rope_dim

    @property
    def group_dim(self) -> int:
        """The number of elements of all heads of a group together."""
        return self.heads * self.head_dim // self.groups

    @property
    def chosen(self) -> int | None:
        """The number of entries that the indexer chooses; None if there is no indexer."""
        return self.compressor.indexer.k if self.compressor and self.compressor.indexer else None

    def parts(self, dim: int) -> Parts:
        """Returns the table of parts, without the compressor and the indexer, which are whole in every rank."""
        grouped = matrix(self.group_dim, self.groups * self.o_rank, rows="groups")  # each group has its own inputs
        build = partial(_GroupedLinear, self.groups, self.group_dim, self.o_rank)
        return {
            "q.down": matrix(dim, self.q_rank),
            "q.norm": normed(self.norm, self.q_rank),
            "q.up": matrix(self.q_rank, self.heads * self.head_dim, rows="heads"),
            "q_norm": normed(self.q_norm, self.head_dim),
            "kv": matrix(dim, self.head_dim),
            "kv_norm": normed(self.norm, self.head_dim),
            "sinks": vector(self.heads, rows="heads"),
            "o_groups": grouped._replace(build=build),
            "o": matrix(self.groups * self.o_rank, dim, columns="groups"),
        }

    def param_breakdown(self, dim: int) -> Breakdown:
        parts = dict(super().param_breakdown(dim))
        if self.compressor:
            parts["attn"] += self.compressor.pooling_params(dim, self.head_dim)
            parts["norm"] += self.norm.params(self.head_dim)
            parts["indexer"] = self.compressor.indexer_params(dim, self.q_rank, self.norm)
        return parts

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        projections = self.projection_flops(dim, new)
        window, pair = Window(self.window), linear_flops(1, self.heads, 2 * self.head_dim)
        if self.compressor is None:
            pairs = (window.pairs if causal else window.dense_pairs)(past, new)
            return {"projections": projections, "scores": pair * pairs}
        projections += self.compressor.pooling_flops(dim, self.head_dim, new)
        every = self.compressor.every
        entries = entry_pairs(past, new, every, self.chosen)
        if not causal:
            entries = dense_entry_pairs(past, new, every, self.window, self.chosen) - window.pairs(past, new)
        parts = {"projections": projections, "scores": pair * window.pairs(past, new), "entries": pair * entries}
        return {**parts, **self.compressor.indexer_flops(dim, self.q_rank, past, new, causal)}

    def cache_spec(self) -> CacheSpec:
        kept = list(self.compressor.kept(self.head_dim)) if self.compressor else []
        return CacheSpec(
            per_token=(("kv", (1, self.head_dim)),),
            reach=Window(self.window),
            state=tuple(state for _, state in kept),
            entries=tuple(entries for entries, _ in kept),
        )

    def flop_growth(self, part: str) -> FlopGrowth:
        if self.compressor is None or part not in ("entries", "indexer"):
            return super().flop_growth(part)
        every, chosen = self.compressor.every, self.chosen
        if part == "indexer":
            return FlopGrowth(Full(), (chosen + 1) * every - 1 if chosen else 0, every)
        return FlopGrowth(Window(chosen * every) if chosen else Full(), every=every)

    def tables(self) -> tuple[tuple[Spec, int], ...]:
        starts = [self.compressor.table(self.rope)] if self.compressor else []
        return tuple((spec, self.rope_dim) for spec in (self.rope, *starts))

    def names(self) -> list[str]:
        kind = [] if self.compressor is None else ["CSA" if self.compressor.indexer else "HCA"]
        return [*kind, "SWA", *super().names()]

    def facts(self) -> tuple[Fact, ...]:
        return (
            Fact("kind", self.names()[0] if self.compressor else "MQA"),
            Fact("heads", (self.heads, self.head_dim), "heads", "{} heads of {}"),
            Fact("keys_as_values", phrase="keys are values", noun="keys reused as values"),
            Fact("q_rank", self.q_rank, phrase="query rank {}"),
            Fact("rope", (self.rope, self.rope_dim), phrase="{} on the last {}"),
            Fact("window", self.window, phrase="window {}"),
            Fact("compressor", self.compressor or ""),
            Fact("sinks", phrase="sinks"),
            Fact("groups", (self.groups, self.o_rank), phrase="output in {} groups of rank {}"),
        )


class _CompressedAttention(PartsModule):
    def __init__(self, spec: CompressedAttention, parts: Parts, dim: int) -> None:
        super().__init__(spec, parts)
        self.compressor = self.indexer = None
        if spec.compressor is not None:
            shared = spec.norm, spec.rope, spec.rope_dim
            self.compressor = spec.compressor.build(dim, spec.head_dim, *shared, "entries")
            self.indexer = spec.compressor.build_indexer(dim, spec.q_rank, *shared)

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        spec, table = self.spec, ctx.tables[self.spec.rope, self.spec.rope_dim]
        down, norm, up = self.q
        q_latent = norm(down(x))
        q = self.q_norm(up(q_latent).unflatten(-1, (spec.heads, -1)).transpose(1, 2))
        q = spec.rope.rotate_last(q, table, spec.rope_dim)
        new = spec.rope.rotate_last(self.kv_norm(self.kv(x)).unsqueeze(1), table, spec.rope_dim)
        keys, mask = cache.append(ctx, new)
        if self.compressor is None:
            out = attention(q, keys, keys, mask, spec.head_dim**-0.5, self.sinks)
        else:
            out = self._over_entries(x, q, q_latent, keys, mask, ctx, cache)
        out = spec.rope.rotate_last(out, spec.rope.inverse(table), spec.rope_dim)
        return self.o(self.o_groups(out))

    def _over_entries(
        self,
        x: Tensor,
        q: Tensor,
        q_latent: Tensor,
        keys: Tensor,
        mask: Tensor | None,
        ctx: ForwardContext,
        cache: LayerCache,
    ) -> Tensor:
        assert self.compressor is not None
        every, so_far = self.compressor.spec.every, ctx.views[cache.geometry].so_far
        entries, index = self.compressor(x, ctx, cache), None
        if self.indexer is not None:
            is_all = chooses_all_entries(so_far, every, self.indexer.spec.k)
            index = self.indexer(x, q_latent, ctx, cache, used=not is_all)
        scale = self.spec.head_dim**-0.5
        return entry_attention(q, keys, entries, mask, ctx.positions, so_far, every, scale, self.sinks, index)


class _GroupedLinear(nn.Module):
    """A separate linear map for each group of heads, with concatenated outputs."""

    def __init__(self, groups: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups * fan_out, fan_in))

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, t, d) -> (b, t, groups * fan_out)"""
        grouped = x.transpose(1, 2).flatten(2).unflatten(2, (self.groups, -1)).transpose(1, 2)
        return per_head(grouped, self.weight.unflatten(0, (self.groups, -1))).transpose(1, 2).flatten(2)
