"""Any model that ranks can divide computes the same in parts as it does whole, whatever its blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st

import zoo
from tests.exact import assert_equal
from tests.models import chunks, is_well_conditioned, randomised, tokens_of
from tests.test_properties import decoders, specs
from tests.thread_ranks import ThreadRanks
from zoo.blocks.expert_parallel import expert_parallel
from zoo.core.collectives import Group
from zoo.errors import SpecError
from zoo.model.parallel import divide
from zoo.sharding import Rank


def is_divisible(spec: zoo.Decoder, ranks: int, ep: bool) -> bool:
    try:
        (expert_parallel(spec) if ep else spec).shard(Rank(0, ranks))
    except SpecError:
        return False
    return True


# Of random models, few can be divided.
@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(decoders(), st.sampled_from([2, 3]), st.booleans(), st.integers(0, 2**31))
def test_parts_compute_what_the_whole_computes(spec: zoo.Decoder, ranks: int, ep: bool, seed: int) -> None:
    """The comparison is of a whole pass, and of chunks through a cache."""
    assume(is_divisible(spec, ranks, ep))
    model, tokens = randomised(spec, seed), tokens_of(spec, 2, 12, seed)
    with torch.no_grad():
        expected = model(tokens)
        assume(expected.isfinite().all())
        assume(is_well_conditioned(model, tokens, expected))
    threads = ThreadRanks(ranks)
    parts = [divide(model, Group("threads", Rank(index, ranks)), ep) for index in range(ranks)]

    def in_parts(group: Group) -> list[torch.Tensor]:
        part = parts[group.rank.index]  # made before: building one sets torch's default dtype for all threads
        cache = part.new_cache(2, 12)
        assert cache.nbytes == part.spec.kv_bytes(12, 2, torch.float64)
        return [part(tokens), torch.cat([part(each, cache) for each in chunks(tokens, [5, 1])], dim=1)]

    with threads.connected():
        for found in threads.run(in_parts):
            for logits in found:
                assert_equal(logits, expected)


DIVIDED = [kind for kind in zoo.Spec.kinds.values() if kind.divides and kind is not zoo.Decoder]


@pytest.mark.parametrize("kind", DIVIDED, ids=lambda kind: kind.__name__)
def test_every_block_that_says_how_it_is_divided_is_drawn_divisible(kind: type[zoo.Spec]) -> None:
    """The property above is thus tested for every kind of block."""

    def divides(spec: zoo.Spec) -> bool:
        try:
            return spec.shard(Rank(0, 2)) != spec
        except SpecError:
            return False

    find(specs(kind), divides, settings=settings(max_examples=500, database=None, phases=[Phase.generate]))
