"""Multi-head latent attention (DeepSeek-V2, section 2.1): the cache holds one compressed latent per token."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.blocks.parts import Parts, PartsModule, TableMixer, matrix, normed
from zoo.blocks.positions import Position, Temperature
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.latent_attention import absorbing_is_cheaper, expand, latent_attention
from zoo.costs import Breakdown, CacheSpec, Full, linear_flops
from zoo.facts import Fact
from zoo.registry import Spec
from zoo.sharding import Divide

__all__ = ["MLA"]


@dataclass(frozen=True)
class MLA(TableMixer):
    """Attention whose cache holds a latent (`kv_rank` elements) and a rotary key (`rope_dim`) per token for all heads.

    A head's query and key have `nope_dim` plain and `rope_dim` rotary elements; its value has `v_dim` elements. Queries
    are projected through a latent of `q_rank` elements, or directly from x if `q_rank` is None. `norm` normalises both
    latents. `scale` multiplies the scores; None is (nope_dim + rope_dim)**-0.5. `temperature` multiplies the queries.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    norm: Norm
    rope: Position
    scale: float | None = None
    temperature: Temperature | None = None

    cache_width: ClassVar = "kv_rank"
    divides: ClassVar = {"heads": Divide.EVENLY}

    def check(self) -> None:
        self.require(self.rope_dim % 2 == 0, f"rope_dim={self.rope_dim} must be even: rotation pairs its halves")

    def resized(self, to: Any) -> dict[str, Any]:
        return to.latent_heads(self)

    def build(self, dim: int) -> nn.Module:
        return MLAModule(self, self.parts(dim))

    def parts(self, dim: int) -> Parts:
        up = matrix(self.q_rank or dim, self.heads * (self.nope_dim + self.rope_dim), rows="heads")
        queries: Parts = {"q": up}
        if self.q_rank:
            queries = {"q.down": matrix(dim, self.q_rank), "q.norm": normed(self.norm, self.q_rank), "q.up": up}
        expand = matrix(self.kv_rank, self.heads * (self.nope_dim + self.v_dim), rows="heads")
        return {
            **queries,
            "kv_down": matrix(dim, self.kv_rank + self.rope_dim),
            "kv_norm": normed(self.norm, self.kv_rank),
            "kv_up": expand._replace(flops=0),  # flop_breakdown counts it, for new tokens or for all
            "o": matrix(self.heads * self.v_dim, dim, columns="heads"),
        }

    def absorbs(self, past: int, new: int) -> bool:
        """Whether attention runs over the latents, with the up-projections folded into query and output, instead of
        over expanded keys and values. Decode always runs over the latents, and longer passes if that takes fewer FLOPs.
        It is then faster with gradients, too: 0.7 of the time if a latent is half as wide as a key and a value."""
        return absorbing_is_cheaper(past, new, self.kv_rank, self.nope_dim + self.v_dim)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        absorbed = self.absorbs(past, new)
        up = linear_flops(new if absorbed else past + new, self.kv_rank, self.heads * (self.nope_dim + self.v_dim))
        widths = 2 * self.kv_rank if absorbed else self.nope_dim + self.v_dim
        widths += self.rope_dim if absorbed and not causal else 0  # the kernel treats the rotary elements as values too
        pairs = (Full().pairs if causal else Full().dense_pairs)(past, new)
        scores = linear_flops(pairs, 1, self.heads * (widths + self.rope_dim))
        return {"projections": self.projection_flops(dim, new) + up, "scores": scores}

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(per_token=(("latent", (1, self.kv_rank + self.rope_dim)),))

    def tables(self) -> tuple[tuple[Spec, int], ...]:
        return ((self.rope, self.rope_dim), *(((self.temperature, 1),) if self.temperature else ()))

    def facts(self) -> tuple[Fact, ...]:
        rank = self.q_rank
        return self.in_use(
            Fact("kind", "MLA"),
            Fact("heads", (self.heads, self.nope_dim, self.rope_dim), "heads", "{} heads of {} + {} rotary"),
            Fact("v_dim", self.v_dim, phrase="values of {}"),
            Fact("kv_rank", self.kv_rank, phrase="KV rank {}"),
            Fact("q_rank", rank, phrase="query rank {}") if rank else Fact("q_rank", phrase="full-rank queries"),
            Fact("rope", self.rope),
            Fact("scale", (self.scale or 1) ** -2, phrase="scale {:.4g}^-1/2", noun="attention scale"),
            Fact("temperature", self.temperature, noun="temperature by position"),
        )


class MLAModule(PartsModule):
    """Multi-head latent attention."""

    def __init__(self, spec: MLA, parts: Parts) -> None:
        super().__init__(spec, parts)
        self.scale = (spec.nope_dim + spec.rope_dim) ** -0.5 if spec.scale is None else spec.scale

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        q_nope, q_rope, new = self.project(x, ctx)
        latent, mask = cache.append(ctx, new)
        return self.o(self.attend(q_nope, q_rope, latent, mask).transpose(1, 2).flatten(2))

    def project(self, x: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """(b, t, dim) -> plain and rotary queries, each (b, h, t, d), and latents (b, 1, t, r + rope_dim)."""
        return *self.split_queries(self.q(x), ctx), self.compress(x, ctx)

    def split_queries(self, q: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor]:
        """(b, t, h * (nope_dim + rope_dim)) -> plain and rotary queries, each (b, h, t, d)."""
        spec = self.spec
        q = q.unflatten(-1, (spec.heads, -1)).transpose(1, 2)
        if spec.temperature is not None:  # scales plain and rotary elements alike, so it can come before the rotation
            q = (q * ctx.tables[spec.temperature, 1]).to(q.dtype)
        q_nope, q_rope = q.split([spec.nope_dim, spec.rope_dim], dim=-1)
        return q_nope, spec.rope.rotate(q_rope, ctx.tables[spec.rope, spec.rope_dim])

    def compress(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """(b, t, dim) -> latents (b, 1, t, r + rope_dim)."""
        spec = self.spec
        compressed, k_rope = self.kv_down(x).unsqueeze(1).split([spec.kv_rank, spec.rope_dim], dim=-1)
        k_rope = spec.rope.rotate(k_rope, ctx.tables[spec.rope, spec.rope_dim])
        return torch.cat([self.kv_norm(compressed), k_rope], dim=-1)

    def attend(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, mask: Tensor | None) -> Tensor:
        """q (b, h, t, d), latent (b, 1, s, r + rope_dim) -> (b, h, t, v)."""
        up, new = self.kv_up.weight.unflatten(0, (self.spec.heads, -1)), q_nope.shape[2]
        absorb = self.spec.absorbs(latent.shape[2] - new, new)
        return latent_attention(q_nope, q_rope, latent, up, mask, self.scale, self.kv_up, absorb)

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 1, s, r + rope_dim) -> keys and values of all heads, (b, h, s, nope_dim + rope_dim) and (b, h, s, v)."""
        return expand(latent, self.kv_up, self.spec.heads, self.spec.kv_rank, self.spec.nope_dim)
