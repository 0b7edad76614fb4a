"""Layer patterns at another depth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.swaps.layer_plan import at_depth, leading_and_period


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
def test_any_pattern(layers: str, depth: int) -> None:
    made = at_depth(layers, depth)
    assert len(made) == depth
    assert len(set(made)) == min(depth, len(set(layers))) or depth < len(set(layers))
    assert set(made) <= set(layers)
    assert at_depth(layers, len(layers)) == tuple(layers)


@given(st.text("AB", max_size=4), st.text("ABC", min_size=1, max_size=5), st.integers(2, 5))
def test_leading_layers_and_what_repeats_are_found(lead: str, period: str, times: int) -> None:
    layers = lead + period * times
    before, length = leading_and_period(layers)
    assert before + length <= len(lead) + len(period)
    assert all(layers[i] == layers[i + length] for i in range(before, len(layers) - length))
