"""Which models the words of a command line mean."""

from __future__ import annotations

import pytest

import zoo
from benchmarks.models import published, representatives
from zoo.architectures import families
from zoo.errors import UsageError


def test_no_word_means_all() -> None:
    assert list(published([])) == zoo.names()
    assert list(representatives([])) == list(families())


@pytest.mark.parametrize("family", families())
def test_a_family_means_its_sizes_and_is_measured_as_its_smallest(family: str) -> None:
    assert published([family]) == families()[family].SIZES
    assert published([family.upper().replace("-", "_")]) == published([family])
    (size,) = representatives([family]).values()
    assert size.params == min(size.params for size in families()[family].SIZES.values())


def test_presets_and_hub_ids_mean_one_each_in_the_order_given_and_once() -> None:
    words = ["qwen3-8b", "openai/gpt-oss-20b", "gemma3", "gemma3-1b"]
    first, second, *gemmas = published(words)
    assert (first, second, gemmas) == ("qwen3-8b", "gpt-oss-20b", list(families()["gemma3"].SIZES))
    assert list(representatives(words)) == ["qwen3-8b", "gpt-oss-20b", "gemma3", "gemma3-1b"]


def test_an_unknown_word_is_told_its_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'qwen4'; did you mean qwen3"):
        published(["llama3", "qwen4"])
