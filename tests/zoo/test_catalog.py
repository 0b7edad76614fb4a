"""Models by name, and building them."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo.architectures import families
from zoo.catalog import allocate, resolve, sizes
from zoo.errors import UsageError


def test_names_are_distinct_and_say_their_family() -> None:
    assert len(set(zoo.names())) == len(zoo.names()) == sum(len(family.SIZES) for family in families().values())
    assert len({size.hub.lower() for size in sizes().values()}) == len(zoo.names())
    assert all(name == name.lower() and "_" not in name for name in zoo.names())


@pytest.mark.parametrize("family", families())
def test_a_family_is_its_smallest_size(family: str) -> None:
    smallest = min(families()[family].SIZES.values(), key=lambda size: size.params)
    assert zoo.spec(family) == sizes().get(family, smallest).spec


@pytest.mark.parametrize("name", zoo.names())
def test_a_preset_goes_by_its_name_and_its_hub_id_in_any_case(name: str) -> None:
    hub = sizes()[name].hub
    for word in (name, name.upper(), name.replace("-", "_"), hub, hub.lower()):
        assert resolve(word) == name
        assert zoo.spec(word) is zoo.spec(name)


@pytest.mark.parametrize("name", zoo.names())
def test_a_misspelt_name_gets_the_nearest(name: str) -> None:
    for wrong in (name + "x", name[:-1] + "_", name.replace("-", "--")):
        if wrong.lower().replace("_", "-") in map(str.lower, [*zoo.names(), *families()]):
            continue
        with pytest.raises(UsageError) as caught:
            zoo.spec(wrong)
        assert f"unknown model {wrong!r}; did you mean " in str(caught.value)
        assert name in str(caught.value)
        assert caught.value.exit_code == 2


def test_a_name_like_no_other_gets_them_all() -> None:
    with pytest.raises(UsageError) as caught:
        zoo.build("")
    assert all(name in str(caught.value) for name in zoo.names())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_built_as_it_was_asked_for(dtype: torch.dtype) -> None:
    for family in families():
        model = zoo.build(family, tiny=True, dtype=dtype)
        assert not model.training
        assert model.spec == zoo.spec(family, tiny=True)
        exceptions = {name for name, weight in model.named_parameters() if weight.dtype != dtype}
        assert all(name.endswith(".correction") for name in exceptions)
        assert all(weight.device.type == "cpu" for weight in model.parameters())


def test_a_spec_is_built_like_a_name() -> None:
    spec = zoo.spec("qwen3", tiny=True)
    one, other = zoo.build(spec, seed=5).state_dict(), zoo.build("qwen3", tiny=True, seed=5).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert zoo.build(zoo.spec("qwen3"), tiny=True).spec == spec


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_building_leaves_the_default_dtype_alone(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    allocate(zoo.spec("qwen3", tiny=True), dtype=dtype)
    assert torch.get_default_dtype() == before
    with pytest.raises(RuntimeError):
        allocate(zoo.spec("qwen3", tiny=True), device="no such device", dtype=dtype)
    assert torch.get_default_dtype() == before


def test_the_meta_device_allocates_nothing() -> None:
    model = zoo.build("deepseek-v3-671b", device="meta")
    assert all(weight.device.type == "meta" for weight in model.parameters())
    assert model.new_cache(1, 10).layers[0].streams[0].device.type == "meta"
