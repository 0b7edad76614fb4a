"""Weights in their released format: the bytes equal those of the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from benchmarks.analytic.kv import InferenceConfig, fit_row
from benchmarks.analytic.models import NamedSpec, one, swapped
from benchmarks.analytic.roofline import device, flop_row
from benchmarks.analytic.weight_forms import (
    BFLOAT16,
    FOUR_BIT,
    PACKED,
    PLAIN,
    RELEASED,
    RELEASED_DATA,
    WeightForm,
    config_form,
    released_form,
)
from benchmarks.options import InferenceOptions, parse_weights
from tests.presets import of_families, over
from zoo.errors import UsageError

PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "published"
# total_size in the model.safetensors.index.json of each repository.
FILE_BYTES = {"gpt-oss-20b": 13_761_264_768, "gpt-oss-120b": 65_248_815_744}
# Elements in DeepSeek-V3's repository by dtype, as the Hub counts them, including the multi-token prediction layer.
DEEPSEEK_FP8_ELEMENTS = 680_571_043_840


def published_configs() -> dict[str, Any]:
    files = sorted(PUBLISHED.glob("*.json"))
    return {name: facts["config"] for path in files for name, facts in json.loads(path.read_text("utf-8")).items()}


@pytest.mark.parametrize("name", FILE_BYTES)
def test_bytes_equal_those_of_the_published_files(name: str) -> None:
    assert released_form(name).model_bytes(zoo.spec(name)) == FILE_BYTES[name]


def test_elements_in_fp8_equal_those_of_the_published_files() -> None:
    """All elements of DeepSeek-V3 are counted; the files have one more layer of the last kind, for multi-token
    prediction."""
    spec, counted = zoo.spec("deepseek-v3"), PACKED["fp8"]
    branches = [(layer.attn, layer.ffn) for layer in (*spec.layers, spec.layers[-1])]
    flat = [branch for pair in branches for branch in pair if branch]
    packed = sum(2 * branch.params(spec.dim) - _without_scales(counted, branch, spec.dim) for branch in flat)
    assert packed == DEEPSEEK_FP8_ELEMENTS


def _without_scales(form: Any, branch: Any, dim: int) -> int:
    """Bytes of a branch: one for each packed element, two for each other element."""
    with torch.device("meta"):
        shapes = [tuple(each.shape) for each in branch.build(dim).parameters()]
    plain = form.branch_bytes(branch, dim)
    blocks = {(rows, columns): -(-rows // 128) * -(-columns // 128) for *_, rows, columns in filter(_is_matrix, shapes)}
    stacked = [(torch.Size(shape[:-2]).numel(), shape[-2:]) for shape in shapes if _is_matrix(shape)]
    routers = [each for count, each in stacked if count == 1 and 256 in each and 7168 in each]
    return int(plain - 4 * sum(count * blocks[each] for count, each in stacked if each not in routers))


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1


@over(zoo.names(), of_families())
def test_every_form_of_every_model(name: str) -> None:
    """The bytes in a dtype are its size times the parameters. Fewer bits give fewer bytes. A pass reads at most all
    bytes."""
    spec = zoo.spec(name)
    for dtype, form in PLAIN.items():
        assert form.model_bytes(spec) == spec.params() * dtype.itemsize
        assert read_bytes(form, spec, 1) == pytest.approx(spec.read_params(1) * dtype.itemsize)
    assert spec.params() / 2 < FOUR_BIT.model_bytes(spec) < BFLOAT16.model_bytes(spec)
    form = released_form(name)
    assert 0 < read_bytes(form, spec, 1) <= read_bytes(form, spec, 64) <= form.model_bytes(spec) + 1


def read_bytes(form: WeightForm, spec: zoo.Decoder, tokens: int) -> float:
    """The bytes of the weights that a pass of so many sequences reads, one token each."""
    return float(InferenceConfig(tokens, form).costs(spec, 0, 1).total.weight_bytes)


def test_released_forms_are_those_of_the_published_configs() -> None:
    """Where a published config names a scheme, or float32, so does the list; all names on the list are presets."""
    names = json.loads(RELEASED_DATA.read_text("utf-8"))
    assert {*names} <= {*zoo.names()}
    configs = published_configs()
    said = {name: config for name, config in configs.items() if config.get("quantization_config")}
    assert len(said) > 2
    for name, config in said.items():
        assert config_form(config) == released_form(name)
    for name, config in configs.items():
        if config.get("torch_dtype") == "float32":
            assert released_form(name) == PLAIN[torch.float32]


def test_the_form_of_a_folder_is_that_of_its_config() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert config_form({"quantization_config": fp8}).name == "fp8"
    assert config_form({"quantization_config": fp8, "expert_dtype": "fp4"}).name == "mxfp4+fp8"
    assert config_form({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}).name == "mxfp4"
    assert config_form({"torch_dtype": "float32"}).name == "float32"
    assert config_form({"torch_dtype": "int3"}) == config_form({}) == BFLOAT16


def test_gpt_oss_fits_one_card_as_released() -> None:
    """In bfloat16 it does not fit. The ceiling uses the released bytes, too."""
    model, released = one("gpt-oss-120b"), InferenceConfig(weights=RELEASED)
    row = fit_row(model, 80 * 10**9, released)
    assert (row["weights_dtype"], row["weight_bytes"], row["limit"]) == ("mxfp4", 65_248_815_744, "context")
    assert fit_row(model, 80 * 10**9, InferenceConfig())["limit"] == "weights"
    narrow, wide = (flop_row(model, "decode", 4096, each, device("h100")) for each in (released, InferenceConfig()))
    assert (narrow["fits"], wide["fits"]) == (True, False)
    assert narrow["weight_bytes_read"] < 0.6 * wide["weight_bytes_read"]
    assert narrow["flops"] == wide["flops"]


def test_a_swapped_model_keeps_the_form() -> None:
    changed = swapped(one("gpt-oss-20b"), ["MoE(experts=8)"])
    assert changed.released_form.name == "mxfp4"
    assert NamedSpec("mine", one("gpt-oss-20b").spec).released_form == BFLOAT16


def test_forms_on_the_command_line() -> None:
    assert parse_weights("released") is RELEASED
    assert parse_weights("4bit") is parse_weights("4-bit") is FOUR_BIT
    assert parse_weights("fp8") == PLAIN[torch.float8_e4m3fn]
    assert InferenceOptions(weights=PLAIN[torch.float32]).dtype() == torch.float32
    for form in (RELEASED, FOUR_BIT, PLAIN[torch.float8_e4m3fn]):
        with pytest.raises(UsageError, match="for storing only"):
            InferenceOptions(weights=form).dtype()
