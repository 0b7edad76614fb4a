"""The forms of latent attention: equal outputs, and what each keeps and computes is what its spec says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.measure import mla_variants
from benchmarks.measure.mla_variants import ABSORBED, EXPANDED, LATENT, forms
from benchmarks.measure.side_by_side import CPU, made, planned
from zoo import MLA, NoPE, RMSNorm, RoPE
from zoo.core.cache import Cache
from zoo.registry import Spec

DIM = 24
small = st.integers(1, 6)
MLAS = st.builds(
    MLA,
    heads=small,
    q_rank=st.none() | small,
    kv_rank=small,
    nope_dim=small,
    rope_dim=st.integers(1, 3).map(lambda half: 2 * half),
    v_dim=small,
    norm=st.just(RMSNorm(1e-6)),
    rope=st.sampled_from([RoPE(1e4), NoPE()]),
    scale=st.none() | st.just(0.4),
)


def passed(spec: MLA, module: nn.Module, chunks: list[Tensor]) -> Iterator[Tensor]:
    """The chunks (1, t, dim), one after the other, over a cache."""
    cache = Cache([spec.cache_spec()], 1, sum(x.shape[1] for x in chunks), torch.float64, CPU)
    past = 0
    for x in chunks:
        yield module(x, planned(spec, cache, past, x.shape[1]), cache.layers[0])
        past += x.shape[1]


@torch.no_grad()
@given(spec=MLAS, lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_forms_compute_the_same_from_the_first_token_on(spec: MLA, lengths: list[int]) -> None:
    """Whole prompts, chunks and single tokens, each form over the cache that it has filled itself."""
    lengths = [*lengths, 1, 1]
    source = made(spec, DIM, torch.float64, seed=0)
    chunks = list(torch.randn(1, sum(lengths), DIM, dtype=torch.float64).split(lengths, dim=1))
    built = mla_variants.modules(spec, source, DIM)
    expected = torch.cat(list(passed(spec, source, chunks)), dim=1)
    for form, each in forms(spec).items():
        out = torch.cat(list(passed(each, built[form], chunks)), dim=1)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)  # norms are float32 in any dtype


@torch.no_grad()
@given(spec=MLAS, tokens=st.integers(1, 9), chunk=st.integers(1, 4))
def test_a_filled_cache_is_the_one_that_the_tokens_would_have_made(spec: MLA, tokens: int, chunk: int) -> None:
    """Latents of real activations, put into each form's cache, are what it had put there token by token."""
    source = made(spec, DIM, torch.float64, seed=0)
    x = torch.randn(1, tokens, DIM, dtype=torch.float64)
    built = mla_variants.modules(spec, source, DIM)
    for form, each in forms(spec).items():
        ran, filled = (Cache([each.cache_spec()], 1, tokens, torch.float64, CPU) for _ in range(2))
        step = planned(each, ran, 0, tokens)
        built[form](x, step, ran.layers[0])
        *_, latent = source.project(x, step)
        mla_variants.fill(form, built[form], filled.layers[0].streams, latent, chunk)
        for one, other in zip(ran.layers[0].streams, filled.layers[0].streams, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@given(spec=MLAS, past=st.integers(0, 20))
def test_flops_of_a_decoded_token_are_what_torch_counts(spec: MLA, past: int) -> None:
    """At widths above 1: torch multiplies by one number without a product that it would count."""
    assume(min(spec.kv_rank, spec.nope_dim, spec.v_dim) > 1)
    source = made(spec, DIM, torch.float32, seed=0)
    for form, module in mla_variants.modules(spec, source, DIM).items():
        each = forms(spec)[form]
        cache = Cache([each.cache_spec()], 1, past + 1, torch.float32, CPU)
        step = planned(each, cache, past, 1)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(torch.randn(1, 1, DIM), step, cache.layers[0])
        assert counter.get_total_flops() == each.flops(DIM, past, 1, causal=False), form


@given(spec=MLAS, tokens=st.integers(1, 50))
def test_what_a_form_keeps_is_what_is_allocated(spec: MLA, tokens: int) -> None:
    kept = {form: each.cache_spec().elements() for form, each in forms(spec).items()}
    assert kept[LATENT] == kept[ABSORBED] == spec.kv_rank + spec.rope_dim
    assert kept[EXPANDED] == spec.heads * (spec.nope_dim + spec.rope_dim + spec.v_dim)
    for form, each in forms(spec).items():
        assert Cache([each.cache_spec()], 1, tokens, torch.float32, CPU).nbytes == 4 * tokens * kept[form]


def test_deepseek_by_hand() -> None:
    """DeepSeek-V3: 128 heads, keys of 128 + 64, values of 128, a latent of 512; decoding the last of 32k tokens."""
    spec = next(node for node in zoo.spec("deepseek-v3").walk() if isinstance(node, MLA))
    specs, context = forms(spec), 32_768
    assert [specs[form].cache_spec().elements() for form in (EXPANDED, LATENT)] == [128 * (192 + 128), 576]
    expand = 512 * 128 * (128 + 128)
    around = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 128 * 128 * 7168
    scores = context * 128 * (192 + 128)
    assert specs[EXPANDED].flops(7168, context - 1, 1) == 2 * (around + expand + scores)
    assert specs[LATENT].flops(7168, context - 1, 1) == 2 * (around + context * expand + scores)
    assert specs[ABSORBED].flops(7168, context - 1, 1) == 2 * (around + expand + context * 128 * (576 + 512))


def test_the_forms_share_one_set_of_weights_and_are_no_kinds_of_their_own() -> None:
    spec = next(node for node in zoo.spec("deepseek-v3", tiny=True).walk() if isinstance(node, MLA))
    source = made(spec, 64, torch.float32, seed=0)
    for module in mla_variants.modules(spec, source, 64).values():
        theirs = dict(module.named_parameters())
        assert all(weight.data_ptr() == theirs[name].data_ptr() for name, weight in source.named_parameters())
    assert not {"_Latent", "_Expanded"} & Spec.kinds.keys()
    assert type(forms(spec)[ABSORBED]) is MLA
    assert forms(spec)[ABSORBED] == spec


@pytest.mark.parametrize("form", [EXPANDED, LATENT, ABSORBED])
def test_only_the_latent_form_makes_what_it_drops_again(form: str) -> None:
    spec = next(node for node in zoo.spec("deepseek-v3").walk() if isinstance(node, MLA))
    large = 128 * (128 + 128 + 128 + 64)
    assert (mla_variants.scratch_numbers(form, spec, 1000) >= 1000 * large) == (form == LATENT)
