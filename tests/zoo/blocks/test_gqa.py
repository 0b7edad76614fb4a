"""Grouped-query attention, every option of it, against a head-by-head computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.exact import assert_equal, differs
from zoo import GQA, NoPE, RMSNorm, RoPE
from zoo.core.cache import NoCache, prepare_forward

DIM, LENGTH = 32, 11
SPEC = GQA(heads=4, kv_heads=2, head_dim=6, rope=RoPE(1e4))
NORM = RMSNorm(1e-5)
SPECS = {
    "GQA": SPEC,
    "MHA": replace(SPEC, kv_heads=4),
    "MQA": replace(SPEC, kv_heads=1),
    "NoPE": replace(SPEC, rope=NoPE()),
    "window": replace(SPEC, window=4),
    "window of one": replace(SPEC, window=1),
    "scale": replace(SPEC, scale=0.7),
    "bias": replace(SPEC, bias=True),
    "sinks": replace(SPEC, sinks=True),
    "QK-norm per head": replace(SPEC, qk_norm=NORM),
    "QK-norm per projection": replace(SPEC, qk_norm=NORM, qk_norm_over="projection"),
    "everything": replace(
        SPEC, window=3, scale=0.7, bias=True, sinks=True, qk_norm=RMSNorm(1e-5, True, True), qk_norm_over="projection"
    ),
}


def built(spec: GQA) -> nn.Module:
    module = spec.build(DIM)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.ndim == 2 else 1.0))
    return module


def naive(module: nn.Module, spec: GQA, x: Tensor) -> Tensor:
    """Project, normalise, cut into heads, turn, and attend to one key after another."""
    q, k, v = module.q(x), module.k(x), module.v(x)
    if spec.qk_norm and spec.qk_norm_over == "projection":
        q, k = module.q_norm(q), module.k_norm(k)
    table, d = spec.rope.table(torch.arange(LENGTH), spec.head_dim, torch.float64), spec.head_dim
    out = torch.zeros(*x.shape[:2], spec.heads * d, dtype=x.dtype)
    for h in range(spec.heads):
        shared = h * spec.kv_heads // spec.heads
        mine, keys, values = q[..., h * d :][..., :d], k[..., shared * d :][..., :d], v[..., shared * d :][..., :d]
        if spec.qk_norm and spec.qk_norm_over == "head":
            mine, keys = module.q_norm(mine), module.k_norm(keys)
        mine, keys = spec.rope.rotate(mine, table), spec.rope.rotate(keys, table)
        for t in range(LENGTH):
            first = max(0, t - spec.window + 1) if spec.window else 0
            scores = (mine[:, t : t + 1] @ keys[:, first : t + 1].mT)[:, 0] * (spec.scale or d**-0.5)
            if spec.sinks:
                scores = torch.cat([scores, module.sinks[h].expand(len(x), 1)], dim=-1)
            weights = scores.softmax(-1)[:, : t + 1 - first]
            out[:, t, h * d : (h + 1) * d] = torch.einsum("bs,bsd->bd", weights, values[:, first : t + 1])
    return module.o(out)


@torch.no_grad()
@pytest.mark.parametrize("case", SPECS)
def test_every_option_head_by_head(case: str) -> None:
    spec = SPECS[case]
    module, x, cache = built(spec), torch.randn(2, LENGTH, DIM), NoCache(spec.cache_spec())
    out = module(x, prepare_forward(0, LENGTH, spec.tables(), [cache], dtype=torch.float64), cache)
    assert_equal(out, naive(module, spec, x))


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in SPECS if case not in ("GQA", "MHA", "MQA")])
def test_every_option_matters(case: str) -> None:
    """Else the test above might compare two ways to ignore it."""
    spec, plain = SPECS[case], replace(SPEC)
    module, x = built(spec), torch.randn(2, LENGTH, DIM)
    without = plain.build(DIM)
    without.load_state_dict(module.state_dict(), strict=False)
    one, other = (
        made(x, prepare_forward(0, LENGTH, s.tables(), [cache], dtype=torch.float64), cache)
        for made, s in ((module, spec), (without, plain))
        for cache in [NoCache(s.cache_spec())]
    )
    assert differs(one, other)


@pytest.mark.parametrize("case", SPECS)
def test_figures(case: str) -> None:
    spec = SPECS[case]
    assert spec.params(DIM) == sum(weight.numel() for weight in built(spec).parameters())
    assert spec.cache_spec().elements() == 2 * spec.kv_heads * spec.head_dim
    assert spec.cache_spec().reach.limit == spec.window
    pairs = sum(min(i + 1, spec.window or i + 1) for i in range(100, 107))
    projections = 2 * 7 * DIM * spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    assert spec.flops(DIM, past=100, new=7) == projections + 2 * pairs * spec.heads * 2 * spec.head_dim
    assert spec.describe().startswith(
        {4: "MHA, 4 heads of 6", 2: "GQA, 4 heads on 2 KV heads of 6", 1: "MQA, 4 heads of 6"}[spec.kv_heads]
    )
