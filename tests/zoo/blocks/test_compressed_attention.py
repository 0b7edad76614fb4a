"""Attention over a window and entries: with gradients, under one mask, and its description."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.exact import assert_equal
from zoo import CompressedAttention, Compressor, EntryIndexer, RMSNorm, RoPE
from zoo.core.cache import Cache, prepare_forward
from zoo.core.ops import entry_attention as forms

DIM = 24
PLAIN = CompressedAttention(
    heads=4,
    head_dim=12,
    rope_dim=4,
    q_rank=10,
    groups=2,
    o_rank=5,
    window=6,
    norm=RMSNorm(1e-6, scale_in_fp32=True),
    q_norm=RMSNorm(1e-6, weight=False),
    rope=RoPE(1e2),
)
HCA = replace(PLAIN, compressor=Compressor(5))
# Of many heads few scores are relu's zero, among which any entry may be chosen.
CSA = replace(PLAIN, compressor=Compressor(2, overlap=True, indexer=EntryIndexer(heads=16, head_dim=6, k=4)))
KINDS = [PLAIN, HCA, CSA]


def built(spec: CompressedAttention) -> nn.Module:
    module = spec.build(DIM)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.randn(weight.shape) * (0.5 if weight.ndim == 2 else 1.0))
            if name.endswith("norm.weight"):
                weight.add_(1.0)
    return module


def in_passes(module: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    (cache,) = Cache([module.spec.cache_spec()], len(x), x.shape[1], x.dtype, x.device).layers
    outs, past = [], 0
    for part in x.split(sizes, dim=1):
        ctx = prepare_forward(past, part.shape[1], module.spec.tables(), [cache], dtype=torch.float64)
        outs.append(module(part, ctx, cache))
        past += part.shape[1]
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize("spec", [HCA, CSA], ids=lambda spec: spec.names()[0])
def test_with_gradients_and_under_one_mask_it_is_the_same(
    spec: CompressedAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients of all forms are equal, for passes with and without earlier tokens."""
    module, x = built(spec), torch.randn(2, 40, DIM)
    with torch.no_grad():
        plain = in_passes(module, x, [9, 31])
    gradients = []
    for masked in (False, True):
        if masked:
            monkeypatch.setattr(forms, "_entry_attention", None)
            monkeypatch.setattr(forms.torch.compiler, "is_compiling", lambda: True)
            monkeypatch.setattr(forms, "allows_operators", lambda *tensors: False)
        module.zero_grad()
        got = in_passes(module, x, [9, 31])
        assert_equal(got, plain)
        got.square().sum().backward()
        gradients.append({name: each.grad for name, each in module.named_parameters() if each.grad is not None})
    assert {name.split(".")[0] for name in gradients[0]} == {
        *("q", "kv", "kv_norm", "sinks", "o_groups", "o", "compressor")
    }
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert_equal(gradients[1][name], gradient)


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.names()[0])
def test_a_prefill_scores_the_pairs_of_its_tokens_one_by_one(spec: CompressedAttention) -> None:
    for past, new in ((0, 37), (7, 22)):
        parts = spec.flop_breakdown(DIM, past, new)
        alone = [spec.flop_breakdown(DIM, i, 1) for i in range(past, past + new)]
        for part in {"scores", "entries"} & parts.keys():
            assert parts[part] == sum(each[part] for each in alone)


def test_a_spec_that_makes_no_sense_is_refused() -> None:
    for change in ({"groups": 3}, {"rope_dim": 3}, {"rope_dim": 14}):
        with pytest.raises(Exception, match=next(iter(change))):
            replace(PLAIN, **change)
    with pytest.raises(Exception, match="indexer's head_dim"):
        replace(CSA, rope_dim=8)
    with pytest.raises(Exception, match="at least 2"):
        Compressor(1)


def test_it_is_described() -> None:
    assert [spec.names() for spec in KINDS] == [
        ["SWA", "CompressedAttention"],
        ["HCA", "SWA", "CompressedAttention"],
        ["CSA", "SWA", "CompressedAttention"],
    ]
    assert [spec.cache_spec().describe() for spec in KINDS] == ["window 6", "window 6 + 1/5", "window 6 + 1/2"]
