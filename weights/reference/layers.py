"""Each part of a model by itself, given what the reference gave its own: where a difference begins.

A whole forward pass hands every difference on to the layers above. Here each branch of each layer starts from the very
numbers that went into the reference's, so that what differs in its output arose in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weights.reference.logits import slices
from weights.reference.routing import choices, margin
from zoo.model.decoder import Model

# What counts as rounding: of the length of a token's vector, and of the largest score of a router.
NOISE = {torch.float32: 1e-5, torch.bfloat16: 2**-4}


@dataclass(frozen=True)
class Part:
    """One part of the model: "embedding", a layer's "attention" or "feed-forward", or "head", the last norm included.

    `error` is the largest over all tokens of |zoo - reference| / |reference|, lengths of the token's vector; within
    `bound` it is rounding. `ties` tokens chose other experts, rounding deciding it, and are left out.
    """

    name: str
    layer: int | None
    error: float
    bound: float
    ties: int = 0

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding."""
        return self.error <= self.bound

    def __str__(self) -> str:
        return f"the {self.name}" if self.layer is None else f"layer {self.layer}'s {self.name}"


@dataclass(frozen=True)
class Passed:
    """What went through one layer of the reference, (batch, t, dim) each: into attention, from there into the
    feed-forward, out of it; and the experts (n, k) that were chosen, in ascending order, where there are any."""

    layer: int
    x: Tensor
    between: Tensor
    out: Tensor
    experts: Tensor | None


class Probe:
    """The zoo's side: `parts`, filled by handing over what the reference computes, as it computes it."""

    def __init__(self, model: Model, tokens: Tensor, dtype: torch.dtype) -> None:
        self.model, self.tokens, self.bound = model, tokens, NOISE[dtype]
        self.ctx, self.layer_caches = model.prepare(tokens)
        self.parts: list[Part] = []

    def embedding(self, x: Tensor) -> None:
        """`x`: the reference's embeddings (batch, t, dim)."""
        self._add("embedding", None, _apart(self.model.embedded(self.tokens), x))

    def layer(self, seen: Passed) -> None:
        """Both branches of one layer."""
        layer: Any = self.model.layers[seen.layer]
        between = layer.attn(seen.x, self.ctx, self.layer_caches[seen.layer])
        self._add("attention", seen.layer, _apart(between, seen.between))
        into: list[Tensor] = []
        with choices(layer) as made:
            hooks = [
                router.register_forward_pre_hook(lambda _, args: into.append(args[0].flatten(0, -2))) for router in made
            ]
            out = layer.ffn(seen.between)
            for hook in hooks:
                hook.remove()
        apart = _apart(out, seen.out)
        if seen.experts is None:
            return self._add("feed-forward", seen.layer, apart)
        router, (chosen,) = next(iter(made.items()))
        tie = (chosen != seen.experts).any(-1) & (margin(router, into[0].flatten(0, -2)) <= self.bound)
        self._add("feed-forward", seen.layer, apart.masked_fill(tie.view_as(apart), 0), int(tie.sum()))

    def head(self, x: Tensor, logits: Tensor) -> None:
        """`x`: what the reference's last layer gave (batch, t, dim); `logits`: what it made of it."""
        chunks = slices(*logits.shape)
        apart = [_apart(self.model.logits(x[:, part]), logits[:, part]) for part in chunks]
        self._add("head", None, torch.cat(apart, dim=1))

    def _add(self, name: str, layer: int | None, apart: Tensor, ties: int = 0) -> None:
        self.parts.append(Part(name, layer, float(apart.max()), self.bound, ties))


def _apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """(batch, t, width) twice -> (batch, t)."""
    length = theirs.float().norm(dim=-1)
    return (ours.float() - theirs.float()).norm(dim=-1) / length.clamp_min(torch.finfo(torch.float32).tiny)
