"""The lightning indexer against its formula, term by term. tests/zoo/blocks/test_sparse_mla.py compares it with
released code, as a part of its mixer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo import LayerNorm, NoPE, RoPE
from zoo.blocks.sparse_mla import Indexer
from zoo.core.cache import NoCache, prepare_forward
from zoo.core.ops.indexing import NOT_CHOSEN, QUERY_BLOCK, choose_keys
from zoo.costs import CacheSpec

DIM, Q_RANK, ROPE_DIM, ROPE = 32, 20, 4, RoPE(1e4)
SPEC = Indexer(heads=12, head_dim=8, k=5, norm=LayerNorm(1e-6))


def built(spec: Indexer, rope: RoPE | NoPE = ROPE) -> nn.Module:
    made = spec.build(DIM, Q_RANK, rope, ROPE_DIM)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.ndim == 2 else 1.0))
    return made


def choose(indexer: nn.Module, x: Tensor, q_latent: Tensor, past: int = 0) -> Tensor:
    """What the tokens after `past` of x (b, s, dim) choose among all of it."""
    whole = prepare_forward(0, x.shape[1], [(indexer.rope, ROPE_DIM)], [NoCache(CacheSpec())], dtype=torch.float64)
    new = x.shape[1] - past
    step = prepare_forward(past, new, [(indexer.rope, ROPE_DIM)], [NoCache(CacheSpec())], dtype=torch.float64)
    return choose_keys(indexer(x[:, past:], q_latent[:, past:], step, indexer.keys(x, whole)), past)


def sets(chosen: Tensor) -> list[list[set[int]]]:
    return [[set(row) - {NOT_CHOSEN} for row in sequence] for sequence in chosen.tolist()]


@torch.no_grad()
@pytest.mark.parametrize("rope", [ROPE, NoPE()])
def test_the_first_elements_are_rotated_and_the_rest_are_not(rope: RoPE | NoPE) -> None:
    indexer, x, q_latent = built(SPEC, rope=rope), torch.randn(2, 9, DIM), torch.randn(2, 9, Q_RANK)
    table = rope.table(torch.arange(9), ROPE_DIM, torch.float64)
    key = nn.functional.layer_norm(indexer.k(x), (8,), indexer.k_norm.weight, indexer.k_norm.bias, 1e-6)
    q = indexer.q(q_latent).unflatten(-1, (12, 8))
    score = torch.zeros(2, 9, 9)
    rotated_key = torch.cat([rope.rotate(key[..., :ROPE_DIM], table), key[..., ROPE_DIM:]], -1)
    for h in range(12):
        rotated = torch.cat([rope.rotate(q[:, :, h, :ROPE_DIM], table), q[:, :, h, ROPE_DIM:]], -1)
        score += indexer.head_weights(x)[..., h, None] * (rotated @ rotated_key.mT).relu()
    score = score.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), float("-inf"))
    expected = [[set(row[: t + 1].topk(min(5, t + 1)).indices.tolist()) for t, row in enumerate(one)] for one in score]
    assert sets(choose(indexer, x, q_latent)) == expected


@torch.no_grad()
@pytest.mark.parametrize("past", [0, 1, 4, 5, 60, 149])
def test_what_a_token_chooses_does_not_depend_on_the_pass(past: int) -> None:
    """Over an empty cache, after tokens that see at most k, and a single token; in several blocks of queries."""
    indexer, x, q_latent = built(SPEC), torch.randn(2, 150, DIM), torch.randn(2, 150, Q_RANK)
    assert QUERY_BLOCK < 150
    whole = sets(choose(indexer, x, q_latent))
    assert sets(choose(indexer, x, q_latent, past)) == [row[past:] for row in whole]
    assert [len(row) for row in whole[0]] == [min(t + 1, SPEC.k) for t in range(150)]


@torch.no_grad()
@given(past=st.integers(0, 90), new=st.integers(1, 90))
def test_flops_are_those_that_run(past: int, new: int) -> None:
    indexer, x, q_latent = built(SPEC), torch.randn(1, past + new, DIM), torch.randn(1, past + new, Q_RANK)
    tables = [(ROPE, ROPE_DIM)]
    keys = indexer.keys(x, prepare_forward(0, past + new, tables, [NoCache(CacheSpec())], dtype=torch.float64))
    step = prepare_forward(past, new, tables, [NoCache(CacheSpec())], dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        indexer.keys(x[:, past:], step)
        if past + new > SPEC.k:
            choose_keys(indexer(x[:, past:], q_latent[:, past:], step, keys), past)
    assert counter.get_total_flops() == SPEC.flops(DIM, Q_RANK, past, new, causal=False)
    pairs = sum(position + 1 for position in range(past, past + new) if position + 1 > SPEC.k)
    projected = DIM * 8 + (Q_RANK * 12 * 8 + DIM * 12 if past + new > SPEC.k else 0)
    assert SPEC.flops(DIM, Q_RANK, past, new) == 2 * (new * projected + pairs * 12 * (8 + 1))


def test_the_choice_has_no_gradient() -> None:
    indexer, x = built(SPEC), torch.randn(1, 9, DIM).requires_grad_()
    ctx = prepare_forward(0, 9, [(ROPE, ROPE_DIM)], [NoCache(CacheSpec())], dtype=torch.float64)
    assert not indexer.keys(x, ctx).requires_grad
    assert not any(weight.requires_grad for weight in indexer.parameters())
