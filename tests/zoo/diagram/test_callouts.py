"""Numbered call-outs, in the figure and below it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.presets import over, representatives
from tests.zoo.diagram.drawing import (
    BASE,
    CALLOUTS,
    classes,
    drawn,
    misplaced,
    parts,
    rects,
    texts,
)
from zoo import names, spec
from zoo.catalog import ancestor
from zoo.diagram import callouts
from zoo.swaps.differences import structure_differences


@pytest.mark.parametrize("layout", ["wide", "narrow"])
def test_callouts_are_numbered_in_the_figure_and_below_it(layout: str) -> None:
    root = drawn(spec("deepseek-v3"), callouts=CALLOUTS, heading="New", layout=layout)
    numbers = Counter(texts(root, "badge-text"))
    assert numbers == {"1": 2, "2": 2, "3": 2, "4": 1, "5": 1}  # 4 is about nothing that is drawn, 5 about no part
    assert "New" in texts(root, "strong")
    listed = " ".join(texts(parts(root)[-2][1]))
    assert all(sentence in listed for _, sentence in CALLOUTS[1:])
    assert not texts(drawn(spec("deepseek-v3"), layout=layout), "badge-text")
    rows = [part for _, part in parts(root) if "1" in texts(part, "badge-text")]
    assert [bool(rects(part, "attn")) for part in rows] == [True, False]  # the branch, the list


def test_callouts_stand_at_what_is_inside_a_block_or_at_the_block() -> None:
    """Of the layers that most are of; what is not drawn inside is said at the block."""
    about = ("attn.rope", "Inside."), ("attn.keys", "Not drawn inside."), ("ffn.router", "No router here.")
    rows = [row for _, row in parts(drawn(spec("gemma3-27b"), callouts=about))]
    (first, second), (ffn, other_ffn) = ([row for row in rows if rects(row, role)] for role in ("attn", "ffn"))
    assert [texts(row, "badge-text") for row in (first, ffn, second, other_ffn)] == [["1", "2"], ["3"], [], []]
    rope, block = (float(each.get("cx")) for each in first.iter() if classes(each) == ["badge"])
    assert rope > 300 > block


@over(names(), representatives())
def test_differences_from_the_ancestor_are_callouts(name: str) -> None:
    """Every sentence is listed, and nearly all have a place in the figure."""
    known = ancestor(name)
    if known is None:
        return
    found = structure_differences(spec(name), spec(known))
    root = drawn(spec(name), callouts=callouts(found))
    assert list(misplaced(root)) == []
    listed = " ".join(texts(parts(root)[-2][1]))
    assert all(each.sentence[1:] in listed for each in found)
    numbers = Counter(texts(root, "badge-text"))
    assert set(numbers) == {str(number) for number in range(1, len(found) + 1)}
    assert set(numbers.values()) <= {2}


def test_without_callouts_there_is_no_list() -> None:
    assert not texts(drawn(BASE), "badge-text")
    assert len(parts(drawn(BASE, callouts=CALLOUTS))) == len(parts(drawn(BASE))) + 1
