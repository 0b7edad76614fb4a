"""Every released size agrees with its publisher: its parameters, counted in three ways, and its config.json in every
spelling."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest

import zoo
from tests.configs import older, wrapped, wrapped_names
from tests.families import FAMILIES
from tests.models import one_layer_of_each
from tests.presets import over
from tests.reference import facts, published
from zoo.architectures import families
from zoo.catalog import sizes


def test_the_facts_are_complete() -> None:
    """A file of facts holds every size of one architecture, and the tests' facts about an architecture are under its
    name."""
    modules = {module.__name__.rpartition(".")[2]: module for module in families().values()}
    for folder in ("published", "kv_reference"):
        for stem, presets in facts(folder).items():
            assert presets.keys() == modules[stem].SIZES.keys(), f"tests/data/{folder}/{stem}.json"
    assert FAMILIES.keys() <= modules.keys()


@over(zoo.names())
def test_the_formula_the_built_model_and_the_published_total_are_equal(name: str) -> None:
    """One layer of each kind is built; the formula counts all layers."""
    spec = zoo.spec(name)
    few = one_layer_of_each(spec)
    model = zoo.build(few, device="meta")
    assert few.params() == sum(weight.numel() for weight in model.parameters())
    assert spec.params() == sizes()[name].params
    for layer, module in zip(few.layers, model.layers, strict=True):
        assert layer.params(spec.dim) == sum(weight.numel() for weight in module.parameters())


@over(published())
def test_published_totals(name: str) -> None:
    facts, size = published()[name], sizes()[name]
    assert size.hub == facts["repo_id"]
    assert size.params == facts["total_parameters"]


@over(published())
def test_active_parameters(name: str) -> None:
    """In a dense model, all parameters are active. In a mixture of experts, the number is the publisher's, by the
    publisher's rule, if it is published."""
    facts, size, spec = published()[name], sizes()[name], zoo.spec(name)
    ours = spec.active_params()
    routed = any(part.role == "router" for part in spec.walk())
    assert (ours < spec.params()) == routed
    if "active_parameters" not in facts:
        assert size.active is None
        return
    if size.active is not None:
        figure, rule = size.active
        assert rule == "without the input embedding"
        ours -= spec.vocab * spec.dim
        assert figure == ours
    assert ours == facts["active_parameters"] < spec.params()
    billions = float(facts["active_parameters_published"].removesuffix("B"))
    assert ours / 1e9 == pytest.approx(billions, rel=0.02)


@over(published())
def test_the_published_config_is_the_preset(name: str) -> None:
    config = deepcopy(published()[name]["config"])
    assert config["architectures"]
    assert zoo.from_hf(config) == zoo.from_hf(older(name)) == zoo.spec(name) == zoo.spec(sizes()[name].hub)
    assert config == published()[name]["config"], "reading a config changed it"


@over(published())
def test_the_newer_spelling_is_the_same_preset(name: str, tmp_path: Path) -> None:
    """The newer spelling is the config that transformers 5 writes to a folder."""
    from transformers import AutoConfig

    AutoConfig.for_model(**older(name)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    if any(isinstance(part, zoo.RoPE) for part in zoo.spec(name).walk()):
        assert "rope_parameters" in written
        assert "rope_theta" not in written or "compress_rope_theta" in written  # DeepSeek-V4's class has both fields
    assert zoo.from_hf(written) == zoo.spec(name)


@over(wrapped_names())
def test_the_multimodal_wrapper_is_the_same_preset(name: str, tmp_path: Path) -> None:
    """The wrapper is read as published, in the sparse form of Gemma's files, and as transformers 5 writes it."""
    from transformers import AutoConfig

    facts = published()[name]
    for text in filter(None, (facts["config"], facts.get("published_text_config"))):
        assert zoo.from_hf(wrapped(text)) == zoo.spec(name)
        AutoConfig.for_model(**wrapped(text)).save_pretrained(tmp_path)
        assert zoo.from_hf(json.loads((tmp_path / "config.json").read_text())) == zoo.spec(name)
