"""Which units each rank holds, and that parts of parameters are those of a rank's spec: without processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import zoo
from tests.presets import distinct, over
from zoo.blocks.expert_parallel import expert_parallel
from zoo.catalog import allocate
from zoo.core.collectives import Group
from zoo.errors import SpecError
from zoo.model.parallel import ParallelModel, part_of
from zoo.sharding import Cut, Divide, FirstRankOnly, Rank, cut_of

RELEASED = [
    ("llama3.1-70b", 8),
    ("deepseek-v3-671b", 16),
    ("gpt-oss-120b", 8),
    ("qwen3-next-80b-a3b", 4),
    ("nemotron3-nano-30b-a3b", 8),
    ("granite4-h-tiny", 4),
    ("gemma4-e2b", 8),
]


def group(index: int, ranks: int) -> Group:
    """A rank of a group that no process is of: enough to build its part."""
    return Group("none", Rank(index, ranks))


@pytest.mark.parametrize(("count", "how"), [(12, Divide.EVENLY), (12, Divide.ANY), (13, Divide.ANY)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_hold_all_units_once(count: int, how: Divide, ranks: int) -> None:
    held = [Rank(index, ranks).held(count, how) for index in range(ranks)]
    assert [unit for units in held for unit in units] == list(range(count))
    assert max(map(len, held)) - min(map(len, held)) <= 1


def test_few_units_are_held_by_several_ranks() -> None:
    assert [list(Rank(index, 4).held(2, Divide.REPEATED)) for index in range(4)] == [[0], [0], [1], [1]]
    assert [list(Rank(index, 4).held(8, Divide.REPEATED)) for index in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("count", "how", "ranks"),
    [
        (6, Divide.EVENLY, 4),
        (2, Divide.EVENLY, 4),
        (3, Divide.ANY, 4),
        (3, Divide.REPEATED, 4),
        (6, Divide.REPEATED, 4),
    ],
)
def test_impossible_splits_are_refused_with_the_numbers(count: int, how: Divide, ranks: int) -> None:
    with pytest.raises(SpecError, match=f"heads={count} cannot be divided among {ranks} ranks"):
        Rank(0, ranks).held(count, how, "heads")


@pytest.mark.parametrize("ranks", [2, 4])
@over(distinct())
def test_a_ranks_part_has_the_parameters_of_its_spec(name: str, ranks: int) -> None:
    spec = zoo.spec(name, tiny=True)
    groups = [part.groups for part in spec.parts if isinstance(part, zoo.CompressedAttention)]
    if any(count % ranks for count in groups):  # a toy form has two
        with pytest.raises(SpecError, match="groups=2 cannot be divided among 4 ranks"):
            spec.shard(Rank(0, ranks))
    else:
        assert_parts(spec, ranks)


@pytest.mark.parametrize(("name", "ranks"), RELEASED)
def test_released_sizes_are_divided_among_the_cards_that_they_are_run_on(name: str, ranks: int) -> None:
    """A layer of each kind."""
    spec = zoo.spec(name)
    assert_parts(replace(spec, layers=tuple(dict.fromkeys(spec.layers))), ranks)


@over([name for name in distinct() if expert_parallel(zoo.spec(name)) != zoo.spec(name)])
def test_whole_experts_are_divided_as_their_spec_says(name: str) -> None:
    spec = expert_parallel(zoo.spec(name, tiny=True))
    assert_parts(spec, 2)
    whole, part = zoo.spec(name, tiny=True), spec.shard(Rank(0, 2))
    assert spec.params() == whole.params()
    assert spec.flops(3, 5) == whole.flops(3, 5)
    routed = whole.flop_breakdown(3, 5)["routed"]
    assert part.flop_breakdown(3, 5)["routed"] == pytest.approx(routed / 2, abs=len(whole.layers))


def test_experts_that_do_not_divide_are_refused_with_the_number() -> None:
    spec = expert_parallel(zoo.spec("mixtral-8x7b"))
    with pytest.raises(SpecError, match="experts=8 cannot be divided among 16 ranks"):
        spec.shard(Rank(0, 16))


def assert_parts(spec: zoo.Decoder, ranks: int) -> None:
    """Parts have the shapes of a rank's module, whose formulas count them; together they are the whole, and what is
    held several times is what `cuts` says."""
    whole, cuts = dict(allocate(spec, "meta").named_parameters()), spec.cuts()
    covered = dict.fromkeys(whole, 0)
    for index in range(ranks):
        with torch.device("meta"):
            part = ParallelModel(spec, group(index, ranks))
        own = dict(part.named_parameters())
        assert own.keys() == whole.keys()
        assert sum(each.numel() for each in own.values()) == part.spec.params()
        for name, each in whole.items():
            assert part_of(name, each, cuts, part.group).shape == own[name].shape, name
            covered[name] += own[name].numel()
    for name, each in whole.items():
        cut = cut_of(name, cuts)
        if not isinstance(cut, Cut):
            assert covered[name] == ranks * each.numel()
        elif not any(section.how is Divide.REPEATED and section.units < ranks for section in cut.sections):
            assert covered[name] == each.numel()
    assert any(isinstance(cut_of(name, cuts), Cut) for name in whole)


def test_costs_of_a_rank_are_those_of_its_spec() -> None:
    """The head's and the blocks' FLOPs are divided; keys and values, where each rank has heads of its own."""
    spec = zoo.spec("llama3.1-70b")
    part = spec.shard(Rank(0, 8))
    assert part.flops(1000, 1) * 8 == spec.flops(1000, 1)
    assert part.kv_bytes(4096) * 8 == spec.kv_bytes(4096)
    latent = zoo.spec("deepseek-v3-671b")
    assert latent.shard(Rank(3, 8)).kv_bytes(4096) == latent.kv_bytes(4096)  # every rank keeps the latents


def test_uneven_widths_are_divided_and_heads_are_not() -> None:
    spec = replace(zoo.spec("llama3", tiny=True), vocab=101)
    widths = [spec.shard(Rank(index, 4)).vocab for index in range(4)]
    assert widths == [26, 25, 25, 25]
    with pytest.raises(SpecError, match="heads=4 cannot be divided among 3 ranks"):
        zoo.swap(spec, zoo.GQA, lambda attn: replace(attn, heads=4, kv_heads=2)).shard(Rank(0, 3))


def test_a_bias_after_the_sum_is_added_once() -> None:
    cuts = zoo.spec("gpt2", tiny=True).cuts()
    for name in ("attn.block.o.bias", "ffn.block.down.bias"):
        assert isinstance(cut_of(f"layers.0.{name}", cuts), FirstRankOnly)
    experts = zoo.spec("gpt-oss", tiny=True).cuts()
    assert isinstance(cut_of("layers.0.ffn.block.experts.down_bias", experts), FirstRankOnly)
    assert isinstance(cut_of("layers.0.ffn.block.experts.up_bias", experts), Cut)
