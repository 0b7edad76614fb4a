"""Three forms in which latent attention can decode: the same weights, the same outputs, other costs.

absorbed: the zoo's own `MLA`. Latents are kept and attended over, the up-projections folded into query and output.
latent: latents are kept, and keys and values of all heads expanded from all of them at each step, as transformers does.
expanded: keys and values of all heads are kept, each expanded once, when its token comes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.mla import _MLA, MLA
from zoo.core.attention import attention
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.costs import Breakdown, CacheSpec, linear_flops

EXPANDED, LATENT, ABSORBED = "expanded", "latent", "absorbed"


@dataclass(frozen=True)
class _Latent(MLA):
    """Latents are kept, and expanded anew at each step."""

    def absorbs(self, past: int, new: int) -> bool:
        return False


@dataclass(frozen=True)
class _Expanded(_Latent):
    """Keys and values of all heads are kept."""

    def build(self, dim: int) -> nn.Module:
        return _ExpandedMLA(self, dim)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        parts = super().flop_breakdown(dim, past, new, causal)
        again = linear_flops(past, self.kv_rank, self.heads * (self.nope_dim + self.v_dim))
        return {**parts, "projections": parts["projections"] - again}

    def cache_spec(self) -> CacheSpec:
        keys, values = (self.heads, self.nope_dim + self.rope_dim), (self.heads, self.v_dim)
        return CacheSpec(per_token=(("k", keys), ("v", values)))


class _ExpandedMLA(_MLA):
    def forward(self, x: Tensor, step: ForwardContext, slot: LayerCache) -> Tensor:
        q_nope, q_rope, latent = self._project(x, step)
        k, v, mask = slot.append(step, *self._expand(latent))
        out = attention(torch.cat([q_nope, q_rope], dim=-1), k, v, mask, self.scale)
        return self.o(out.transpose(1, 2).flatten(2))


_KINDS: dict[str, type[MLA]] = {EXPANDED: _Expanded, LATENT: _Latent, ABSORBED: MLA}


def forms(spec: MLA) -> dict[str, MLA]:
    """Form -> a spec of equal fields that decodes in it, the costliest in memory first."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {form: kind(**values) for form, kind in _KINDS.items()}


def modules(spec: MLA, source: nn.Module, dim: int) -> dict[str, nn.Module]:
    """Form -> a module that computes in it with the weights of `source`, the module of `spec`; none is copied."""
    built = {}
    for form, each in forms(spec).items():
        with torch.device("meta"):
            built[form] = each.build(dim).eval()
        built[form].load_state_dict(source.state_dict(), assign=True)
    return built


def scratch_numbers(form: str, spec: MLA, context: int) -> int:
    """Numbers that a step at `context` tokens makes and drops, the large ones: scores and their softmax, and in the
    latent form what it expands, before and after keys are joined with their rotated part."""
    scores = 3 * spec.heads * context
    joined = spec.nope_dim + spec.v_dim + spec.nope_dim + spec.rope_dim
    return scores + (context * spec.heads * joined if form == LATENT else 0)


@torch.no_grad()
def fill(form: str, module: Any, streams: list[Tensor], latent: Tensor, chunk: int = 1024) -> None:
    """Put `latent` (1, 1, past, kv_rank + rope_dim) into a slot's streams as the first `past` tokens of a form's cache,
    expanded where it keeps keys and values, `chunk` tokens at a time."""
    for start in range(0, latent.shape[2], chunk):
        part = latent[:, :, start : start + chunk]
        kept = module._expand(part) if form == EXPANDED else (part,)
        for stream, tokens in zip(streams, kept, strict=True):
            stream[:, :, start : start + part.shape[2]] = tokens
