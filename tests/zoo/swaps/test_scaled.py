"""Scaled models: every published size at an equal budget, its composition and its proportions kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zoo
from tests.presets import of_families, over, representatives, screen_of_families
from tests.zoo.swaps.test_tiny import composition
from zoo import GLU, GQA, MLA, Decoder, GroupedSigmoidTopK, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, pre
from zoo.blocks.feed_forward import FeedForward
from zoo.catalog import resolve
from zoo.errors import SpecError, UsageError
from zoo.registry import Mixer, Spec
from zoo.swaps.budget import with_widths
from zoo.swaps.grammar import apply_swaps
from zoo.swaps.proportions import USUAL_HEAD_DIM
from zoo.swaps.scaled import Match, Scaled, at_depth, resolved, scaled

MATCHES: tuple[Match, ...] = ("params", "active", "flops", "kv")
NORM = RMSNorm(1e-5)


@cache
def small(name: str, params: int = 200_000, match: Match = "params") -> Scaled:
    return scaled(zoo.spec(name), params, match=match)


def parts(spec: Spec, kind: type[Any]) -> list[Any]:
    return [part for part in spec.walk() if isinstance(part, kind)]


def unsized(layer: Layer) -> Any:
    """A layer's composition: every kind and switch, without numbers, and without a RoPE's stretching."""
    plain = zoo.swap(layer, RoPE, lambda rope: replace(rope, scaling=None)) if parts(layer, RoPE) else layer
    return composition(zoo.swap(plain, GQA, whole) if parts(plain, GQA) else plain, dim=0)


def whole(attn: GQA) -> GQA:
    """Few heads share one KV head in a small model: GQA is then MQA. `test_heads` says which."""
    return replace(attn, heads=1, kv_heads=1)


@pytest.mark.parametrize("params", [100_000, 2_000_000])
@over(zoo.names(), of_families())
def test_every_size_meets_its_budget(name: str, params: int) -> None:
    met = small(name, params)
    assert abs(met.spec.params() - params) <= params / 100
    assert (
        met.budgets[0].met
        == met.spec.params()
        == sum(p.numel() for p in zoo.build(met.spec, device="meta").parameters())
    )
    assert met.budgets[0].wanted == params
    assert f"{met.spec.params():,} parameters" in met.describe()
    assert len(met.spec.layers) == 6
    assert (met.spec.vocab, met.spec.context) == (256, 256)


@pytest.mark.parametrize("match", MATCHES[1:])
@pytest.mark.parametrize("family", screen_of_families())
def test_other_figures_are_met(family: str, match: Match) -> None:
    met = small(resolve(family), match=match)
    spec = met.spec
    figure = {"active": spec.active_params(), "flops": round(spec.flops(0, 256) / 256), "kv": spec.params()}[match]
    assert met.budgets[-1].met == figure
    assert 100 * abs(figure - met.budgets[-1].wanted) <= met.budgets[-1].wanted
    if match != "kv":
        return
    cache = met.budgets[0]
    assert cache.met == spec.kv_bytes(256)
    assert "bytes of KV cache for 256 tokens" in met.describe()
    for step in (-1, 1):  # no other width is nearer
        other = zoo.swap(spec, Mixer, partial(widened, step=step))
        assert abs(other.kv_bytes(256) - cache.wanted) >= abs(cache.met - cache.wanted)


def widened(attn: Any, step: int) -> Any:
    """Attention with KV heads, or a latent, some steps wider: a head's width is even. A state has no such width."""
    if not isinstance(attn, GQA | MLA):
        return attn
    if isinstance(attn, MLA):
        return replace(attn, kv_rank=attn.kv_rank + step)
    return replace(attn, head_dim=attn.head_dim + 2 * step)


@pytest.mark.parametrize("params", [30_000_000, 1_000_000_000])
@pytest.mark.parametrize("family", screen_of_families())
def test_large_budgets_grow_in_width_and_depth(family: str, params: int) -> None:
    before, spec = small(resolve(family)).spec, small(resolve(family), params).spec
    assert abs(spec.params() / params - 1) <= 0.01
    assert spec.dim > 6 * before.dim
    assert len(spec.layers) == {30_000_000: 12, 1_000_000_000: 30}[params]
    assert spec.layers[:6] != before.layers
    assert zoo.from_hf(zoo.to_hf(spec)) == spec


