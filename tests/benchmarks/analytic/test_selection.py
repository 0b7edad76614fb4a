"""The published sizes that a table of all models shows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

import zoo
from benchmarks.analytic import selection
from benchmarks.analytic.models import representatives
from benchmarks.analytic.selection import every_size, matching, one_each, smallest_each
from zoo.architectures import families
from zoo.catalog import resolve, sizes
from zoo.errors import UsageError


def holds(name: str, kind: type[zoo.Spec]) -> bool:
    return any(isinstance(node, kind) for node in sizes()[name].spec.walk())


def test_without_a_filter_everything_is_found() -> None:
    assert matching() == {family: list(module.SIZES) for family, module in families().items()}
    assert every_size(matching()) == zoo.names()
    assert smallest_each(matching()) == list(families())


@pytest.mark.parametrize("month", sorted({size.released for size in sizes().values()}))
def test_a_month_includes_itself_and_all_later_ones(month: str) -> None:
    found = every_size(matching(since=month))
    assert found == [name for name, size in sizes().items() if size.released >= month]
    assert any(sizes()[name].released == month for name in found)


@pytest.mark.parametrize("kind", [zoo.GQA, zoo.MLA, zoo.MoE, zoo.NoPE])
def test_a_block_is_found_in_any_case_where_a_spec_holds_it(kind: type[zoo.Spec]) -> None:
    expected = [name for name in zoo.names() if holds(name, kind)]
    if kind is zoo.GQA:  # MHA and MQA have names of their own
        expected = [
            name
            for name in expected
            if any(isinstance(part, zoo.GQA) and "GQA" in part.names() for part in sizes()[name].spec.walk())
        ]
    if kind is zoo.NoPE:  # GPT-2's attention encodes no positions, its embedding does
        expected = [name for name in expected if not sizes()[name].spec.positions]
    assert expected
    for word in (kind.__name__, kind.__name__.lower(), f" {kind.__name__.upper()}"):
        assert every_size(matching(blocks=[word])) == expected


@pytest.mark.usefixtures("_eight_families")
def test_the_first_words_of_a_name_are_enough() -> None:
    qk_norm = every_size(matching(blocks=["QK-norm"]))
    each = [every_size(matching(blocks=[f"qk_norm per {over}"])) for over in ("head", "projection")]
    assert qk_norm == [name for name in zoo.names() if any(name in names for names in each)]
    assert each[0][0] == "gemma3-270m"
    assert each[1] == [*families()["olmo2"].SIZES]
    with pytest.raises(UsageError, match=r"has 'QK-nor'; did you mean .*QK-norm per head"):
        matching(blocks=["QK-nor"])  # of a word, all


@pytest.mark.usefixtures("_eight_families")
def test_all_conditions_hold_at_once() -> None:
    found = every_size(matching("2025-03", ["SWA", "MQA"]))
    assert found == ["gemma3-270m", "gemma3-1b"]
    assert set(found) < set(every_size(matching("2025-03", ["SWA"])))
    with pytest.raises(UsageError, match="conditions: MLA: deepseek-v3-671b; since 2025-08: gemma3-270m, gpt-oss-20b"):
        matching("2025-08", ["MLA"])


def test_a_line_of_a_family_is_a_size_that_was_found() -> None:
    assert one_each({"qwen3": ["qwen3-4b", "qwen3-8b"]}) == ["qwen3-8b"]  # the best-known one
    assert one_each({"qwen3": ["qwen3-30b-a3b", "qwen3-235b-a22b"]}) == ["qwen3-30b-a3b"]  # the first
    found = {"gemma3": ["gemma3-270m"], "smollm3": ["smollm3-3b"]}
    assert one_each(found) == ["smollm3-3b", "gemma3-270m"]  # 2025-07, 2025-08


@pytest.mark.usefixtures("_eight_families")
def test_what_is_measured_is_a_size_that_was_found() -> None:
    found = matching(blocks=["MoE"])
    assert smallest_each(found) == ["deepseek-v3", "qwen3-30b-a3b", "gpt-oss"]
    assert [model.name for model in representatives(smallest_each(found))] == smallest_each(found)
    assert all(holds(resolve(name), zoo.MoE) for name in smallest_each(found))


def test_a_family_that_is_added_gets_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(sizes()["qwen3-8b"], released="2025-01")
    added = {"mine": SimpleNamespace(SIZES={"mine-1b": size})}
    monkeypatch.setattr(selection, "sizes", lambda: sizes() | {"mine-1b": size})
    monkeypatch.setattr(selection, "families", lambda: families() | added)
    monkeypatch.setattr(selection, "best_known", lambda family: next(iter((families() | added)[family].SIZES)))
    assert matching("2025-01", ["QK-norm"])["mine"] == ["mine-1b"]
    assert one_each(matching(since="2025-01"))[0] == "mine-1b"
