"""The presets that a test runs over: all of `zoo.names()` for cheap checks of every size, few for expensive ones.

The few are computed from the registry: the fewest presets whose tiny specs together show everything that the tiny specs
of all show. The rest is marked slow, so that the time of the default tests grows with what is new, not with sizes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache, wraps
from inspect import signature
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet

import zoo
from zoo.architectures import families

Feature = tuple[str, str, Any]


@cache
def distinct() -> tuple[str, ...]:
    """One preset of each family for each of its distinct tiny specs."""
    first: dict[tuple[str, zoo.Decoder], str] = {}
    for family, module in families().items():
        for name in module.SIZES:
            first.setdefault((family, zoo.spec(name, tiny=True)), name)
    return tuple(first.values())


@cache
def features(name: str) -> frozenset[Feature]:
    """The features of a preset's tiny spec: each kind of block, each of its fields in use, and its value.

    A field holds a kind of spec, a word, a bool, None, or a number that is or is not its default: other numbers are
    sizes, which change no code. Relations between sizes that do are features by themselves.
    """
    spec = zoo.spec(name, tiny=True)
    found = {("Decoder", "kinds of layer", min(len(set(spec.layers)), 2))}
    for part in spec.walk():
        kind = type(part).__name__
        found |= {(kind, field.name, _shown(getattr(part, field.name), field.default)) for field in fields(part)}
        if isinstance(part, zoo.GQA):
            found.add((kind, "shared", "by all" if part.kv_heads == 1 else part.kv_heads < part.heads))
            found.add((kind, "heads fill the width", part.heads * part.head_dim == spec.dim))
    return frozenset(found)


def _shown(value: Any, default: Any) -> Any:
    if isinstance(value, zoo.Spec):
        return type(value).__name__
    if value is None or isinstance(value, bool | str):
        return value
    return "the default" if value == default else type(value).__name__


@cache
def cover(names: tuple[str, ...]) -> tuple[str, ...]:
    """Few of these presets, which together have all features of these, in the order of `names`. They are chosen one by
    one, each adding most features per layer; superfluous ones are then removed."""
    chosen: list[str] = []
    missing = frozenset[Feature]().union(*map(features, names))
    while missing:
        chosen.append(max(names, key=lambda name: len(features(name) & missing) / _layers(name)))
        missing -= features(chosen[-1])
    for name in sorted(chosen, key=_layers, reverse=True):
        others = [other for other in chosen if other != name]
        if features(name) <= frozenset[Feature]().union(*map(features, others)):
            chosen = others
    return tuple(name for name in names if name in chosen)


def _layers(name: str) -> int:
    return len(zoo.spec(name, tiny=True).layers)


def representatives() -> tuple[str, ...]:
    """Few presets that together have all features in the zoo."""
    return cover(distinct())


@cache
def of_families(most: int | None = None) -> tuple[str, ...]:
    """A few presets of each family, at most `most`, that together have all features of the family."""
    covers = (cover(tuple(name for name in distinct() if name in module.SIZES)) for module in families().values())
    return tuple(name for names in covers for name in names[:most])


def split(values: Iterable[Any], chosen: Iterable[Any]) -> list[ParameterSet]:
    """Each value as a test's parameter, marked slow if it is not in `chosen`."""
    chosen = list(chosen)
    return [pytest.param(value, marks=[] if value in chosen else [pytest.mark.slow]) for value in values]


def over(
    values: Iterable[Any], by_default: Iterable[Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test of one value, its first argument, a single test of all values: for checks so short that pytest's own
    work for a test would take longer. It goes on after a failure and reports every value that fails. With `by_default`,
    only those values run by default, and a slow test has the rest. Values that `-k` names run alone."""
    every = list(values)
    chosen = every if by_default is None else [value for value in every if value in set(by_default)]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        argument, *fixtures = signature(test).parameters.values()

        @wraps(test)
        def run(_values: list[Any], request: pytest.FixtureRequest, **given: Any) -> None:
            failures = []
            for value in _named(_values, every, request.config.option.keyword):
                random.seed(0)
                torch.manual_seed(0)
                try:
                    test(value, **given)
                except Exception as failure:
                    failure.add_note(f"{argument.name} = {value!r}")
                    failures.append(failure)
            if failures:
                names = ", ".join(failure.__notes__[-1] for failure in failures)
                raise ExceptionGroup(f"{len(failures)} of {len(_values)}: {names}", failures)

        used = [argument.replace(name=name, annotation=Any) for name in ("_values", "request")]
        run.__signature__ = signature(test).replace(parameters=[*used, *fixtures])  # type: ignore[attr-defined]
        run.__dict__ |= {str(value): None for value in every}  # words that `-k` knows the test by
        sets = [pytest.param(chosen, id="all" if by_default is None else "some")]
        if rest := [value for value in every if value not in chosen]:
            sets.append(pytest.param(rest, id="rest", marks=pytest.mark.slow))
        return pytest.mark.parametrize("_values", sets)(run)

    return decorate


def _named(values: list[Any], every: list[Any], keywords: str) -> list[Any]:
    """The values that an expression of keywords names; all values if it names none."""
    words = {word.lower() for word in re.findall(r"[\w.-]+", keywords)} - {"and", "or", "not"}
    if not any(_is_named(value, words) for value in every):
        return values
    return [value for value in values if _is_named(value, words)] or pytest.skip(f"-k {keywords} names none of these")


def _is_named(value: Any, words: set[str]) -> bool:
    return any(word in str(value).lower() for word in words)


def screen() -> list[ParameterSet]:
    """Every distinct preset, by default the representatives, for tests that depend on blocks and their composition."""
    return split(distinct(), representatives())


def screen_by_family(most: int | None = None) -> list[ParameterSet]:
    """Every distinct preset, by default those that cover their family, at most so many of each: for what depends on the
    architecture's file, as reading configs and naming tensors do. A family's tests share a worker, and with it the
    reference that they build.
    """
    family = {name: family for family, module in families().items() for name in module.SIZES}
    return [
        pytest.param(*each.values, marks=[*each.marks, pytest.mark.xdist_group(family[each.values[0]])])
        for each in split(distinct(), of_families(most))
    ]


def screen_of_families() -> list[ParameterSet]:
    """Every family by its name, by default those that a representative is of."""
    return split(families(), (name for name, module in families().items() if module.SIZES.keys() & representatives()))
