"""DeepSeek-V4 as it is stored: experts in 4-bit floats with a power of two for each 32, beside matrices in float8."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weights
from tests.weights.checkpoints import Config, Tensors, read, write
from tests.weights.packers import FP4_NAMES, FP8_CONFIG, fp4, fp4_numbers, pack_fp4
from weights.formats.fp8_mxfp4 import FP4
from weights.formats.hf_folder import HFFolder
from weights.matching import Part, StoredTensor
from zoo.errors import MalformedError

PRESET = "deepseek-v4-flash-284b"
SAID = {"expert_dtype": "fp4", "quantization_config": FP8_CONFIG | {"scale_fmt": "ue8m0"}, "torch_dtype": "float32"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (128, 320)])
def test_numbers_are_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    codes, scales = fp4(torch.randn(shape))
    numbers = FP4().unpack(codes, scales, dtype)
    assert numbers.shape == FP4().unpacked_shape(codes.shape) == shape
    assert FP4().scales_shape(codes.shape) == scales.shape
    assert torch.equal(numbers, fp4_numbers(codes, scales).float().to(dtype))


def test_every_code_and_every_scale() -> None:
    """All pairs of codes, and all powers of two; the last scale is NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.int8).view(16, 16)
    scales = torch.full((16, 1), 130, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    assert torch.equal(FP4().unpack(codes, scales, torch.float32), fp4_numbers(codes, scales).float())
    powers = torch.arange(255, dtype=torch.uint8).view(torch.float8_e8m0fnu)[:, None]
    ones = torch.full((255, 16), 0x22, dtype=torch.int8)
    assert torch.equal(FP4().unpack(ones, powers, torch.float32)[:, 0], powers.float()[:, 0])
    last = torch.tensor([[255]], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    assert FP4().unpack(ones[:1], last, torch.float32).isnan().all()


@pytest.fixture(scope="module")
def packed(saved: Callable[[str], Path]) -> tuple[Config, Tensors, Tensors]:
    """Config, stored tensors under the released names, and the same unpacked."""
    config, tensors = read(saved(PRESET))
    return config, *pack_fp4({name.removeprefix("model."): tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_parameters_are_those_of_the_unpacked_checkpoint(
    dtype: str, packed: tuple[Config, Tensors, Tensors], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit by bit, in every dtype: no value is rounded twice."""
    config, stored, numbers = packed
    with caplog.at_level(logging.INFO, "weights"):
        found = weights.load(write(tmp_path / "packed", config | SAID, stored), dtype=dtype).state_dict()
    expected = weights.load(write(tmp_path / "plain", config, numbers), dtype=dtype).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    experts = sum(bool(FP4_NAMES.fullmatch(name)) for name in stored)
    assert experts > 0
    assert f"{experts} packed tensors (fp4 e2m1, a scale for each 32 of a row) are unpacked as they" in caplog.text


def test_parts_are_those_of_the_whole(packed: tuple[Config, Tensors, Tensors], tmp_path: Path) -> None:
    """What a rank asks for: rows, or columns in whole blocks of 32."""
    config, stored, numbers = packed
    folder = HFFolder(write(tmp_path / "packed", config | SAID, stored))
    name = next(name for name in stored if FP4_NAMES.fullmatch(name) and stored[name].shape[1] == 32)
    whole = numbers[name]
    for part in (Part(0, (range(1, 5), range(8, 11))), Part(1, (range(32, 64),))):
        assert torch.equal(folder.get_part(name, part, "cpu"), part.of(whole))
    with pytest.raises(MalformedError, match="rows 16 to 63 along dimension 1 are not whole blocks of 32"):
        folder.get_part(name, Part(1, (range(16, 64),)), "cpu")


EXPERT = "layers.1.ffn.experts.0.w1"


@pytest.mark.parametrize(
    ("damage", "phrase"),
    [
        ({f"{EXPERT}.scale": None}, f"without scales: {EXPERT}.weight"),
        ({f"{EXPERT}.scale": torch.ones(3, 2)}, f"wrong shape: {EXPERT}.scale [3, 2] instead of"),
        ({f"{EXPERT}.weight": torch.zeros(32, 24, dtype=torch.int8)}, f"wrong shape: {EXPERT}.weight [32, 24]"),
    ],
)
def test_damage(
    damage: dict[str, Tensor | None], phrase: str, packed: tuple[Config, Tensors, Tensors], tmp_path: Path
) -> None:
    config, stored, _ = packed
    kept = {name: value for name, value in (stored | damage).items() if value is not None}
    with pytest.raises(MalformedError) as caught:
        weights.load(write(tmp_path / "x", config | SAID, kept))
    assert phrase in str(caught.value)


def test_fp4_is_read_where_the_config_says_so(packed: tuple[Config, Tensors, Tensors], tmp_path: Path) -> None:
    """Said beside the scheme or in it; integers that nothing explains are refused."""
    config, stored, numbers = packed
    within = {"quantization_config": FP8_CONFIG | {"expert_dtype": "fp4"}, "expert_dtype": None}
    weights.load(write(tmp_path / "within", config | within, stored))
    with pytest.raises(MalformedError, match="neither float32"):
        weights.load(write(tmp_path / "unsaid", config | SAID | {"expert_dtype": "fp8"}, stored))
    only_fp8 = {name: numbers[name] if FP4_NAMES.fullmatch(name) else value for name, value in stored.items()}
    only_fp8 = {name: value for name, value in only_fp8.items() if ".experts." not in name or "scale" not in name}
    with pytest.raises(MalformedError, match="says fp4 e2m1, a scale for each 32 of a row, yet no tensor is stored so"):
        weights.load(write(tmp_path / "none", config | SAID, only_fp8))


def test_scales_that_belong_to_the_other_format_are_no_surplus() -> None:
    """A copy may name both formats' scales as DeepSeek-V3's are named."""
    codes = StoredTensor("a.weight", (4, 16), torch.int8)
    scales = StoredTensor("a.weight_scale_inv", (4, 1), torch.float8_e8m0fnu)
    other = StoredTensor("b.weight", (4, 4), torch.float8_e4m3fn), StoredTensor("b.weight_scale_inv", (1, 1), None)
    assert FP4().pairs(Path("x"), [codes, scales, *other]) == {"a.weight": "a.weight_scale_inv"}
