"""Compressed keys: one entry for several tokens (DeepSeek-V4, section 2.3), and an indexer that chooses entries."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.blocks.positions import Position, Table
from zoo.core.float32 import upcast_dtype
from zoo.core.forward_context import ForwardContext, LayerCache, blocks_of
from zoo.core.ops.block_pooling import Pooled, pooled
from zoo.core.ops.entry_attention import dense_index_pairs
from zoo.core.ops.indexing import Index, sees_all
from zoo.core.ops.linear import Linear
from zoo.costs import Breakdown, Entries, State, entry_pairs, linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Spec

__all__ = ["Compressor", "EntryIndexer"]


@dataclass(frozen=True)
class _BlockStarts(Spec):
    """The rotations for entries: the table of `rope` at the first position of each block of `every` tokens."""

    rope: Position
    every: int

    def table(self, positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Table | None:
        """Consecutive positions (t,) -> the table of `rope` at the start of each block that contains any."""
        return self.rope.table(blocks_of(positions, self.every) * self.every, width, dtype)

    def check_width(self, width: int) -> None:
        self.rope.check_width(width)

    def describe(self) -> str:
        return f"{self.rope.describe()} at every {self.every}th position"


@dataclass(frozen=True)
class EntryIndexer(Spec):
    """Chooses for each token the `k` entries with the highest scores, as DeepSeek-V3.2's Indexer chooses tokens:

        score(t, e) = sum over heads of weight(t, head) * relu(query(t, head) . key(e))

    in float32. All `heads` share one key per entry, `head_dim` wide, from the indexer's own compressor. Queries are
    projected from attention's query latent, and weights from x. The last elements carry attention's rotary encoding.
    No gradient passes through the choice, and the parameters require none.
    """

    heads: int
    head_dim: int
    k: int

    role = "indexer"
    toy: ClassVar = {"heads": 16, "k": 6}  # for the reason given at Indexer.toy

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("k", (self.k, self.heads, self.head_dim), "entries", "top {} of {} index heads of {}"),)


@dataclass(frozen=True)
class Compressor(Spec):
    """Makes one entry for each block of `every` tokens: the weighted average of their values, channel by channel. The
    weights are a softmax over the block's scores. A learned bias for each place in the block is added to the scores.
    Values and scores are projections of x. The entry is normalised, and rotated by the block's first position.

    With `overlap`, an entry averages the previous block too, with separate values and scores (equation 11). A token
    sees the entries of the blocks that are complete with it. With an `indexer`, it sees only the chosen entries.
    """

    every: int
    overlap: bool = False
    indexer: EntryIndexer | None = None

    role = "compressor"
    toy: ClassVar = {"every": 8}

    def check(self) -> None:
        self.require(self.every > 1, f"every={self.every} must be at least 2 tokens")

    def build(self, dim: int, width: int, norm: Norm, rope: Position, rope_dim: int, name: str) -> "_Compressor":
        """Returns the module that makes entries of `width` elements, the last `rope_dim` of them rotated."""
        return _Compressor(self, dim, width, norm, rope, rope_dim, name)

    def build_indexer(self, dim: int, q_rank: int, norm: Norm, rope: Position, rope_dim: int) -> "_EntryIndexer | None":
        """Returns the indexer's module, or None. It has its own compressor; its queries have a latent of `q_rank`."""
        return _EntryIndexer(self, self.indexer, dim, q_rank, norm, rope, rope_dim) if self.indexer else None

    def series(self, width: int) -> int:
        """The number of channels of the values, and of the scores."""
        return 2 * width if self.overlap else width

    def pooling_params(self, dim: int, width: int) -> int:
        """The number of parameters that compute entries of `width` elements, without those of the norm."""
        channels = self.series(width)
        return 2 * linear_params(dim, channels) + self.every * channels

    def pooling_flops(self, dim: int, width: int, new: int) -> int:
        """The FLOPs of computing entries of `width` elements from `new` tokens."""
        return 2 * linear_flops(new, dim, self.series(width))

    def indexer_params(self, dim: int, q_rank: int, norm: Norm) -> int:
        """The number of parameters of the indexer and its compressor; 0 without an indexer."""
        if self.indexer is None:
            return 0
        heads, width = self.indexer.heads, self.indexer.head_dim
        projections = linear_params(q_rank, heads * width) + linear_params(dim, heads)
        return projections + self.pooling_params(dim, width) + norm.params(width)

    def indexer_flops(self, dim: int, q_rank: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns the FLOPs of the indexer. While at most k entries are complete, only its compressor runs."""
        if self.indexer is None:
            return {}
        heads, width, k = self.indexer.heads, self.indexer.head_dim, self.indexer.k
        flops = self.pooling_flops(dim, width, new)
        if (past + new) // self.every > k:
            first = sees_all(k, past, new, self.every)
            all_of = entry_pairs(past + first, new - first, self.every)
            pairs = all_of if causal else dense_index_pairs(past, new, self.every, k)
            flops += linear_flops(new, q_rank, heads * width) + linear_flops(new, dim, heads)
            flops += linear_flops(pairs, heads, width + 1)
        return {"indexer": flops}

    def kept(self, width: int) -> Iterator[tuple[Entries, State]]:
        """Yields (entries, state of their incomplete block) for entries of `width` elements, then for the indexer's."""
        widths = {"entries": width} | ({"index entries": self.indexer.head_dim} if self.indexer else {})
        for name, each in widths.items():
            series = (3 if self.overlap else 1) * each  # two for the incomplete block, one for the block before
            yield Entries(name, (1, each), self.every), State(f"pending {name}", (2, series), in_float32=True)

    def table(self, rope: Position) -> Spec:
        """Returns the spec that computes the table of rotations for the entries."""
        return _BlockStarts(rope, self.every)

    def facts(self) -> tuple[Fact, ...]:
        every = Fact("every", self.every, "tokens", "an entry every {}")
        if self.overlap:
            every = Fact("every", (2 * self.every, self.every), "tokens", "an entry of {} tokens every {}")
        return self.in_use(every, Fact("indexer", self.indexer))


class _Compressor(nn.Module):
    def __init__(
        self, spec: Compressor, dim: int, width: int, norm: Norm, rope: Position, rope_dim: int, name: str
    ) -> None:
        super().__init__()
        self.spec, self.width, self.rope, self.rope_dim, self.name = spec, width, rope, rope_dim, name
        self.starts = spec.table(rope)
        self.kv = Linear(dim, spec.series(width), bias=False)
        self.gate = Linear(dim, spec.series(width), bias=False)
        self.position_bias = nn.Parameter(torch.empty(spec.every, spec.series(width)))
        self.norm = norm.build(width)

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> the stream of entries (b, 1, n, width) from `append_entries`."""
        every, width, positions = self.spec.every, self.width, ctx.positions
        exact = upcast_dtype(x.dtype)
        name = f"pending {self.name}"
        state = cache.state(name, x).to(exact)
        held = Pooled(*state.split(1, dim=1))  # (b, 1, series): the incomplete block, then the block before
        values, scores = self.kv(x).to(exact), self.gate(x).to(exact)
        scores = scores + self.position_bias.to(exact)[positions % every]
        pending = Pooled(*(each[..., : values.shape[2]] for each in held))
        blocks = pooled(values, scores, positions, every, pending)
        numbers = blocks_of(positions, every)
        index, entries, kept = numbers - numbers[:1], blocks, list(blocks)
        if self.spec.overlap:
            own, following = (
                Pooled(*(each[..., part] for each in blocks)) for part in (slice(width, None), slice(width))
            )
            is_new = positions[:1] % every == 0  # the block that was incomplete is complete
            before = Pooled(*(torch.where(is_new, each[..., :width], each[..., 2 * width :]) for each in held))
            earlier = following.shifted(before.where(positions[:1] >= every))
            entries = earlier.merged(own)
            kept = [torch.cat(pair, dim=-1) for pair in zip(blocks, earlier, strict=True)]
        cache.set_state(name, torch.cat([each.index_select(1, index[-1:]) for each in kept], dim=1))
        made = self.norm(entries.mean.index_select(1, index).to(x.dtype)).unsqueeze(1)
        made = self.rope.rotate_last(made, ctx.tables[self.starts, self.rope_dim], self.rope_dim)
        return cache.append_entries(ctx, self.name, numbers, made)


class _EntryIndexer(nn.Module):
    def __init__(
        self,
        compressor: Compressor,
        spec: EntryIndexer,
        dim: int,
        q_rank: int,
        norm: Norm,
        rope: Position,
        rope_dim: int,
    ) -> None:
        super().__init__()
        self.spec, self.rope, self.rope_dim = spec, rope, rope_dim
        self.compressor = compressor.build(dim, spec.head_dim, norm, rope, rope_dim, "index entries")
        self.q = Linear(q_rank, spec.heads * spec.head_dim, bias=False)
        self.head_weights = Linear(dim, spec.heads, bias=False)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor, q_latent: Tensor, ctx: ForwardContext, cache: LayerCache, used: bool) -> Index | None:
        """x (b, t, dim), q_latent (b, t, q_rank) -> the tensors that select entries; None unless `used`."""
        keys = self.compressor(x, ctx, cache)
        if not used:
            return None
        q = self.q(q_latent).unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)
        q = self.rope.rotate_last(q, ctx.tables[self.rope, self.rope_dim], self.rope_dim).transpose(1, 2)
        return Index(q, self.head_weights(x), keys, self.spec.k)
