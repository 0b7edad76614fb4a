"""The facts of a size: a number has an explanation if it needs one, and only then."""

from __future__ import annotations

import pytest

import zoo
from benchmarks.analytic.models import one
from benchmarks.gallery.timeline import entries, facts
from tests.presets import over

CONTEXTS = {
    "deepseek-v3-671b": ("The publisher states 131,072 tokens", "Trained on 4,096 tokens first, then extended: YaRN"),
    "lfm2-1.2b": ("The publisher states 32,768 tokens", "this is the config's max_position_embeddings."),
    "llama3.1-8b": ("The max_position_embeddings of the config.", "Trained on 8,192 tokens first"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_published_against_config_context(name: str) -> None:
    assert all(text in facts(one(name))["why_context"] for text in CONTEXTS[name])


def test_what_needs_no_reason_has_none() -> None:
    found = facts(one("qwen3-8b"))
    assert not {found[why] for why in ("why_context", "why_active", "why_cache")} - {""}


def test_an_architecture_has_the_month_of_the_size_that_is_shown() -> None:
    """Kimi K2's family begins with Moonlight, which is five months older."""
    found = {entry.group.name: entry for entry in entries([one(name) for name in zoo.names()])}
    assert all(entry.released == entry.group.typical.size.released for entry in found.values())
    assert found["kimi-k2"].group.typical.name == "kimi-k2-1t"
    assert found["kimi-k2"].released == "2025-07"


@over(zoo.names())
def test_every_size_has_facts(name: str) -> None:
    found = facts(one(name))
    assert all(found[each] for each in ("licence", "report", "released", "hub", "vocabulary"))
