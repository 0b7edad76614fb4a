"""Grouped-query attention (Ainslie et al. 2023); multi-head, multi-query, sliding-window attention are cases of it."""

from __future__ import annotations

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


@dataclass(frozen=True)
class GQA(Mixer):
    """`heads` queries share `kv_heads` keys and values, all `head_dim` wide.

    kv_heads == heads is multi-head attention (MHA), kv_heads == 1 multi-query (MQA). With a `window` a token sees that
    many tokens, itself included. `qk_norm` normalises queries and keys before rotation, on each head or over the whole
    projection. `scale` multiplies the scores, head_dim**-0.5 if None. `bias` is on all four projections. `sinks` give
    each head a learned score for attending to nothing.
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

    def params(self, dim: int) -> int:
        return sum(self.param_breakdown(dim).values())

    def param_breakdown(self, dim: int) -> Breakdown:
        projections = (
            linear_params(dim, self.heads * self.head_dim, self.bias)
            + 2 * linear_params(dim, self.kv_heads * self.head_dim, self.bias)
            + linear_params(self.heads * self.head_dim, dim, self.bias)
        )
        norms = sum(self.qk_norm.params(width) for width in self._norm_widths()) if self.qk_norm else 0
        return {"attn": projections + (self.heads if self.sinks else 0), "norm": norms}

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return sum(self.flop_breakdown(dim, past, new, causal).values())

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        width = self.heads * self.head_dim
        pairs = (visible_pairs if causal else dense_pairs)(past, new, self.window)
        projections = 2 * linear_flops(new, dim, width) + 2 * linear_flops(new, dim, self.kv_heads * self.head_dim)
        return {"projections": projections, "scores": 2 * linear_flops(pairs, 1, width)}  # and weighted values

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
        per_head = self.qk_norm_over == "head"
        return (1 if per_head else self.heads) * self.head_dim, (1 if per_head else self.kv_heads) * self.head_dim


class _GQA(nn.Module):
    def __init__(self, spec: GQA, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.scale = spec.head_dim**-0.5 if spec.scale is None else spec.scale
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q = Linear(dim, width, spec.bias)
        self.k = Linear(dim, kv_width, spec.bias)
        self.v = Linear(dim, kv_width, spec.bias)
        self.o = Linear(width, dim, spec.bias)
        norms = [spec.qk_norm.build(wide) if spec.qk_norm else nn.Identity() for wide in spec._norm_widths()]
        self.q_norm, self.k_norm = norms
        self.sinks = nn.Parameter(torch.empty(spec.heads)) if spec.sinks else None

    def forward(self, x: Tensor, step: ForwardContext, slot: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        table = step.tables[self.spec.rope, self.spec.head_dim]
        q = self.spec.rope.rotate(self._heads(self.q(x), self.q_norm), table)
        k = self.spec.rope.rotate(self._heads(self.k(x), self.k_norm), table)
        v = self._heads(self.v(x))
        k, v, mask = slot.append(step, k, v)
        out = attention(q, k, v, mask, self.scale, self.sinks)
        return self.o(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """(b, t, h * d) -> (b, h, t, d), normalised over the projection or over each head."""
        whole = self.spec.qk_norm_over == "projection"
        if norm is not None and whole:
            x = norm(x)
        x = x.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)
        return x if norm is None or whole else norm(x)


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
