"""Packed weights (FP8, FP4, MXFP4) are unpacked bit by bit; damaged ones, and other schemes, are refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weights
from tests.exact import assert_equal
from tests.reference import exact_logits
from tests.weights.checkpoints import Config, Tensors, read, write
from tests.weights.packers import (
    FP4_NAMES,
    FP8_CONFIG,
    fp4,
    fp4_numbers,
    fp8,
    fp8_numbers,
    mxfp4_numbers,
    pack_fp4,
    pack_fp8,
    packed_toy,
)
from weights.formats.fp8_mxfp4 import FP4, FP8, MXFP4, PackedFormat
from weights.formats.hf_folder import HFFolder
from weights.matching import Part, StoredTensor
from zoo.errors import MalformedError

Form = tuple[Config, Tensors, Tensors]  # config, stored tensors, the same unpacked
Forms = Callable[[str], Form]
FP8_LAYERS = 5
# No side but one is a multiple of 128, and each matrix has more than one block: kv_a_proj has 144 + 16 rows.
FP8_WIDTHS = dict(hidden_size=136, intermediate_size=256, moe_intermediate_size=132, q_lora_rank=140, kv_lora_rank=144)
DESCRIPTIONS = {"fp8": "fp8 e4m3, a scale for each 128 x 128", "mxfp4": "mxfp4, a scale for each 32"}
DESCRIPTIONS |= {"fp4": "fp4 e2m1, a scale for each 32 of a row"}


@pytest.fixture(scope="module")
def forms(saved: Callable[[str], Path]) -> Forms:
    """The toy forms of DeepSeek-V3 in fp8, gpt-oss in MXFP4, and DeepSeek-V4, with experts in fp4."""

    @cache
    def make(format: str) -> Form:
        if format == "fp8":
            return with_prediction_layer(*packed_toy("deepseek-v3-671b", FP8_LAYERS, **FP8_WIDTHS))
        if format == "mxfp4":
            return packed_toy("gpt-oss-20b", 4)
        config, tensors = read(saved("deepseek-v4-flash-284b"))
        said = {"expert_dtype": "fp4", "quantization_config": FP8_CONFIG | {"scale_fmt": "ue8m0"}}
        released = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        return config | said | {"torch_dtype": "float32"}, *pack_fp4(released)

    return make


def with_prediction_layer(config: Config, *forms: Tensors) -> Form:
    """Adds a packed multi-token prediction layer after the last layer; it is not read."""
    last, next_ = (f"layers.{layer}." for layer in (FP8_LAYERS - 1, FP8_LAYERS))
    both = (form | {name.replace(last, next_): value for name, value in form.items() if last in name} for form in forms)
    return config, *both


def matrices(form: Form, dtype: torch.dtype) -> int:
    return sum(tensor.dtype == dtype for tensor in form[1].values())


def random(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


BYTES = torch.arange(256, dtype=torch.uint8)
HALVES = BYTES.view(torch.int8).view(16, 16)
# Codes and scales: random ones of whole and partial blocks, each code, each code under each scale but the last.
NUMBERS: list[tuple[PackedFormat, tuple[Tensor, Tensor], Callable[..., Tensor]]] = [
    *((FP8(), fp8(random(shape)), fp8_numbers) for shape in ((1, 1), (128, 128), (129, 127), (127, 513))),
    (FP8(), (BYTES.view(torch.float8_e4m3fn).repeat(2, 1), torch.tensor([[0.3, 7.0]])), fp8_numbers),
    *((FP4(), fp4(random(shape)), fp4_numbers) for shape in ((1, 32), (3, 64), (128, 320))),
    *(
        (FP4(), (HALVES, torch.full((16, 1), power, dtype=torch.uint8).view(torch.float8_e8m0fnu)), fp4_numbers)
        for power in range(0, 255, 10)
    ),
    (
        MXFP4(),
        (BYTES.view(1, 1, 16, 16).expand(1, 255, 16, 16).contiguous(), BYTES[:255].view(1, -1, 1).repeat(1, 1, 16)),
        mxfp4_numbers,
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_exact(dtype: torch.dtype) -> None:
    """They are compared with float64, rounded to float32 and then, as DeepSeek does, to the dtype. Two of FP8's codes
    are NaN."""
    for packing, (codes, scales), exact in NUMBERS:
        numbers = packing.unpack(codes, scales, dtype)
        expected = exact(codes, scales).float().to(dtype)
        torch.testing.assert_close(numbers, expected, rtol=0, atol=0, equal_nan=True)
        assert packing.unpacked_shape(codes.shape) == numbers.shape
        assert packing.scales_shape(codes.shape) == scales.shape


def test_the_last_scale_is_nan() -> None:
    last = torch.tensor([[255]], dtype=torch.uint8)
    codes = torch.full((1, 16), 0x22, dtype=torch.int8)
    assert FP4().unpack(codes, last.view(torch.float8_e8m0fnu), torch.float32).isnan().all()
    assert MXFP4().unpack(codes.view(torch.uint8).view(1, 1, 1, 16), last[None], torch.bfloat16).isnan().all()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
@pytest.mark.parametrize("format", DESCRIPTIONS)
def test_parameters_are_those_of_the_unpacked_checkpoint(
    format: str, dtype: str, forms: Forms, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are equal bit by bit, in every dtype: no value is rounded twice. gpt-oss's bf16 layout is transposed."""
    config, stored, numbers = forms(format)
    with caplog.at_level(logging.INFO, "weights"):
        found = weights.load(write(tmp_path / "packed", config, stored, shards=3), dtype=dtype).state_dict()
    plain = {field: value for field, value in config.items() if field not in ("quantization_config", "expert_dtype")}
    expected = weights.load(write(tmp_path / "plain", plain, numbers), dtype=dtype).state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name
    count = matrices(forms(format), {"fp8": FP8, "mxfp4": MXFP4, "fp4": FP4}[format].dtype)
    count //= 2 if format == "mxfp4" else 1  # its scales are bytes too
    assert count
    assert f"{count} packed tensors ({DESCRIPTIONS[format]}) are unpacked as they are read" in caplog.text
    if format == "fp8":
        beside = sum(f"layers.{FP8_LAYERS}." in name and not name.endswith("_scale_inv") for name in stored)
        assert f"left alone: {beside} tensors, the multi-token prediction layer" in caplog.text


