"""Grouped-query attention (Ainslie et al. 2023) and its special cases: multi-head, multi-query, sliding-window."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.blocks.norms import RMSNorm
from zoo.blocks.positions import Position
from zoo.core.attention import attention
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.linear import Linear
from zoo.costs import Breakdown, CacheSpec, dense_pairs, linear_flops, linear_params, visible_pairs
from zoo.registry import Mixer, Spec

__all__ = ["GQA"]


@dataclass(frozen=True)
class GQA(Mixer):
    """`heads` queries share `kv_heads` keys and values, all `head_dim` wide.

    kv_heads == heads is multi-head attention (MHA), kv_heads == 1 multi-query (MQA). With a `window` a token attends to
    the last `window` tokens, itself included. `qk_norm` normalises queries and keys before rotation, each head or the
    whole projection. `scale` multiplies the scores, head_dim**-0.5 if None. `bias`: on all four projections. `sinks`:
    one learned logit per head in the softmax, without a value.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Position
    window: int | None = None
    qk_norm: RMSNorm | None = None
    qk_norm_over: Literal["head", "projection"] = "head"
    scale: float | None = None
    bias: bool = False
    sinks: bool = False

    def check(self) -> None:
        self.require(self.heads % self.kv_heads == 0, f"kv_heads={self.kv_heads} must divide heads={self.heads}")
        self.require(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even: rotation pairs its halves")

    def build(self, dim: int) -> nn.Module:
        return _GQA(self, dim)

    def _projections(self, dim: int) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the projections q, k, v and o."""
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (dim, width), (dim, kv_width), (dim, kv_width), (width, dim)

    def param_breakdown(self, dim: int) -> Breakdown:
        projections = sum(linear_params(*widths, self.bias) for widths in self._projections(dim))
        norms = sum(self.qk_norm.params(width) for width in self._norm_widths()) if self.qk_norm else 0
        return {"attn": projections + (self.heads if self.sinks else 0), "norm": norms}

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        pairs = (visible_pairs if causal else dense_pairs)(past, new, self.window)
        projections = sum(linear_flops(new, *widths) for widths in self._projections(dim))
        scores = 2 * linear_flops(pairs, 1, self.heads * self.head_dim)  # q @ k.T and weights @ v
        return {"projections": projections, "scores": scores}

    def cache_spec(self) -> CacheSpec:
        shape = (self.kv_heads, self.head_dim)
        return CacheSpec(per_token=(("k", shape), ("v", shape)), window=self.window)

    def rotary(self) -> tuple[tuple[Spec, int], ...]:
        return ((self.rope, self.head_dim),)

    def describe(self) -> str:
        kind = {self.heads: "MHA", 1: "MQA"}.get(self.kv_heads, "GQA")
        heads = f"{self.heads} heads" + (f" on {self.kv_heads} KV heads" if kind == "GQA" else "")
        parts = [
            f"{kind}, {heads} of {self.head_dim}",
            self.rope.describe(),
            f"window {self.window}" if self.window else "",
            f"QK-norm per {self.qk_norm_over}" if self.qk_norm else "",
            f"scale {self.scale**-2:.4g}^-1/2" if self.scale else "",
            "biases" if self.bias else "",
            "sinks" if self.sinks else "",
        ]
        return ", ".join(part for part in parts if part)

    def _norm_widths(self) -> tuple[int, int]:
        """Elements that the norms of queries and of keys average over."""
        if self.qk_norm_over == "head":
            return self.head_dim, self.head_dim
        return self.heads * self.head_dim, self.kv_heads * self.head_dim


class _GQA(nn.Module):
    residual_outputs = ("o",)  # matrices whose products are the output

    def __init__(self, spec: GQA, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.scale = spec.head_dim**-0.5 if spec.scale is None else spec.scale
        self.q, self.k, self.v, self.o = (Linear(*widths, spec.bias) for widths in spec._projections(dim))
        norms = [spec.qk_norm.build(width) if spec.qk_norm else nn.Identity() for width in spec._norm_widths()]
        self.q_norm, self.k_norm = norms
        self.sinks = nn.Parameter(torch.empty(spec.heads)) if spec.sinks else None

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        table = ctx.tables[self.spec.rope, self.spec.head_dim]
        q = self.spec.rope.rotate(self._heads(self.q(x), self.q_norm), table)
        k = self.spec.rope.rotate(self._heads(self.k(x), self.k_norm), table)
        v = self._heads(self.v(x))
        k, v, mask = cache.append(ctx, k, v)
        out = attention(q, k, v, mask, self.scale, self.sinks)
        return self.o(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """(b, t, h * d) -> (b, h, t, d), normalised over the projection or over each head."""
        over_projection = self.spec.qk_norm_over == "projection"
        if norm is not None and over_projection:
            x = norm(x)
        x = x.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)
        return x if norm is None or over_projection else norm(x)


# Names for special cases of grouped-query attention.
ALIASES: dict[str, Callable[[GQA], bool]] = {
    "MHA": lambda attn: attn.kv_heads == attn.heads,
    "MQA": lambda attn: attn.kv_heads == 1,
    "SWA": lambda attn: attn.window is not None,
}


def aliases(spec: Spec) -> list[str]:
    """The names of a block: its kind or, for grouped-query attention, the special cases that it is."""
    names = [name for name, holds in ALIASES.items() if isinstance(spec, GQA) and holds(spec)]
    return names if {"MHA", "MQA"} & set(names) else [type(spec).__name__, *names]