@pytest.mark.parametrize("params", [200_000, 2_000_000])
@over(zoo.names(), representatives())
def test_a_published_config_describes_it(name: str, params: int) -> None:
    spec = small(name, params).spec
    config = zoo.to_hf(spec)  # of its own model_type, or of another for which it computes the same
    assert zoo.from_hf(config) == spec
    for field in ("layer_types", "no_rope_layers"):
        assert len(config.get(field, spec.layers)) == len(spec.layers)


@over(zoo.names(), representatives())
def test_the_composition_stays(name: str) -> None:
    """Every distinct kind of layer is there, and everything that has no size."""
    full, spec = zoo.spec(name), small(name).spec
    kinds, made = ([unsized(layer) for layer in each.layers] for each in (full, spec))
    assert set(made) == set(kinds)
    assert len(set(spec.layers)) == len(set(full.layers))
    assert made[0] == kinds[0]
    assert (spec.norm, spec.tied) == (full.norm, full.tied)
    assert (spec.embed_scale == spec.dim**0.5, spec.embed_scale == 1) == (
        full.embed_scale == full.dim**0.5,
        full.embed_scale == 1,
    )
    assert not parts(spec, zoo.Scaling)
    reaches = [[layer.cache_spec().reach.limit for layer in each.layers] for each in (full, spec)]
    assert (reaches[0][0] is None) == (reaches[1][0] is None)
    assert all(window is None or 256 / 8 <= window <= 256 for window in reaches[1])
    for attn in parts(spec, GQA) + parts(spec, MLA):
        assert attn.scale is None or round(attn.scale**-2, 6) == round(attn.scale**-2)


@pytest.mark.parametrize("params", [200_000, 2_000_000])
@over([name for name in zoo.names() if parts(zoo.spec(name), GQA)], of_families())
def test_heads(name: str, params: int) -> None:
    full, spec = zoo.spec(name), small(name, params).spec
    kinds = {(type(attn), attn.reach.limit is None): attn for attn in reversed(parts(full, GQA))}  # the first of each
    for after in parts(spec, GQA):
        before = kinds[type(after), after.reach.limit is None]
        first, small_first = parts(full, GQA)[0], parts(spec, GQA)[0]
        if before.heads == first.heads:
            assert after.heads == small_first.heads
            if (before.kv_heads, before.head_dim) != (first.kv_heads, first.head_dim):  # as wide, relative to the first
                assert abs(after.head_dim - small_first.head_dim * before.head_dim / first.head_dim) <= 1
                continue
        ratio, width = before.heads // before.kv_heads, before.heads * before.head_dim / full.dim
        assert after.heads // after.kv_heads == ratio or ratio >= (7 if params == 200_000 else 32)
        if width != 1 or not parts(full, MoE):  # experts of one width may meet the budget at no dim that heads fill
            assert (after.heads * after.head_dim == spec.dim) == (width == 1)
            assert (after.heads * after.head_dim > spec.dim) == (width > 1)
        assert (before.kv_heads == 1) <= (after.kv_heads == 1)
        assert (after.kv_heads == after.heads) == (before.kv_heads == before.heads)
        assert after.head_dim >= 8
        if after.kv_heads == 1 < before.kv_heads:  # two would be narrower than that, or not divide the width
            assert 2 * ratio * USUAL_HEAD_DIM > 0.8 * min(width, 1.5) * spec.dim or spec.dim % (4 * ratio)


@pytest.mark.parametrize("params", [200_000, 2_000_000])
@over([name for name in zoo.names() if parts(zoo.spec(name), MLA)], of_families())
def test_latents_are_relative_to_the_heads(name: str, params: int) -> None:
    full, spec = parts(zoo.spec(name), MLA)[0], parts(small(name, params).spec, MLA)[0]
    dim, unit = small(name, params).spec.dim, spec.nope_dim / full.nope_dim
    assert abs(spec.rope_dim - full.rope_dim * unit) <= 1  # to an even number
    assert (spec.q_rank is None) == (full.q_rank is None)
    for width, before in ((spec.v_dim, full.v_dim), (spec.kv_rank, full.kv_rank), (spec.q_rank or 0, full.q_rank or 0)):
        assert abs(width - min(before * unit, dim)) <= 0.5
    assert spec.scale in (None, (spec.nope_dim + spec.rope_dim) ** -0.5)  # the gain belongs to YaRN, which is dropped


