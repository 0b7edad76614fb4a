"""Blocks rebuilt in the place of others: fields of every type, and kinds that only this file defines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

import zoo
from tests.presets import over
from tests.unseen import Unseen
from zoo import GLU, GQA, Decoder, Layer, RMSNorm, RoPE, Spec, pre
from zoo.errors import UsageError
from zoo.registry import Block
from zoo.swaps.grammar import apply_swap
from zoo.swaps.rebuild import dropped_features

NORM = RMSNorm(1e-6)


@dataclass(frozen=True)
class _Wide(GLU):
    """A feed-forward with more fields than its base."""

    groups: int = 2
    route: Literal["first", "last"] = "first"


@dataclass(frozen=True)
class _Odd(Unseen):
    """Fields of every type that a spec may have, each with a default."""

    role = "ffn"
    rate: float = 0.5
    width: int = 4
    mode: str = "plain"
    depths: tuple[int, ...] = (1, 2)
    gates: tuple[Spec, ...] = ()
    made: tuple[int, ...] = field(default_factory=tuple)
    inner: GLU | None = None
    ramp: float | None = 0.25
    smooth: bool = True
    deep: bool = False
    qk_norm: RMSNorm | None = None

    def describe(self) -> str:
        return "odd"


@dataclass(frozen=True)
class _Needy(GLU):
    """A feed-forward of no published model, with a field that has no default."""

    hidden: int = 8
    rank: int = field(kw_only=True)


def model(ffn: Block) -> Decoder:
    return Decoder(64, 32, (Layer(pre(NORM, GQA(2, 2, 16, RoPE(1e4))), pre(NORM, ffn)),) * 2, NORM)


def test_a_subclass_lends_only_the_fields_of_its_base() -> None:
    """The subclass stands in the same place, or elsewhere in the model."""
    wide = _Wide(96, bias=True, groups=4)
    after, dropped = apply_swap(model(wide), "ffn=GLU")
    assert after == model(GLU(96, bias=True))
    assert type(after.layers[0].ffn.block) is GLU
    assert dropped == ["groups 4"]
    mixed = replace(model(wide), layers=(model(_Odd()).layers[0], model(wide).layers[0]))
    assert apply_swap(mixed, "ffn=GLU")[0] == model(GLU(96, bias=True))


def test_a_subclass_takes_the_place_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Spec.kinds, "Wide", _Wide)
    after, dropped = apply_swap(model(GLU(96, bias=True)), "ffn=Wide(groups=3)")
    assert after == model(_Wide(96, bias=True, groups=3))
    assert dropped == []


def test_a_missing_field_is_named_unless_it_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Spec.kinds, "Odd", _Odd)
    assert apply_swap(model(GLU(8)), "ffn=Odd(width=3)")[0] == model(_Odd(width=3))
    monkeypatch.setitem(Spec.kinds, "Needy", _Needy)
    with pytest.raises(UsageError, match=r"Needy needs rank: Needy\(rank=\.\.\.\)"):
        apply_swap(model(_Odd()), "ffn=Needy")
    assert apply_swap(model(_Odd()), "ffn=Needy(rank=dim/4)")[0] == model(_Needy(rank=8))


@pytest.mark.parametrize(
    ("values", "dropped"),
    [
        (dict(rate=0.25), ["rate 0.25"]),
        (dict(width=2_097_152), ["width 2097152"]),
        (dict(mode="rotated"), ["mode rotated"]),
        (dict(depths=(3, 4, 5)), ["depths 3, 4, 5"]),
        (dict(gates=(GLU(4), NORM)), ["gates SwiGLU, width 4, RMSNorm, eps 1e-06"]),
        (dict(made=(7,)), ["made 7"]),
        (dict(inner=GLU(4)), ["inner"]),
        (dict(ramp=None), ["no ramp"]),
        (dict(smooth=False), ["no smooth"]),
        (dict(deep=True), ["deep"]),
        (dict(qk_norm=NORM), ["qk norm"]),  # the term for GQA's names a field that this kind has not
        (dict(), []),
    ],
    ids=str,
)
def test_a_dropped_feature_of_any_type_is_named(values: dict[str, Any], dropped: list[str]) -> None:
    assert list(dropped_features(_Odd(**values), RMSNorm(1.0))) == dropped


@over(zoo.names())
def test_every_option_of_a_preset_can_be_dropped(name: str) -> None:
    """Names of dropped options exclude the facts that a kind of block always states."""
    spec = zoo.spec(name)
    dropped = set(dropped_features(spec, NORM))
    assert all(text.isprintable() and "{" not in text for text in dropped)
    assert ("tied head" in dropped) == spec.tied
    assert ("sinks" in dropped) == any(getattr(node, "sinks", False) for node in spec.walk())
