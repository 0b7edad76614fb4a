"""The presets of the default tests have all features of the whole registry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import zoo
from tests.presets import cover, distinct, features, of_families, over, representatives, screen, split
from zoo.architectures import families


def shown(names: tuple[str, ...]) -> set[object]:
    return {feature for name in names for feature in features(name)}


def test_the_representatives_show_everything_and_none_is_superfluous() -> None:
    everything = shown(tuple(zoo.names()))
    assert shown(representatives()) == everything
    for name in representatives():
        assert shown(tuple(other for other in representatives() if other != name)) < everything, name


def test_every_family_is_covered_by_its_own() -> None:
    for family, module in families().items():
        mine = tuple(name for name in of_families() if name in module.SIZES)
        assert mine, family
        assert shown(mine) == shown(tuple(module.SIZES)), family


def test_every_kind_of_block_and_layer_of_a_released_model_is_represented() -> None:
    """The features are counted again, by the kinds themselves."""
    for seen in (
        lambda spec: {type(part) for part in spec.walk()},
        lambda spec: {(type(layer.attn), type(layer.mixer), type(layer.ffn)) for layer in spec.layers},
    ):
        every, some = (
            {each for name in names for each in seen(zoo.spec(name))} for names in (zoo.names(), representatives())
        )
        assert every == some


def test_a_cover_takes_what_adds_something() -> None:
    dense, alike, mixed = "qwen3-0.6b", "qwen3-4b", "qwen3-30b-a3b"
    assert cover((dense, alike)) == (dense,)
    assert cover((dense, mixed)) == (dense, mixed)


def test_the_rest_is_slow() -> None:
    marked = {each.values[0]: [mark.name for mark in each.marks] for each in split(["a", "b"], ["b"])}
    assert marked == {"a": ["slow"], "b": []}
    assert [each.values[0] for each in screen()] == list(distinct())
    assert [each.values[0] for each in screen() if not each.marks] == [n for n in distinct() if n in representatives()]


def test_a_test_over_values_reports_each_that_fails_and_runs_those_that_are_named() -> None:
    seen: list[str] = []

    @over(["one", "two", "three"], by_default=["two", "three"])
    def check(name: str) -> None:
        seen.append(name)
        assert name == "two"

    def failing(values: list[str], keywords: str = "") -> str:
        seen.clear()
        options = SimpleNamespace(option=SimpleNamespace(keyword=keywords))
        with pytest.raises(ExceptionGroup) as failed:
            cast(Any, check)(values, SimpleNamespace(config=options))
        return str(failed.value)

    some, rest = cast(Any, check).pytestmark[0].args[1]
    assert (some.values, some.marks) == ((["two", "three"],), ())
    assert (rest.values, [mark.name for mark in rest.marks]) == ((["one"],), ["slow"])
    assert failing(["two", "three", "one"]).startswith("2 of 3: name = 'three', name = 'one'")
    assert seen == ["two", "three", "one"]
    failing(["two", "three"], "THREE and not test_other")
    assert seen == ["three"]
    with pytest.raises(pytest.skip.Exception, match="names none"):
        failing(["two", "three"], "one")
    failing(["two", "three"], "test_other")
    assert seen == ["two", "three"]
