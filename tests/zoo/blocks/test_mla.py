"""Latent attention: against per-head attention, and its two forms against each other."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.exact import assert_equal
from zoo import MLA, NoPE, RMSNorm, RoPE, YarnScaling
from zoo.core.cache import Cache, NoCache, prepare_forward
from zoo.core.forward_context import visible
from zoo.core.ops import latent_attention
from zoo.costs import Full

DIM = 32
SPEC = MLA(heads=3, q_rank=10, kv_rank=16, nope_dim=6, rope_dim=4, v_dim=5, norm=RMSNorm(1e-6), rope=RoPE(1e4))
SPECS = {
    "ranks": SPEC,
    "full-rank query": replace(SPEC, q_rank=None),
    "scale and YaRN": replace(SPEC, scale=0.5, rope=RoPE(1e4, YarnScaling(4, 8, gain=1.2))),
    "NoPE": replace(SPEC, rope=NoPE()),
    "small latent": replace(SPEC, kv_rank=4),
}


def built(spec: MLA) -> nn.Module:
    module = spec.build(DIM)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.ndim == 2 else 1.0))
    return module


def naive(module: nn.Module, spec: MLA, x: torch.Tensor) -> torch.Tensor:
    """DeepSeek-V2, equations 9 to 19, head by head: keys and values are expanded and nothing is absorbed."""
    table, t = spec.rope.table(torch.arange(x.shape[1]), spec.rope_dim, torch.float64), x.shape[1]
    down = module.kv_down(x)
    latent, k_rope = module.kv_norm(down[..., : spec.kv_rank]), spec.rope.rotate(down[..., spec.kv_rank :], table)
    queries = module.q(x).unflatten(-1, (spec.heads, -1))
    expanded = module.kv_up(latent).unflatten(-1, (spec.heads, -1))
    scale = spec.scale or (spec.nope_dim + spec.rope_dim) ** -0.5
    out = []
    for h in range(spec.heads):
        q, k = queries[:, :, h, : spec.nope_dim], expanded[:, :, h, : spec.nope_dim]
        q_rope = spec.rope.rotate(queries[:, :, h, spec.nope_dim :], table)
        scores = scale * (q @ k.mT + q_rope @ k_rope.mT)
        scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), float("-inf"))
        out.append(scores.softmax(-1) @ expanded[:, :, h, spec.nope_dim :])
    return module.o(torch.cat(out, dim=-1))


def run(module: nn.Module, spec: MLA, x: torch.Tensor, cache: object = None) -> torch.Tensor:
    cache = cache or NoCache(spec.cache_spec())
    return module(x, prepare_forward(0, x.shape[1], spec.tables(), [cache], x.device, dtype=torch.float64), cache)


@torch.no_grad()
@pytest.mark.parametrize("absorbs", [True, False])
@pytest.mark.parametrize("case", SPECS)
def test_both_forms_are_per_head_attention(case: str, absorbs: bool) -> None:
    spec = SPECS[case]
    module, x = built(spec), torch.randn(2, 7, DIM)
    with patch.object(MLA, "absorbs", lambda self, past, new: absorbs):
        out = run(module, spec, x)
    assert_equal(out, naive(module, spec, x))


@torch.no_grad()
@pytest.mark.parametrize("case", SPECS)
def test_the_forms_agree_over_a_past(case: str) -> None:
    """Called as they are, on queries and latents of their own, over masks of every kind."""
    spec = SPECS[case]
    module = built(spec)
    for new, keys in ((1, 9), (4, 9), (5, 5)):
        q_nope = torch.randn(2, spec.heads, new, spec.nope_dim)
        q_rope = torch.randn(2, spec.heads, new, spec.rope_dim)
        latent = torch.randn(2, 1, keys, spec.kv_rank + spec.rope_dim)
        mask = None if new in (1, keys) else visible(torch.arange(keys - new, keys), torch.arange(keys))
        found = []
        for absorbs in (True, False):
            with patch.object(latent_attention, "absorbing_is_cheaper", lambda *_, absorbs=absorbs: absorbs):
                found.append(module.attend(q_nope, q_rope, latent, mask))
        assert_equal(*found)


@given(
    past=st.integers(0, 3000),
    new=st.integers(1, 3000),
    kv_rank=st.integers(1, 600),
    nope_dim=st.integers(1, 200),
    v_dim=st.integers(1, 200),
)
def test_the_cheaper_form_is_taken(past: int, new: int, kv_rank: int, nope_dim: int, v_dim: int) -> None:
    """By counting each form's products of one head again. A single token always absorbs: decoding expands nothing."""
    spec = replace(SPEC, kv_rank=kv_rank, nope_dim=nope_dim, v_dim=v_dim)
    pairs = Full().pairs(past, new)
    absorbed = new * kv_rank * (nope_dim + v_dim) + pairs * (kv_rank + spec.rope_dim + kv_rank)
    expanded = (past + new) * kv_rank * (nope_dim + v_dim) + pairs * (nope_dim + spec.rope_dim + v_dim)
    assert spec.absorbs(past, new) == (new == 1 or absorbed < expanded)
    with patch.object(MLA, "absorbs", lambda self, past, new: True):
        one = spec.flops(DIM, past, new)
    with patch.object(MLA, "absorbs", lambda self, past, new: False):
        other = spec.flops(DIM, past, new)
    assert one - other == 2 * spec.heads * (absorbed - expanded)
    if new > 1:
        assert spec.flops(DIM, past, new) == min(one, other)


def test_deepseek_decodes_absorbed_and_prefills_expanded() -> None:
    spec = MLA(128, 1536, 512, 128, 64, 128, RMSNorm(1e-6), RoPE(1e4))
    assert spec.absorbs(0, 1)
    assert spec.absorbs(100_000, 1)
    assert not spec.absorbs(0, 4096)
    assert spec.absorbs(100_000, 8)


@torch.no_grad()
@pytest.mark.parametrize("case", SPECS)
def test_the_form_that_runs_is_the_one_that_is_counted(case: str) -> None:
    spec, ran = SPECS[case], []
    module = built(spec)

    def noted(name: str) -> object:
        form = getattr(latent_attention, name)
        return patch.object(latent_attention, name, lambda *args: ran.append(name) or form(*args))

    for past, new in ((0, 1), (0, 6), (5, 1), (5, 2), (9, 5), (3, 9)):
        cache = Cache([spec.cache_spec()], 1, 20, torch.float64, torch.device("cpu"))
        with noted("absorbed"), noted("expand"):
            for start, length in [(0, past), (past, new)] if past else [(0, new)]:
                step = prepare_forward(start, length, spec.tables(), cache.layers, dtype=torch.float64)
                module(torch.randn(1, length, DIM), step, cache.layers[0])
        assert ran[-1] == ("absorbed" if spec.absorbs(past, new) else "expand")


def test_a_token_keeps_one_latent_and_one_rotated_key() -> None:
    assert SPEC.cache_spec().per_token == (("latent", (1, 16 + 4)),)
    assert SPEC.cache_spec().reach.limit is None
    assert SPEC.params(DIM) == sum(weight.numel() for weight in SPEC.build(DIM).parameters())
