"""The cache as calculators elsewhere count it, so that the error can be shown."""

from __future__ import annotations

from fractions import Fraction

import torch

from zoo.blocks import GQA, MLA
from zoo.model.decoder import Decoder
from zoo.registry import Mixer

RULES: dict[type[Mixer], str] = {
    GQA: "2 x kv_heads x dim / heads numbers a layer and token, windows ignored",
    MLA: "heads x (nope_dim + rope_dim + v_dim) numbers a layer and token, the latent expanded",
}


def naive_bytes(spec: Decoder, context: int, batch: int, dtype: torch.dtype) -> int | None:
    """Bytes by the usual rule of thumb, which takes head_dim for dim / heads and every layer for one that keeps every
    token; for MLA, keys and values expanded from the latents. None where no rule of thumb is about."""
    numbers = [_numbers(layer.mixer, spec.dim) for layer in spec.layers]
    known = [each for each in numbers if each is not None]
    return round(sum(known) * context * batch * dtype.itemsize) if len(known) == len(numbers) else None


def rules(spec: Decoder) -> str:
    """The rules that `naive_bytes` follows for this model."""
    kinds = dict.fromkeys(type(layer.mixer) for layer in spec.layers)
    return "; ".join(RULES[kind] for kind in kinds if kind in RULES)


def _numbers(mixer: Mixer, dim: int) -> Fraction | None:
    """Numbers that a layer is said to keep of a token."""
    if isinstance(mixer, GQA):
        return Fraction(2 * mixer.kv_heads * dim, mixer.heads)
    if isinstance(mixer, MLA):
        return Fraction(mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.v_dim))
    return None
