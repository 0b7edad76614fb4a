"""The lightning indexer of DeepSeek Sparse Attention (DeepSeek-V3.2, section 2.1): which tokens a query attends to.

A few narrow heads score every stored token, which is cheap beside attention; attention then runs over the k best.
Sizes: b sequences, t queries, s stored tokens; h index heads, d their width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.library import custom_op

from zoo.blocks.norms import Norm
from zoo.blocks.positions import Position
from zoo.core.forward_context import ForwardContext, causal
from zoo.core.linear import Linear
from zoo.core.sparse_attention import NOT_CHOSEN, index_scores, sees_all, top_keys
from zoo.costs import linear_flops, linear_params
from zoo.registry import Spec

__all__ = ["Indexer"]

QUERY_BLOCK = 64  # queries that are scored together, over the keys up to the last of them


@dataclass(frozen=True)
class Indexer(Spec):
    """Chooses the `k` stored tokens s that score highest for a token t (DeepSeek-V3.2, equation 1):

        score(t, s) = sum over heads of weight(t, head) * relu(query(t, head) . key(s))

    in float32. All `heads` share one key per token, a projection of x under `norm`, `head_dim` wide. Queries are
    projected from attention's latent of queries, weights from x. The first elements of queries and keys carry
    attention's own rotary encoding. Released code multiplies scores by (heads * head_dim)^-1/2, which changes no order.

    The choice passes no gradient on, and the parameters ask for none: DeepSeek trains the indexer with a loss of its
    own.
    """

    heads: int
    head_dim: int
    k: int
    norm: Norm

    role = "indexer"
    toy: ClassVar[Mapping[str, Any]] = {"heads": 16, "k": 24}  # with few heads, many scores are relu's zero: ties

    def build(self, dim: int, q_rank: int, rope: Position, rope_dim: int) -> "_Indexer":
        """The module for a residual stream of `dim`, a latent of queries of `q_rank`, and the rotary encoding of the
        first `rope_dim` elements."""
        return _Indexer(self, dim, q_rank, rope, rope_dim)

    def params(self, dim: int, q_rank: int) -> int:
        """Parameters."""
        projections = ((q_rank, self.heads * self.head_dim), (dim, self.head_dim), (dim, self.heads))
        return sum(linear_params(*widths) for widths in projections) + self.norm.params(self.head_dim)

    def flops(self, dim: int, q_rank: int, past: int, new: int, causal: bool = True) -> int:
        """FLOPs for `new` tokens after `past`. While at most k tokens are stored, keys alone are computed."""
        keys = linear_flops(new, dim, self.head_dim)
        first = sees_all(self.k, past, new)
        if first == new:
            return keys
        if causal:
            pairs = (new - first) * past + (new * (new + 1) - first * (first + 1)) // 2
        else:
            pairs = sum((end - start) * (past + end) for start, end in _blocks(first, new))
        queries = linear_flops(new, q_rank, self.heads * self.head_dim) + linear_flops(new, dim, self.heads)
        return keys + queries + linear_flops(pairs, self.heads, self.head_dim + 1)

    def describe(self) -> str:
        return f"top {self.k} keys of {self.heads} index heads of {self.head_dim}"


class _Indexer(nn.Module):
    def __init__(self, spec: Indexer, dim: int, q_rank: int, rope: Position, rope_dim: int) -> None:
        super().__init__()
        self.spec, self.rope, self.rope_dim = spec, rope, rope_dim
        self.q = Linear(q_rank, spec.heads * spec.head_dim, bias=False)
        self.k = Linear(dim, spec.head_dim, bias=False)
        self.k_norm = spec.norm.build(spec.head_dim)
        self.head_weights = Linear(dim, spec.heads, bias=False)
        self.requires_grad_(False)

    @torch.no_grad()
    def keys(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """x (b, t, dim) -> keys to store, (b, 1, t, d)."""
        return self.rope.rotate(self.k_norm(self.k(x)).unsqueeze(1), ctx.tables[self.rope, self.rope_dim])

    @torch.no_grad()
    def queries(self, q_latent: Tensor, ctx: ForwardContext) -> Tensor:
        """q_latent (b, t, q_rank) -> queries (b, t, h, d)."""
        q = self.q(q_latent).unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)
        return self.rope.rotate(q, ctx.tables[self.rope, self.rope_dim]).transpose(1, 2)  # the first elements

    @torch.no_grad()
    def forward(self, x: Tensor, q_latent: Tensor, keys: Tensor, mask: Tensor | None, ctx: ForwardContext) -> Tensor:
        """x (b, t, dim), q_latent (b, t, q_rank), stored keys (b, 1, s, d) and attention's mask -> `choose_keys`."""
        return choose_keys(self.queries(q_latent, ctx), self.head_weights(x), keys[:, 0], mask, self.spec.k)


def choose_keys(q: Tensor, weights: Tensor, keys: Tensor, mask: Tensor | None, k: int) -> Tensor:
    """q (b, t, h, d), weights (b, t, h), keys (b, s, d) -> the chosen tokens (b, t, k), as of `top_keys`.

    `mask` (t, s) is what `attention` takes; the queries are the last t of the s tokens, but for a single one. Compiled,
    this is one operator for all lengths.
    """
    if torch.compiler.is_exporting():  # no loop over an unknown number of queries
        visible = causal(q.shape[1], keys.shape[1], q.device) if mask is None else mask
        return top_keys(index_scores(q, weights, keys), k, visible)
    return (_operator if torch.compiler.is_compiling() else _choose_keys)(q, weights, keys, mask, k)


def _choose_keys(q: Tensor, weights: Tensor, keys: Tensor, mask: Tensor | None, k: int) -> Tensor:
    new, past = q.shape[1], keys.shape[1] - q.shape[1]
    is_static = new == 1 and mask is not None  # the token is not the last of the places that are read
    first = 0 if is_static else sees_all(k, past, new)
    places = torch.arange(k, dtype=torch.int32, device=q.device)
    positions = torch.arange(past, past + first, device=q.device)
    all_seen = places.where(places <= positions[:, None], NOT_CHOSEN)
    chosen = [all_seen.expand(len(q), -1, -1)]
    for start, end in _blocks(first, new):
        visible = causal(end - start, past + end, q.device) if mask is None else mask[start:end, : past + end]
        scores = index_scores(q[:, start:end], weights[:, start:end], keys[:, : past + end])
        chosen.append(top_keys(scores, k, visible))
    return torch.cat(chosen, dim=1)


_operator = custom_op("zoo::choose_keys", _choose_keys, mutates_args=())
_operator.register_fake(lambda q, weights, keys, mask, k: q.new_empty(*q.shape[:2], k, dtype=torch.int32))


def _blocks(first: int, new: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each block of the queries from `first` on."""
    for start in range(first, new, QUERY_BLOCK):
        yield start, min(start + QUERY_BLOCK, new)
