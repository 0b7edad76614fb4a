"""Counting: the formulas against counting one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zoo.costs import BLOCK, CacheSpec, Chunk, Full, Reach, State, Window

LENGTHS = st.integers(0, 40)
REACHES = st.one_of(st.just(Full()), st.builds(Window, st.integers(1, 50)), st.builds(Chunk, st.integers(1, 50)))


@given(past=LENGTHS, new=LENGTHS, reach=REACHES)
def test_pairs_are_the_pairs_that_see_each_other(past: int, new: int, reach: Reach) -> None:
    seen = [(q, k) for q in range(past, past + new) for k in range(past + new) if reach.sees(q, k)]
    assert reach.pairs(past, new) == len(seen)


@given(past=LENGTHS, reach=REACHES)
def test_what_a_reach_sees(past: int, reach: Reach) -> None:
    """All, the last `size`, or those of the own chunk: itself included, and nothing later."""
    size = reach.limit or past + 1
    first = past // size * size if isinstance(reach, Chunk) else max(0, past + 1 - size)
    assert [k for k in range(past + 5) if reach.sees(past, k)] == list(range(first, past + 1))


@given(past=LENGTHS, new=st.integers(1, 40), reach=REACHES)
def test_dense_pairs_hold_every_visible_one(past: int, new: int, reach: Reach) -> None:
    assert reach.dense_pairs(past, new) >= reach.pairs(past, new)
    assert reach.dense_pairs(past, 1) == reach.pairs(past, 1)


@given(past=LENGTHS, reach=REACHES)
def test_a_cache_holds_what_the_next_token_sees(past: int, reach: Reach) -> None:
    """And in a window one key that has just left it."""
    seen = sum(reach.sees(past, k) for k in range(past))
    assert seen <= reach.held(past) <= seen + isinstance(reach, Window)
    assert reach.held(past) <= reach.tokens(past)


@given(
    past=LENGTHS,
    new=st.integers(1, 1200),
    reach=st.one_of(*(st.builds(r, st.integers(1, 700)) for r in (Window, Chunk))),
)
def test_blocks_hold_every_visible_pair_once(past: int, new: int, reach: Reach) -> None:
    """The blocks are the queries in order; each is handed every key that one of its queries sees."""
    held, end = reach.held(past), 0
    for start, stop, first in reach.blocks(held, new):
        assert start == end < stop
        assert first == 0 or first >= held
        assert held == 0 or isinstance(reach, Chunk) or stop - start <= BLOCK
        keys = [past - held + i for i in range(first, held + stop)]  # in a ring in another order
        for query in (past + start, past + stop - 1):
            assert all(k in keys for k in range(max(0, query - 800), query + 1) if reach.sees(query, k))
        end = stop
    assert end == new


@given(window=st.integers(1, 2000), new=st.integers(1, 20_000))
def test_a_long_pass_costs_what_its_windows_cost(window: int, new: int) -> None:
    """Not the square: at most twice the pairs that are seen, and what the first window leaves unseen."""
    reach = Window(window)
    assert reach.dense_pairs(0, new) <= 2 * reach.pairs(0, new) + window * min(new, window)


def test_a_cache_spec_counts_elements_and_tokens() -> None:
    stored = CacheSpec(per_token=(("k", (2, 8)), ("v", (2, 4))), reach=Window(16))
    assert stored.elements() == 24
    assert [stored.tokens(context) for context in (1, 15, 16, 17, 1000)] == [1, 15, 16, 16, 16]
    assert CacheSpec(per_token=stored.per_token).tokens(1000) == 1000


def test_states_are_counted_in_their_own_dtype_and_never_grow() -> None:
    states = State("conv", (6, 3)), State("recurrent", (2, 4, 8), in_float32=True)
    alone = CacheSpec(state=states)
    assert alone.state_bytes(2) == 6 * 3 * 2 + 2 * 4 * 8 * 4
    assert alone.nbytes(1, 2) == alone.nbytes(10**6, 2) == alone.state_bytes(2)
    assert alone.growth(2) == (alone.state_bytes(2), 0)
    both = CacheSpec((("k", (2, 8)),), Window(16), states)
    assert both.growth(2) == (both.state_bytes(2) + 16 * 16 * 2, 0)
    assert CacheSpec((("k", (2, 8)),), state=states).growth(2) == (alone.state_bytes(2), 32)
