"""Specs: what they refuse, how they are walked and swapped, and the registry of their kinds."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import zoo
from tests.presets import over
from zoo import GLU, GQA, MLA, Branch, GroupedSigmoidTopK, Layer, MoE, NoPE, PostNorm, RMSNorm, RoPE, SoftmaxTopK, pre
from zoo.errors import SpecError
from zoo.registry import Block, Mixer

NORM = RMSNorm(1e-5)
GQA_ = GQA(heads=4, kv_heads=2, head_dim=8, rope=RoPE(1e4))
MLA_ = MLA(heads=4, q_rank=None, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8, norm=NORM, rope=RoPE(1e4))
LAYER = Layer(pre(NORM, GQA_), pre(NORM, GLU(16)))
ROUTER = GroupedSigmoidTopK(k=2, groups=4, keep=2, scale=1.0)

# One spec of each kind that a released model has, and of those that none has.
EXAMPLES: dict[str, zoo.Spec] = {
    type(part).__name__: part for name in zoo.names() for part in (*zoo.spec(name).walk(), PostNorm(GLU(16), NORM))
}


def refusal(make: Callable[[], Any]) -> str:
    """The error for an impossible spec."""
    with pytest.raises(SpecError) as caught:
        make()
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_kind_is_in_the_table_and_in_the_package() -> None:
    assert {name for name, kind in zoo.Spec.kinds.items() if kind.__name__ != name} == set()
    assert EXAMPLES.keys() <= zoo.Spec.kinds.keys()
    for name, kind in zoo.Spec.kinds.items():
        assert getattr(zoo, name) is kind
        assert name in dir(zoo)
        assert not getattr(kind, "__abstractmethods__", None), f"{name} cannot be made"
    assert not {"Spec", "Block", "Mixer", "Router", "Activation", "Position", "Scaling"} & zoo.Spec.kinds.keys()


def test_editors_and_type_checkers_see_every_kind() -> None:
    tree = ast.parse(Path(zoo.__file__).read_text(encoding="utf-8"))
    listed = {each.asname for node in tree.body if isinstance(node, ast.ImportFrom) for each in node.names}
    assert zoo.Spec.kinds.keys() <= listed


def test_a_private_kind_stays_out_of_the_table() -> None:
    @dataclass(frozen=True)
    class _Hidden(zoo.Spec):
        width: int

        def describe(self) -> str:
            return f"hidden {self.width}"

    assert "_Hidden" not in zoo.Spec.kinds
    assert "width must be a positive integer, not 0" in refusal(lambda: _Hidden(0))


WRONG: dict[type, tuple[Any, ...]] = {
    int: (0, -1, True, 2.0, "3", float("nan"), [4]),
    float: (0, -1.0, True, "1", float("nan"), float("inf"), 10**400, 1j),
    bool: (0, 1, "yes"),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_field_of_another_type_or_out_of_range_is_refused(kind: str) -> None:
    spec = EXAMPLES[kind]
    hints = get_type_hints(type(spec))
    for field in fields(spec):
        kinds = set(get_args(hints[field.name])) or {hints[field.name]}
        wrong = next((WRONG[kind] for kind in kinds if kind in WRONG), ("no spec", 1.5, object(), (spec,)))
        for value in wrong:
            message = refusal(lambda field=field, value=value: replace(spec, **{field.name: value}))
            assert message.startswith(f"{kind}: {field.name} must be ")


@pytest.mark.parametrize("kind", EXAMPLES)
def test_none_is_for_optional_fields_alone(kind: str) -> None:
    spec = EXAMPLES[kind]
    hints = get_type_hints(type(spec))
    for field in fields(spec):
        if type(None) not in get_args(hints[field.name]):
            assert f"{field.name} must be " in refusal(lambda field=field: replace(spec, **{field.name: None}))


# Part of the error -> a spec that describes no model.
IMPOSSIBLE: dict[str, Callable[[], Any]] = {
    "GQA: kv_heads=3 must divide heads=4": lambda: replace(GQA_, kv_heads=3),
    "GQA: kv_heads=8 must divide heads=4": lambda: replace(GQA_, kv_heads=8),
    "GQA: head_dim=7 must be even": lambda: replace(GQA_, head_dim=7),
    "GQA: qk_norm_over must be 'head' or 'projection', not 'both'": lambda: replace(GQA_, qk_norm_over="both"),
    "GQA: rope must be Position, such as NoPE(), not RMSNorm": lambda: replace(GQA_, rope=NORM),
    "MLA: rope_dim=5 must be even": lambda: replace(MLA_, rope_dim=5),
    "RoPE: theta=1 must be above 1": lambda: RoPE(1),
    "Llama3Scaling: low=4.5 is above high=4.0": lambda: zoo.Llama3Scaling(8, 64, low=4.5),
    "SoftmaxTopK: k=5 is above the 4 experts": lambda: MoE(4, GLU(8), SoftmaxTopK(5)),
    "groups=4 must divide the 10 experts": lambda: MoE(10, GLU(8), ROUTER),
    "groups=4 leave fewer than 2 of 4 experts in each": lambda: MoE(4, GLU(8), ROUTER),
    "k=5 is above the 4 experts in 2 groups": lambda: MoE(8, GLU(8), replace(ROUTER, k=5)),
    "keep=5 is above groups=4": lambda: replace(ROUTER, keep=5),
    "MoE: expert must be FeedForward, not RMSNorm": lambda: MoE(4, NORM, SoftmaxTopK(2)),
    "Layer: attn must be Placement or None, not GQA": lambda: Layer(GQA_, pre(NORM, GLU(8))),
    "attn must hold a mixer such as GQA, not GLU": lambda: Layer(LAYER.ffn, LAYER.ffn),
    "ffn must hold no mixer, not GQA": lambda: Layer(LAYER.attn, LAYER.attn),
    "ffn must hold no mixer, not MLA": lambda: Layer(LAYER.attn, Branch(Layer(pre(NORM, MLA_), LAYER.ffn))),
    "Decoder: a model needs at least one layer": lambda: zoo.Decoder(9, 8, (), NORM),
    "Decoder: layers must be a tuple of Layer, not list": lambda: zoo.Decoder(9, 8, [LAYER], NORM),
    "Decoder: layers must be a tuple of Layer, not tuple": lambda: zoo.Decoder(9, 8, (LAYER, NORM), NORM),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_an_impossible_spec_is_refused_with_the_reason(message: str) -> None:
    assert message in refusal(IMPOSSIBLE[message])


@over(zoo.names())
def test_equal_specs_are_equal_and_hash_equal(name: str) -> None:
    spec = zoo.spec(name)
    again, other = _rebuilt(spec), _rebuilt(spec)
    assert again.params() > 0  # what a spec keeps of itself is no part of its hash
    assert hash(again) == hash(other)
    assert again is not spec
    assert again == spec
    assert hash(again) == hash(spec)
    assert len({spec, again, zoo.spec(name, tiny=True)}) == 2


def _rebuilt(spec: zoo.Spec) -> zoo.Spec:
    """An equal spec, every part of it made anew."""

    def anew(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(anew, value))
        return _rebuilt(value) if isinstance(value, zoo.Spec) else value

    return type(spec)(**{field.name: anew(getattr(spec, field.name)) for field in fields(spec)})


@pytest.mark.parametrize("kind", EXAMPLES)
def test_specs_are_frozen_and_describe_themselves_on_one_line(kind: str) -> None:
    spec = EXAMPLES[kind]
    for field in fields(spec):
        with pytest.raises(FrozenInstanceError):
            setattr(spec, field.name, None)
    assert spec.describe().isprintable()


def test_walk_is_outermost_first() -> None:
    assert list(LAYER.walk()) == [LAYER, LAYER.attn, GQA_, GQA_.rope, NORM, LAYER.ffn, GLU(16), GLU(16).act, NORM]
    assert [name for name, _ in LAYER.children()] == ["attn", "ffn"]
    assert [name for name, _ in zoo.spec("llama3", tiny=True).children()] == ["layers", "layers", "norm"]


def test_map_hands_back_the_same_spec_when_nothing_changes() -> None:
    assert LAYER.map(lambda part: part) is LAYER
    assert LAYER.map(lambda part: replace(part)) is LAYER


@over(zoo.names())
def test_swapping_a_spec_for_itself_changes_nothing(name: str) -> None:
    spec = zoo.spec(name)
    held = {type(part) for part in spec.walk()}
    for kind in (Block, Mixer, GQA, MLA, MoE, GLU, RMSNorm, NoPE, RoPE):
        if any(issubclass(each, kind) for each in held):
            assert zoo.swap(spec, kind, lambda part: part) == spec
        else:
            message = refusal(lambda kind=kind: zoo.swap(spec, kind, lambda part: part))
            only = ", ".join(sorted(each.__name__ for each in held))
            assert message == f"nothing to swap: no {kind.__name__} here, only {only}"


@over(zoo.names())
def test_swap_replaces_every_one_and_leaves_the_original(name: str) -> None:
    spec = zoo.spec(name)
    before = hash(spec)
    kind = type(spec.norm)
    changed = zoo.swap(spec, kind, lambda norm: replace(norm, eps=0.5))
    assert {part.eps for part in changed.walk() if isinstance(part, kind)} == {0.5}
    assert zoo.swap(changed, kind, spec.norm).norm == spec.norm
    assert len(list(changed.walk())) == len(list(spec.walk()))
    assert hash(spec) == before
    assert zoo.spec(name) is spec


def test_swap_replaces_the_outermost_alone() -> None:
    seen: list[zoo.Spec] = []

    def into(glu: GLU) -> MoE:
        seen.append(glu)
        return MoE(experts=8, expert=glu, router=SoftmaxTopK(2))

    moe = zoo.swap(LAYER, GLU, into).ffn.block
    assert moe == MoE(8, GLU(16), SoftmaxTopK(2))
    assert seen == [GLU(16)]
    assert zoo.swap(moe, MoE, lambda outer: replace(outer, experts=4)) == replace(moe, experts=4)
    assert zoo.swap(moe, Block, GLU(3)) == GLU(3)


def test_a_swap_that_makes_no_model_is_refused() -> None:
    assert "rope must be Position, such as NoPE(), not RMSNorm" in refusal(lambda: zoo.swap(LAYER, RoPE, NORM))
    assert "must divide" in refusal(lambda: zoo.swap(LAYER, GQA, lambda attn: replace(attn, kv_heads=3)))
    assert "attn must hold a mixer" in refusal(lambda: zoo.swap(LAYER, GQA, GLU(8)))
