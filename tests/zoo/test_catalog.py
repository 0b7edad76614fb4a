"""Models by name, and building them."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests.presets import over
from zoo.architectures import families, released
from zoo.catalog import allocate, best_known, counterpart, family_name, resolve, sizes
from zoo.core.devices import allocating
from zoo.errors import NotAvailable, UsageError
from zoo.hf.config import Size


def test_names_are_distinct_and_say_their_family() -> None:
    assert len(set(zoo.names())) == len(zoo.names()) == sum(len(family.SIZES) for family in families().values())
    assert len({size.hub.lower() for size in sizes().values()}) == len(zoo.names())
    assert all(name == name.lower() and "_" not in name for name in zoo.names())


def test_families_are_in_order_of_their_first_release() -> None:
    months = {family: released(module) for family, module in families().items()}
    assert list(months) == sorted(months, key=lambda family: (months[family], family))
    assert months["llama3"] == "2024-04"  # not that of Llama 3.1 or 3.2
    assert zoo.names() == [name for family in families().values() for name in family.SIZES]


@over(families())
def test_a_family_is_known_by_one_of_its_sizes(family: str) -> None:
    module = families()[family]
    assert best_known(family) in module.SIZES
    assert best_known(family) == getattr(module, "BEST_KNOWN", best_known(family))
    assert getattr(module, "BEST_KNOWN", None) != next(iter(module.SIZES)), "which it would be without being said"


def test_a_family_that_says_nothing_is_known_by_its_first_size() -> None:
    assert not hasattr(families()["gpt-oss"], "BEST_KNOWN")
    assert best_known("gpt-oss") == "gpt-oss-20b"
    assert best_known("llama3") == "llama3.1-8b"


@over(families())
def test_a_family_says_where_it_compared_with_and_where_its_report_is(family: str) -> None:
    """Followed back, every family leads to the first; each is compared with one that was released before it."""
    about, known = families()[family].ABOUT, best_known(family)
    assert about.report.startswith("https://")
    assert about.licence
    assert (about.compared_with is None) == (family == next(iter(families())))
    if about.compared_with:
        assert list(families()).index(about.compared_with) < list(families()).index(family)
        assert family_name(counterpart(known) or "") == about.compared_with


def test_a_size_compared_with_one_of_the_most_similar_structure() -> None:
    assert counterpart("qwen3-next-80b-a3b") == "qwen3-30b-a3b"  # which has experts, too
    assert counterpart("gemma3-27b") == "gemma2-27b"
    assert counterpart("gemma3-1b") == "gemma2-2b"
    assert counterpart("gpt2-xl") is None
    for family, module in families().items():
        for name in module.SIZES:
            assert family_name(name) == family
            assert counterpart(name) in (None, *families()[module.ABOUT.compared_with or family].SIZES)


@pytest.mark.parametrize("month", ["2024", "2024-13", "July 2024", "2024-07-23"])
def test_a_size_says_the_month_of_its_release(month: str) -> None:
    with pytest.raises(ValueError, match="is not a month"):
        Size("some/model", 1, zoo.spec("qwen3", tiny=True), released=month)
    with pytest.raises(TypeError, match="released"):
        Size("some/model", 1, zoo.spec("qwen3", tiny=True))  # type: ignore[call-arg]


def test_a_stated_context_is_another_than_the_configs() -> None:
    stated = {name: size.stated_context for name, size in sizes().items() if size.stated_context}
    assert stated["deepseek-v3-671b"] == 131_072
    assert all(sizes()[name].spec.context not in (None, tokens) for name, tokens in stated.items())


@pytest.mark.parametrize("name", families()["olmo2"].SIZES)
def test_the_month_in_the_hub_ids_of_olmo2_is_that_of_the_release(name: str) -> None:
    year, month = sizes()[name].released.split("-")
    assert f"-{month}{year[2:]}-" in sizes()[name].hub


@over(families())
def test_a_family_is_its_smallest_size(family: str) -> None:
    smallest = min(families()[family].SIZES.values(), key=lambda size: size.params)
    assert zoo.spec(family) == sizes().get(family, smallest).spec


@over(zoo.names())
def test_a_preset_goes_by_its_name_and_its_hub_id_in_any_case(name: str) -> None:
    hub = sizes()[name].hub
    for word in (name, name.upper(), name.replace("-", "_"), hub, hub.lower()):
        assert resolve(word) == name
        assert zoo.spec(word) is zoo.spec(name)


@over(zoo.names())
def test_a_misspelt_name_gets_the_nearest(name: str) -> None:
    for wrong in (name + "x", name[:-1] + "_", name.replace("-", "--")):
        if wrong.lower().replace("_", "-") in map(str.lower, [*zoo.names(), *families()]):
            continue
        with pytest.raises(UsageError) as caught:
            zoo.spec(wrong)
        assert f"unknown model {wrong!r}; did you mean " in str(caught.value)
        assert name in str(caught.value)
        assert caught.value.exit_code == 2


def test_a_name_like_no_other_gets_all_families() -> None:
    with pytest.raises(UsageError) as caught:
        zoo.build("")
    assert str(caught.value) == f"unknown model ''; known: {', '.join(sorted(families()))}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_built_as_it_was_asked_for(dtype: torch.dtype) -> None:
    for family in families():
        model = zoo.build(family, tiny=True, dtype=dtype)
        assert not model.training
        assert model.spec == zoo.spec(family, tiny=True)
        exceptions = {name for name, weight in model.named_parameters() if weight.dtype != dtype}
        # Corrections of routers, and what mixes residual streams, stay in float32.
        streams = tuple(f".weights.{part}" for part in ("weight", "bias", "scale"))
        assert all(name.endswith((".correction", *streams)) for name in exceptions)
        assert all(dict(model.named_parameters())[name].dtype == torch.float32 for name in exceptions)
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
    with pytest.raises(RuntimeError), allocating("cpu", dtype):
        raise RuntimeError
    assert torch.get_default_dtype() == before


def test_unknown_and_missing_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown device 'cpuu'; did you mean cpu"):
        zoo.build("qwen3", tiny=True, device="cpuu")
    for device in ("cuda:99", torch.device("cuda:99")):
        with pytest.raises(NotAvailable, match="no device cuda:99 here: "):
            zoo.build("qwen3", tiny=True, device=device)


def test_the_meta_device_allocates_nothing() -> None:
    model = zoo.build("deepseek-v3-671b", device="meta")
    assert all(weight.device.type == "meta" for weight in model.parameters())
    assert model.new_cache(1, 10).layers[0].streams[0].device.type == "meta"
