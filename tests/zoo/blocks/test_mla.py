"""Latent attention runs in its cheaper form, and its FLOPs are those of that form."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from zoo import MLA, RMSNorm, RoPE
from zoo.costs import Full

DIM = 32
SPEC = MLA(heads=3, q_rank=10, kv_rank=16, nope_dim=6, rope_dim=4, v_dim=5, norm=RMSNorm(1e-6), rope=RoPE(1e4))


@given(
    past=st.integers(0, 3000),
    new=st.integers(1, 3000),
    kv_rank=st.integers(1, 600),
    nope_dim=st.integers(1, 200),
    v_dim=st.integers(1, 200),
)
def test_the_cheaper_form_is_taken(past: int, new: int, kv_rank: int, nope_dim: int, v_dim: int) -> None:
    """The products of one head are counted again for each form. A single token always uses the absorbed form: decoding
    expands nothing."""
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
