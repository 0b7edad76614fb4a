"""Every field of every block has mutants: by its annotation, or by its name in tests/mutants.py."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import pytest

import zoo
from tests.mutants import changes, known, mutants
from tests.presets import over

FIELDS = [(kind, field.name) for kind in zoo.Spec.kinds.values() for field in fields(kind)]


@dataclass(frozen=True)
class _Odd(zoo.Spec):
    """A kind that tests/mutants.py does not know."""

    stride: int = 4
    causal: bool = True
    side: Literal["left", "right", "both"] = "left"
    slope: float = 0.5
    reach: int | None = 8
    decay: float | None = 0.25
    unset: float | None = None
    heads: int = 2

    def describe(self) -> str:
        return f"stride {self.stride}"


@over(FIELDS)
def test_every_field_of_every_block_has_its_changes(field: tuple[type[zoo.Spec], str]) -> None:
    kind, name = field
    assert known(kind, name) is not None, f"add the other values of {kind.__name__}.{name} to tests/mutants.py"


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("causal", [False]),
        ("side", ["right", "both"]),
        ("slope", [1.0]),
        ("reach", [None]),
        ("decay", [None, 0.5]),
        ("unset", []),
        ("heads", []),
    ],
)
def test_an_unknown_field_is_changed_by_its_annotation(name: str, others: list[object]) -> None:
    assert changes(_Odd(), name) == others


def test_an_unknown_field_without_a_telling_annotation_is_an_error() -> None:
    with pytest.raises(
        AssertionError, match=r"no mutant changes _Odd\.stride: add its other values to tests/mutants\.py"
    ):
        changes(_Odd(), "stride")


def test_changes_that_make_no_model_are_an_error() -> None:
    @dataclass(frozen=True)
    class _Fixed(zoo.RMSNorm):
        steady: bool = True

        def check(self) -> None:
            self.require(self.steady, "nothing else is possible")

    spec = zoo.spec("llama3", tiny=True)
    spec = zoo.swap(spec, zoo.RMSNorm, _Fixed(1e-5))
    with pytest.raises(AssertionError, match=r"_Fixed\.steady: none of \[False\] makes a model"):
        list(mutants(spec))