@torch.no_grad()
def test_the_reference_reads_the_same_folder(forms: Forms, tmp_path: Path) -> None:
    """transformers unpacks MXFP4 on the CPU and computes the same logits."""
    from transformers import AutoModelForCausalLM, Mxfp4Config

    config, stored, _ = forms("mxfp4")
    folder = write(tmp_path / "x", config, stored)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", quantization_config=Mxfp4Config(dequantize=True)
    )
    tokens = torch.randint(0, config["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))
    plain = {field: value for field, value in config.items() if field != "quantization_config"}
    assert_equal(weights.load(folder, dtype=torch.float64)(tokens), exact_logits(plain, reference, tokens))


def test_any_family_may_be_packed(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Qwen3's fp8 releases have the same form, with scales in bfloat16."""
    config, tensors = read(saved("qwen3-4b"))
    stored, _ = pack_fp8(tensors)
    stored = {name: value.bfloat16() if "scale" in name else value for name, value in stored.items()}
    model = weights.load(write(tmp_path / "x", config | {"quantization_config": FP8_CONFIG}, stored))
    name = "model.layers.0.mlp.up_proj.weight"
    numbers = fp8_numbers(stored[name], stored[f"{name}_scale_inv"]).float()
    assert torch.equal(model.layers[0].ffn.block.up.weight, numbers)


def test_parts_are_those_of_the_whole(forms: Forms, tmp_path: Path) -> None:
    """A rank asks for rows, or for columns in whole blocks of 32. (test_loading_in_ranks.py has fp8 and MXFP4.)"""
    config, stored, numbers = forms("fp4")
    folder = HFFolder(write(tmp_path / "packed", config, stored))
    name = next(name for name in stored if FP4_NAMES.fullmatch(name) and stored[name].shape[1] == 32)
    for part in (Part(0, (range(1, 5), range(8, 11))), Part(1, (range(32, 64),))):
        assert torch.equal(folder.get_part(name, part, "cpu"), part.of(numbers[name]))
    with pytest.raises(MalformedError, match="rows 16 to 63 along dimension 1 are not whole blocks of 32"):
        folder.get_part(name, Part(1, (range(16, 64),)), "cpu")


def refused(folder: Path) -> str:
    """The error message for a folder, one line."""
    with pytest.raises(MalformedError) as caught:
        weights.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zeros(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.zeros(shape).to(dtype)


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
Q, NORM = "model.layers.0.self_attn.q_a_proj.weight", "model.layers.0.input_layernorm.weight"
LATER = "model.layers.0.mlp.down_proj.weight"
DOWN, EXPERT = "model.layers.0.mlp.experts.down_proj", "layers.1.ffn.experts.0.w1"
# The form, the tensors that are changed or missing, and phrases of the error.
DAMAGE: list[tuple[str, dict[str, Tensor | None], list[str]]] = [
    ("fp8", {Q: None}, [f"scales without {DESCRIPTIONS['fp8']}: ", f"{Q}_scale_inv"]),
    ("fp8", {Q: zeros(140, 136, dtype=torch.float32)}, ["scales without fp8", f"{Q}_scale_inv"]),
    ("fp8", {Q: zeros(140, 136, dtype=E5M2)}, ["scales without fp8", f"{Q}_scale_inv"]),
    ("fp8", {f"{Q}_scale_inv": torch.ones(2)}, [f"{Q}_scale_inv [2] instead of [2, 2]"]),
    ("fp8", {f"{Q}_scale_inv": zeros(2, 2)}, [f"{Q}_scale_inv of another dtype than bfloat16 or float32"]),
    ("fp8", {Q: zeros(140, dtype=E4M3)}, [f"wrong shape: {Q} [140]"]),
    (
        "fp8",
        {Q: zeros(12, 136, dtype=E4M3), f"{Q}_scale_inv": torch.ones(1, 2)},
        [f"the tensors do not fit the model; wrong shape: {Q} [12, 136] instead of [140, 136]"],
    ),
    (
        "fp8",
        {f"{Q}_scale_inv": None, f"{LATER}_scale_inv": torch.ones(1, 1)},
        [f"without scales: {Q}", f"wrong shape: {LATER}_scale_inv [1, 1] instead of [2, 2]"],
    ),
    ("fp8", {NORM: zeros(136, dtype=E4M3)}, [f"without scales: {NORM}"]),
    ("fp4", {f"{EXPERT}.scale": None}, [f"without scales: {EXPERT}.weight"]),
    ("fp4", {f"{EXPERT}.scale": torch.ones(3, 2)}, [f"wrong shape: {EXPERT}.scale [3, 2] instead of"]),
    ("fp4", {f"{EXPERT}.weight": zeros(32, 24, dtype=torch.int8)}, [f"wrong shape: {EXPERT}.weight [32, 24]"]),
    ("mxfp4", {f"{DOWN}_scales": None}, [f"without scales: {DOWN}_blocks"]),
    ("mxfp4", {f"{DOWN}_blocks": None}, [f"scales without {DESCRIPTIONS['mxfp4']}: {DOWN}_scales"]),
    ("mxfp4", {f"{DOWN}_scales": zeros(8, 64, 2)}, [f"{DOWN}_scales [8, 64, 2] instead of [8, 64, 3]"]),
    ("mxfp4", {f"{DOWN}_scales": torch.zeros(8, 64, 3)}, [f"{DOWN}_scales of another dtype than uint8"]),
    ("mxfp4", {f"{DOWN}_blocks": zeros(8, 64, 3, 8)}, [f"wrong shape: {DOWN}_blocks [8, 64, 3, 8]"]),
    ("mxfp4", {f"{DOWN}_blocks": zeros(8, 64, 48)}, [f"wrong shape: {DOWN}_blocks [8, 64, 48]"]),
    (
        "mxfp4",
        {f"{DOWN}_blocks": zeros(8, 96, 2, 16), f"{DOWN}_scales": zeros(8, 96, 2)},  # transposed
        [f"wrong shape: {DOWN}_blocks [8, 96, 64] instead of [8, 64, 96]"],
    ),
    ("mxfp4", {DOWN: torch.zeros(8, 96, 64)}, [f"not understood: {DOWN}_blocks"]),  # in both layouts
]


@pytest.mark.parametrize(("format", "damage", "phrases"), DAMAGE)
def test_damage(
    format: str, damage: dict[str, Tensor | None], phrases: list[str], forms: Forms, tmp_path: Path
) -> None:
    config, stored, _ = forms(format)
    kept = {name: value for name, value in (stored | damage).items() if value is not None}
    message = refused(write(tmp_path / "x", config, kept))
    assert all(phrase in message for phrase in phrases), message


NO_TENSOR = "but no tensor has this format"


@pytest.mark.parametrize(
    ("format", "said", "phrase"),
    [
        ("fp8", {"quant_method": "awq"}, "quant_method='awq' is not read. Supported: fp8 e4m3, a scale for each"),
        ("fp8", {"quant_method": None}, "quant_method=None is not read"),
        ("fp8", {"quant_method": {}}, "quant_method={} is not read"),
        ("fp8", {"fmt": "e5m2"}, "quantization_config.fmt='e5m2' is not supported, only 'e4m3'"),
        ("fp8", {"weight_block_size": [64, 64]}, "quantization_config.weight_block_size=[64, 64] is not supported"),
        ("fp8", {"weight_block_size": None}, "quantization_config.weight_block_size=None is not supported"),
        ("fp8", {"wings": 2}, "not understood: quantization_config.wings=2"),
        ("mxfp4", {"wings": 2}, "not understood: quantization_config.wings=2"),
        ("mxfp4", FP8_CONFIG, NO_TENSOR),
    ],
)
def test_other_packing_is_refused(format: str, said: dict[str, Any], phrase: str, forms: Forms, tmp_path: Path) -> None:
    config, stored, _ = forms(format)
    folder = write(tmp_path / "x", config | {"quantization_config": config["quantization_config"] | said}, stored)
    assert phrase in refused(folder)
    if "wings" in said:
        weights.load(folder, ignore_fields=["quantization_config.wings"])


def test_config_and_tensors_must_agree(forms: Forms, tmp_path: Path) -> None:
    """Packed tensors without a quantization_config are refused, and a quantization_config without packed tensors."""
    config, stored, numbers = forms("fp8")
    assert NO_TENSOR in refused(write(tmp_path / "plain", config, numbers))
    silent = {field: value for field, value in config.items() if field != "quantization_config"}
    assert "neither float32, bfloat16, float16 nor float64: " in refused(write(tmp_path / "silent", silent, stored))
    assert "must be an object" in refused(write(tmp_path / "word", config | {"quantization_config": "fp8"}, stored))


def test_fp4_is_read_where_the_config_says_so(forms: Forms, tmp_path: Path) -> None:
    """The field is beside the scheme or in it. Integer tensors that no field explains are refused."""
    config, stored, numbers = forms("fp4")
    within = {"quantization_config": FP8_CONFIG | {"expert_dtype": "fp4"}, "expert_dtype": None}
    weights.load(write(tmp_path / "within", config | within, stored))
    assert "neither float32" in refused(write(tmp_path / "unsaid", config | {"expert_dtype": "fp8"}, stored))
    only_fp8 = {name: numbers[name] if FP4_NAMES.fullmatch(name) else value for name, value in stored.items()}
    only_fp8 = {name: value for name, value in only_fp8.items() if ".experts." not in name or "scale" not in name}
    told = refused(write(tmp_path / "none", config, only_fp8))
    assert f"says {DESCRIPTIONS['fp4']}, {NO_TENSOR}" in told


def test_scales_that_belong_to_the_other_format_are_no_surplus() -> None:
    """A copy may name both formats' scales as DeepSeek-V3's are named."""
    codes = StoredTensor("a.weight", (4, 16), torch.int8)
    scales = StoredTensor("a.weight_scale_inv", (4, 1), torch.float8_e8m0fnu)
    other = StoredTensor("b.weight", (4, 4), torch.float8_e4m3fn), StoredTensor("b.weight_scale_inv", (1, 1), None)
    assert FP4().pairs(Path("x"), [codes, scales, *other]) == {"a.weight": "a.weight_scale_inv"}