@over([name for name in zoo.names() if parts(zoo.spec(name), MoE)], of_families())
def test_experts(name: str) -> None:
    full, spec = zoo.spec(name), small(name, 2_000_000).spec
    before, after = parts(full, MoE)[0], parts(spec, MoE)[0]
    assert (after.experts, after.router.k) == (min(16, before.experts), 1 if before.router.scales_input else 2)
    assert (after.shared is None) == (before.shared is None)
    if after.shared:
        assert after.shared.width / after.expert.width == before.shared.width / before.expert.width
    dense = [
        [layer.feed_forward.hidden for layer in each.layers if isinstance(layer.feed_forward, GLU)]
        for each in (full, spec)
    ]
    if dense[0]:  # as wide, relative to what a token visits of the experts
        shared = [moe.shared.hidden if moe.shared else 0 for moe in (before, after)]
        visited = [moe.router.k * moe.expert.hidden + more for moe, more in zip((before, after), shared, strict=True)]
        assert dense[1][0] / visited[1] == pytest.approx(dense[0][0] / visited[0], rel=0.05)


def test_rope_keeps_its_longest_wavelength_relative_to_what_it_sees() -> None:
    thetas = {name: {rope.theta for rope in parts(small(name).spec, RoPE)} for name in zoo.names()}
    assert thetas["llama3-8b"] == {float(f"{5e5 * 256 / 8192:.3g}")}
    assert thetas["llama3.1-8b"] == thetas["llama3-8b"]  # the context before its stretching
    assert thetas["gemma3-1b"] == {float(f"{1e6 * 256 / 32768:.3g}"), 1e4 * 32 / 512}  # full, local
    assert thetas["gemma3-4b"] == {float(f"{1e6 * 256 / (131072 / 8):.3g}"), float(f"{1e4 * 32 / 1024:.3g}")}
    assert thetas["gpt-oss-20b"] == {float(f"{1.5e5 * 256 / 4096:.3g}")}  # one for both kinds of layer


SWAPS = [
    "attn=MQA(head_dim=8)",
    "norm=post",
    "rope=NoPE",
    "ffn=GLU(hidden=7)",
    "ffn=MoE(experts=5, router=SoftmaxTopK(k=2))",
]


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("family", screen_of_families())
def test_a_swapped_form_is_solved_again(family: str, swap: str) -> None:
    spec, _ = apply_swaps(small(resolve(family)).spec, [swap])
    again = resolved(spec)
    assert abs(again.spec.params() - 200_000) <= 2000
    assert again.meets
    assert again.spec.dim == spec.dim
    assert [layer.mixer for layer in again.spec.layers] == [layer.mixer for layer in spec.layers]


def test_what_one_width_misses_a_second_meets() -> None:
    spec = small("qwen3-0.6b").spec
    spec = zoo.swap(spec, GLU, lambda ffn: MoE(48, ffn, SoftmaxTopK(k=8)))
    met = resolved(spec)
    widths = [layer.ffn.block.expert.hidden for layer in met.spec.layers]
    assert abs(met.budgets[0].gap) <= 0.03  # a unit of one layer is 4.6 % of the budget
    assert len(set(widths)) == 2
    assert widths == sorted(widths, reverse=True)
    assert max(widths) - min(widths) == 1


@dataclass(frozen=True)
class _Bilinear(FeedForward):
    """(A x) * (B x), with two matrices of (dim, rank), and a third one of (rank, dim)."""

    rank: int
    step: int = 1

    width_field = "rank"

    def check(self) -> None:
        self.require(self.rank > 1, "rank must be at least 2")
        self.require(self.rank % self.step == 0, f"rank must be a multiple of {self.step}")

    def build(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def params(self, dim: int) -> int:
        return 3 * dim * self.rank

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return 2 * new * self.params(dim)

    def describe(self) -> str:
        return f"bilinear of {self.rank}"


class _Unscalable(_Bilinear):
    width_field = "hidden"


@pytest.mark.parametrize("step", [1, 8])
def test_ones_own_feed_forward_is_scaled_to_widths_that_it_allows(step: int) -> None:
    full = zoo.swap(zoo.spec("qwen3"), GLU, _Bilinear(128, step))
    met = scaled(full, 100_000)
    assert met.meets
    assert all(block.rank % step == 0 for block in parts(met.spec, _Bilinear))
    narrow, wide = with_widths(full, 0), with_widths(full, 1)
    assert {block.rank for block in parts(narrow, _Bilinear)} == {max(step, 2)}
    assert wide == full


def test_widths_of_several_feed_forwards_keep_their_ratio_at_the_narrowest() -> None:
    layers = zoo.spec("qwen3").layers[:2]
    wide, wider = (zoo.swap(layer, GLU, _Bilinear(rank)) for layer, rank in zip(layers, (64, 128), strict=True))
    narrow = with_widths(replace(zoo.spec("qwen3"), layers=(wide, wider)), 0)
    assert [block.rank for block in parts(narrow, _Bilinear)] == [2, 4]


def test_a_feed_forward_that_cannot_be_scaled_names_the_way_out() -> None:
    spec = zoo.swap(zoo.spec("qwen3"), GLU, _Unscalable(128))
    with pytest.raises(SpecError, match=r"no field 'hidden': set width_field .* or define width and with_width"):
        scaled(spec, 100_000)


@pytest.mark.parametrize("match", MATCHES)
def test_the_least_budget_is_named_and_is_enough(match: Match) -> None:
    full = zoo.spec("deepseek-v3")
    with pytest.raises(SpecError, match="too few for 6 layers, a vocabulary of 256 and this attention") as refused:
        scaled(full, 3000, match=match)
    least = int(str(refused.value).rpartition("the least is ")[2].partition(" (")[0].replace(",", ""))
    if match in ("params", "active"):
        assert abs(scaled(full, least, match=match).budgets[0].gap) <= 0.01


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"params": 0}, "params=0 is below 1"),
        ({"vocab": 0}, "vocab=0 is below 1"),
        ({"context": 0}, "context=0 is below 1"),
        ({"layers": 0}, "layers=0 is below 1"),
        ({"match": "bytes"}, "match='bytes' must be one of params, active, flops, kv"),
    ],
)
def test_a_wrong_call_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        scaled(zoo.spec("llama3"), **given)


