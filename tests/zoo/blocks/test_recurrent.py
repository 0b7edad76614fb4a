"""Recurrent mixers and the short convolution in narrow dtypes, compared with the released layers, and the errors of
their specs.

In float64 they equal the released models (tests/test_parity.py).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weights
from tests import toys
from tests.exact import assert_as_near
from zoo import KDA, GatedDeltaNet, Mamba2, RMSNorm, ShortConv
from zoo.core.cache import Cache, prepare_forward
from zoo.errors import SpecError
from zoo.registry import Mixer

PIECES = [70, 1, 64, 1, 1, 13]  # more than a chunk, exactly one, less than one, and single tokens
# The class of the released layer.
RELEASED = {
    "qwen3-next-80b-a3b": "Qwen3NextGatedDeltaNet",
    "kimi-linear-48b-a3b": "KimiLinearDeltaAttention",
    "granite4-h-tiny": "GraniteMoeHybridMambaLayer",
    "nemotron3-nano-30b-a3b": "NemotronHMamba2Mixer",
    "lfm2-1.2b": "Lfm2ShortConv",
}


@torch.no_grad()
def run(module: nn.Module, spec: Mixer, x: Tensor) -> Tensor:
    cache, outs, past = Cache([spec.cache_spec()], len(x), x.shape[1], x.dtype, x.device).layers[0], [], 0
    for piece in x.split(PIECES, dim=1):
        ctx = prepare_forward(past, piece.shape[1], spec.tables(), [cache], dtype=x.dtype)
        outs.append(module(piece, ctx, cache))
        past += piece.shape[1]
    return torch.cat(outs, dim=1)


@torch.no_grad()
def run_reference(layer: nn.Module, config: Any, x: Tensor) -> Tensor:
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    return torch.cat([layer(piece, cache) for piece in x.split(PIECES, dim=1)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", RELEASED)
def test_narrow_dtypes_are_as_near_to_float64_as_the_released_layer(name: str, saved: Callable[[str], Path]) -> None:
    reference, model = toys.reference(name), weights.load(saved(name), dtype=torch.float64)
    theirs = next(part for part in reference.modules() if type(part).__name__ == RELEASED[name])
    spec, layer = next(pair for pair in zip(model.spec.layers, model.layers, strict=True) if pair[0].cache_spec().state)
    for dtype in (torch.float32, torch.bfloat16):
        narrow, other = deepcopy(layer.attn.block).to(dtype), deepcopy(theirs).to(dtype)
        exact = deepcopy(narrow).double()
        xs = [torch.randn(2, sum(PIECES), model.spec.dim).to(dtype) for _ in range(3)]
        assert_as_near(
            [run(narrow, spec.mixer, x) for x in xs],
            [run_reference(other, reference.config, x) for x in xs],
            [run(exact, spec.mixer, x.double()) for x in xs],
        )


DELTA = GatedDeltaNet(key_heads=2, value_heads=6, key_dim=8, value_dim=10, conv=4, norm=RMSNorm(1e-6))
KIMI = KDA(heads=3, head_dim=8, conv=4, norm=RMSNorm(1e-5, scale_in_fp32=True))
GRANITE = Mamba2(heads=6, head_dim=16, groups=1, state=10, conv=4, eps=1e-5)
SHORT = ShortConv(channels=48, conv=3)
IMPOSSIBLE: dict[str, Callable[[], Mixer]] = {
    "key_heads=4 must divide value_heads=6": lambda: replace(DELTA, key_heads=4),
    "GatedDeltaNet: conv=1 must be at least 2 tokens": lambda: replace(DELTA, conv=1),
    "KDA: conv=1 must be at least 2 tokens": lambda: replace(KIMI, conv=1),
    "groups=4 must divide heads=6": lambda: replace(GRANITE, groups=4),
    "Mamba2: conv=1 must be at least 2 tokens": lambda: replace(GRANITE, conv=1),
    "ShortConv: conv=1 must be at least 2 tokens": lambda: replace(SHORT, conv=1),
}
DESCRIBED = {
    DELTA: "Gated DeltaNet, 6 heads of 10 on 2 key heads of 8, convolution over 4",
    KIMI: "KDA, 3 heads of 8, convolution over 4",
    GRANITE: "Mamba-2, 6 heads of 16, state 10, convolution over 4",
    replace(
        GRANITE, groups=2, min_step=0.5
    ): "Mamba-2, 6 heads of 16, state 10, 2 groups, convolution over 4, time steps of at least 0.5",
    SHORT: "short convolution of 48 channels over 3",
}


def test_shapes_are_checked_and_described() -> None:
    for message, make in IMPOSSIBLE.items():
        with pytest.raises(SpecError, match=message):
            make()
    assert {spec: spec.describe() for spec in DESCRIBED} == DESCRIBED
