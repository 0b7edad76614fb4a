"""The variants of latent attention: their outputs are equal, and their caches and FLOPs are those of their specs."""

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
from benchmarks.measure.blocks import block_context, build_block
from benchmarks.measure.environment import CPU
from benchmarks.measure.mla import ABSORBED, EXPANDED, LATENT, fill_cache, modules, scratch_elements, variants
from tests.exact import assert_equal
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
    """Returns the outputs for the chunks (1, t, dim), passed one after the other over a cache."""
    cache = Cache([spec.cache_spec()], 1, sum(x.shape[1] for x in chunks), torch.float64, CPU)
    past = 0
    for x in chunks:
        yield module(x, block_context(spec, cache, past, x.shape[1], torch.float64), cache.layers[0])
        past += x.shape[1]


@torch.no_grad()
@given(spec=MLAS, lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_variants_compute_the_same_from_the_first_token_on(spec: MLA, lengths: list[int]) -> None:
    """Whole prompts, chunks and single tokens, each variant over the cache that it has filled itself."""
    lengths = [*lengths, 1, 1]
    source = build_block(spec, DIM, torch.float64, seed=0)
    chunks = list(torch.randn(1, sum(lengths), DIM, dtype=torch.float64).split(lengths, dim=1))
    built = modules(spec, source, DIM)
    expected = torch.cat(list(passed(spec, source, chunks)), dim=1)
    for variant, each in variants(spec).items():
        out = torch.cat(list(passed(each, built[variant], chunks)), dim=1)
        assert_equal(out, expected, variant)


@torch.no_grad()
@given(spec=MLAS, tokens=st.integers(1, 9), chunk=st.integers(1, 4))
def test_a_filled_cache_is_the_one_that_the_tokens_would_have_made(spec: MLA, tokens: int, chunk: int) -> None:
    """Latents of real activations are written into each variant's cache; the result equals the cache that the variant
    fills token by token."""
    source = build_block(spec, DIM, torch.float64, seed=0)
    x = torch.randn(1, tokens, DIM, dtype=torch.float64)
    built = modules(spec, source, DIM)
    for variant, each in variants(spec).items():
        ran, filled = (Cache([each.cache_spec()], 1, tokens, torch.float64, CPU) for _ in range(2))
        step = block_context(each, ran, 0, tokens, torch.float64)
        built[variant](x, step, ran.layers[0])
        *_, latent = source.project(x, step)
        fill_cache(variant, built[variant], filled.layers[0].streams, latent, chunk)
        for one, other in zip(ran.layers[0].streams, filled.layers[0].streams, strict=True):
            assert_equal(other, one, variant)


@torch.no_grad()
@given(spec=MLAS, past=st.integers(0, 20))
def test_flops_of_a_decoded_token_are_what_torch_counts(spec: MLA, past: int) -> None:
    """Widths are above 1, since torch does not count a multiplication by a single number."""
    assume(min(spec.kv_rank, spec.nope_dim, spec.v_dim) > 1)
    source = build_block(spec, DIM, torch.float32, seed=0)
    for variant, module in modules(spec, source, DIM).items():
        each = variants(spec)[variant]
        cache = Cache([each.cache_spec()], 1, past + 1, torch.float32, CPU)
        step = block_context(each, cache, past, 1, torch.float64)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(torch.randn(1, 1, DIM), step, cache.layers[0])
        assert counter.get_total_flops() == each.flops(DIM, past, 1, causal=False), variant


def test_deepseek_by_hand() -> None:
    """DeepSeek-V3: 128 heads, keys of 128 + 64, values of 128, a latent of 512; decoding the last of 32k tokens."""
    spec = next(node for node in zoo.spec("deepseek-v3").walk() if isinstance(node, MLA))
    specs, context = variants(spec), 32_768
    assert [specs[variant].cache_spec().elements() for variant in (EXPANDED, LATENT)] == [128 * (192 + 128), 576]
    expand = 512 * 128 * (128 + 128)
    around = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 128 * 128 * 7168
    scores = context * 128 * (192 + 128)
    assert specs[EXPANDED].flops(7168, context - 1, 1) == 2 * (around + expand + scores)
    assert specs[LATENT].flops(7168, context - 1, 1) == 2 * (around + context * expand + scores)
    assert specs[ABSORBED].flops(7168, context - 1, 1) == 2 * (around + expand + context * 128 * (576 + 512))


def test_the_variants_share_one_set_of_weights_and_are_no_kinds_of_their_own() -> None:
    spec = next(node for node in zoo.spec("deepseek-v3", tiny=True).walk() if isinstance(node, MLA))
    source = build_block(spec, 64, torch.float32, seed=0)
    for module in modules(spec, source, 64).values():
        shared = {name.removeprefix("mla."): weight for name, weight in module.named_parameters()}
        assert shared.keys() == dict(source.named_parameters()).keys()
        assert all(weight.data_ptr() == shared[name].data_ptr() for name, weight in source.named_parameters())
    assert not {"_Latent", "_Expanded"} & Spec.kinds.keys()
    assert type(variants(spec)[ABSORBED]) is MLA
    assert variants(spec)[ABSORBED] == spec


@pytest.mark.parametrize("variant", [EXPANDED, LATENT, ABSORBED])
def test_only_the_latent_variant_makes_what_it_drops_again(variant: str) -> None:
    spec = next(node for node in zoo.spec("deepseek-v3").walk() if isinstance(node, MLA))
    large = 128 * (128 + 128 + 128 + 64)
    assert (scratch_elements(variant, spec, 1000) >= 1000 * large) == (variant == LATENT)