def test_other_vocabularies_contexts_and_depths() -> None:
    spec = scaled(zoo.spec("gemma3"), 1_000_000, vocab=4096, context=1024, layers=2).spec
    assert (spec.vocab, spec.context, len(spec.layers)) == (4096, 1024, 2)
    assert [layer.cache_spec().reach.limit for layer in spec.layers] == [128, None]
    assert abs(spec.params() / 1_000_000 - 1) <= 0.01


@given(
    heads=st.integers(1, 24),
    kv=st.integers(0, 23),
    head_dim=st.sampled_from([8, 64, 128]),
    dim=st.sampled_from([512, 768, 1000]),
    groups=st.sampled_from([None, 1, 2, 8]),
    experts=st.sampled_from([8, 24, 64]),
)
def test_any_model_has_a_scaled_form(
    heads: int, kv: int, head_dim: int, dim: int, groups: int | None, experts: int
) -> None:
    kv_heads = [number for number in range(1, heads + 1) if heads % number == 0][kv % heads % 2 - 1]
    attn = GQA(heads, kv_heads, head_dim, RoPE(1e4))
    reach = experts if groups is None or experts < 2 * groups else experts // groups
    router = SoftmaxTopK(3) if reach == experts else GroupedSigmoidTopK(min(reach, 3), groups or 1, 1, 1.0)
    moe = MoE(experts, GLU(100), router, shared=GLU(150))
    layers = [Layer(pre(NORM, attn), pre(NORM, ffn)) for ffn in (GLU(900), moe)]
    full = Decoder(vocab=1000, dim=dim, layers=(layers[0], *layers[1:] * 9), norm=NORM)
    met = scaled(full, 400_000)
    assert abs(met.budgets[0].gap) <= 0.01
    assert len(set(met.spec.layers)) == 2


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        ("AAAA", 6, "AAAAAA"),
        ("LLLLLF" * 4 + "LL", 6, "LLLLLF"),  # Gemma 3
        ("LLLLLF" * 4 + "LL", 30, "LLLLLF" * 5),
        ("RRRN" * 9, 6, "RRRNRR"),  # SmolLM3
        ("DDD" + "M" * 58, 6, "DMMMMM"),  # DeepSeek-V3: one in twenty is none of six, and at least one
        ("DDD" + "M" * 58, 61, "DDD" + "M" * 58),
        ("DDD" + "M" * 58, 200, "DDD" + "M" * 197),
        ("LLLLLF" * 4 + "LL", 2, "LF"),
        ("AABAAAAA", 6, "ABAAAA"),
        ("DDDM", 2, "DM"),
        ("DM", 1, "M"),
    ],
)
def test_a_pattern_at_another_depth(layers: str, depth: int, expected: str) -> None:
    assert "".join(at_depth(layers, depth)) == expected


@given(st.text("ABC", min_size=1, max_size=12), st.integers(1, 30))
def test_any_pattern_at_any_depth(layers: str, depth: int) -> None:
    made = at_depth(layers, depth)
    assert len(made) == depth
    assert len(set(made)) == min(depth, len(set(layers))) or depth < len(set(layers))
    assert set(made) <= set(layers)
    assert at_depth(layers, len(layers)) == tuple(layers)
