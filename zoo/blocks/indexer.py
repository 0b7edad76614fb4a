"""The lightning indexer of DeepSeek Sparse Attention (DeepSeek-V3.2, section 2.1). It chooses the tokens that a query
attends to.

A few narrow heads score every stored token, which is cheap compared with attention. Attention then runs over the best
k tokens.
Sizes: b sequences, t queries, s stored tokens; h index heads, d their width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.blocks.positions import Position
from zoo.core.forward_context import ForwardContext
from zoo.core.ops.indexing import Index, query_blocks, sees_all
from zoo.core.ops.linear import Linear
from zoo.costs import linear_flops, linear_params
from zoo.facts import Fact
from zoo.registry import Spec

__all__ = ["Indexer"]


@dataclass(frozen=True)
class Indexer(Spec):
    """Chooses the `k` stored tokens s with the highest scores for a token t (DeepSeek-V3.2, equation 1):

        score(t, s) = sum over heads of weight(t, head) * relu(query(t, head) . key(s))

    in float32. All `heads` share one key per token, a projection of x under `norm`, `head_dim` wide. Queries are
    projected from attention's query latent, and weights from x. The first elements of queries and keys carry
    attention's rotary encoding. Released code multiplies scores by (heads * head_dim)^-1/2, which keeps their order.

    No gradient passes through the choice, and the parameters require none: DeepSeek trains the indexer with a separate
    loss.
    """

    heads: int
    head_dim: int
    k: int
    norm: Norm

    role = "indexer"
    # With few heads many scores are zero after the ReLU, and the reference breaks ties differently.
    toy: ClassVar[Mapping[str, Any]] = {"heads": 16, "k": 24}

    def build(self, dim: int, q_rank: int, rope: Position, rope_dim: int) -> "_Indexer":
        """Returns the module for a residual stream of width `dim` and a query latent of `q_rank` elements. `rope`
        encodes the first `rope_dim` elements of each index head."""
        return _Indexer(self, dim, q_rank, rope, rope_dim)

    def params(self, dim: int, q_rank: int) -> int:
        """The number of parameters."""
        projections = ((q_rank, self.heads * self.head_dim), (dim, self.head_dim), (dim, self.heads))
        return sum(linear_params(*widths) for widths in projections) + self.norm.params(self.head_dim)

    def flops(self, dim: int, q_rank: int, past: int, new: int, causal: bool = True) -> int:
        """FLOPs for `new` tokens after `past`. Only keys are computed while at most k tokens are stored."""
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


class _Indexer(nn.Module):
    every = 1  # tokens that a key stands for

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
    def forward(
        self, x: Tensor, q_latent: Tensor, ctx: ForwardContext, keys: Tensor, used: bool = True
    ) -> Index | None:
        """x (b, t, dim), q_latent (b, t, q_rank), stored keys (b, 1, s, d) -> scores for token selection; None
        unless `used`."""
        if not used:
            return None
        q = self.q(q_latent).unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)
        q = self.rope.rotate(q, ctx.tables[self.rope, self.rope_dim]).transpose(1, 2)  # the first elements
        return Index(q, self.head_weights(x), keys, self.spec.k)
