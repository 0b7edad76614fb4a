"""Every released size is said as its publisher said it; a swapped model is said exactly, or refused by name."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from tests.configs import older
from tests.models import distinct
from tests.reference import published
from tests.swapped import SAYABLE, UNSAYABLE
from zoo.architectures import families
from zoo.errors import SpecError
from zoo.hf.inert_fields import is_inert


def read_back(spec: zoo.Decoder) -> zoo.Decoder:
    """Through a file's text."""
    return zoo.from_hf(json.loads(json.dumps(zoo.to_hf(spec), allow_nan=False)))


@pytest.mark.parametrize("tiny", [False, True], ids=["full", "tiny"])
@pytest.mark.parametrize("name", zoo.names())
def test_reading_undoes_saying(name: str, tiny: bool) -> None:
    spec = zoo.spec(name, tiny)
    assert read_back(spec) == spec
    family = next(module for module in families().values() if name in module.SIZES)
    assert zoo.to_hf(spec)["model_type"] in family.from_hf.model_types


@pytest.mark.parametrize("name", published())
def test_what_the_publisher_says_is_said_alike(name: str) -> None:
    """All but how it was trained and stored, and the width of dense layers where there are none."""
    theirs, ours = older(name), zoo.to_hf(zoo.spec(name))
    idle = {field for field in theirs if is_inert(field)} - {"model_type"}
    idle |= {"intermediate_size"} if "num_experts" in theirs else set()
    shared = theirs.keys() & ours.keys() - idle
    assert len(shared) >= 10
    stretched = theirs.get("rope_scaling") or {}
    for field in stretched.keys() - {"type"}:
        assert ours["rope_scaling"][field] == stretched[field], field
    if stretched:
        assert ours["rope_scaling"]["rope_type"] == stretched.get("type", stretched.get("rope_type"))
        shared -= {"rope_scaling"}
    assert {field: ours[field] for field in shared} == {field: theirs[field] for field in shared}


@pytest.mark.parametrize("name", distinct())
def test_the_reference_knows_the_class(name: str) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    said = zoo.to_hf(zoo.spec(name, tiny=True))
    assert said["architectures"] == [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[AutoConfig.for_model(**said).model_type]]


@pytest.mark.parametrize("swapped", SAYABLE)
def test_a_swap_that_a_config_can_say(swapped: str) -> None:
    model_type, spec = SAYABLE[swapped]
    assert zoo.to_hf(spec)["model_type"] == model_type
    assert read_back(spec) == spec


@pytest.mark.parametrize("swapped", UNSAYABLE)
def test_a_swap_that_none_can_say_is_refused_by_name(swapped: str) -> None:
    spec, nearest, differs = UNSAYABLE[swapped]
    with pytest.raises(SpecError, match="no published config says this model") as refused:
        zoo.to_hf(spec)
    assert f"The nearest, of {nearest}: " in str(refused.value)
    assert differs in str(refused.value)
    assert "\n" not in str(refused.value)


def _values() -> dict[str, list[Any]]:
    """Field name -> all that it is in any tiny model."""
    found: dict[str, dict[Any, None]] = defaultdict(dict)
    for name in distinct():
        for part in zoo.spec(name, tiny=True).walk():
            found |= {f.name: found[f.name] | {getattr(part, f.name): None} for f in fields(part)}
    return {name: list(values) for name, values in found.items()}


VALUES = _values()


@st.composite
def swapped_models(draw: st.DrawFn) -> zoo.Decoder:
    """A tiny model with up to three fields changed, each in all blocks that are equal."""
    spec = zoo.spec(draw(st.sampled_from(distinct())), tiny=True)
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(list(dict.fromkeys(spec.walk()))).filter(fields))
        name = draw(st.sampled_from([field.name for field in fields(part)]))
        held = getattr(part, name)
        options = [st.sampled_from(VALUES[name])]
        if isinstance(held, int) and not isinstance(held, bool):
            options.append(st.integers(1, 300))
        if isinstance(held, float):
            options.append(st.floats(1e-6, 1e6))
        try:
            spec = _replaced(spec, part, replace(part, **{name: draw(st.one_of(options))}))
        except SpecError:  # no such model
            continue
    return spec


def _replaced(spec: Any, old: zoo.Spec, new: zoo.Spec) -> Any:
    return new if spec == old else spec.map(lambda child: _replaced(child, old, new))


@given(swapped_models())
def test_any_model_is_said_exactly_or_refused(spec: zoo.Decoder) -> None:
    try:
        said = zoo.to_hf(spec)
    except SpecError:
        with pytest.raises(SpecError, match=r"The nearest, of \w+: .* is .* here, .* there"):
            zoo.to_hf(spec)
    else:
        assert zoo.from_hf(json.loads(json.dumps(said, allow_nan=False))) == spec
