"""gpt-oss as it is stored: experts in 4-bit floats with a power of two for each 32."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weights
from tests.exact import assert_equal
from tests.reference import exact_logits, toy_config, toy_reference
from tests.weights.checkpoints import Config, Tensors, write
from tests.weights.packers import FP8_CONFIG, MXFP4_CODES, MXFP4_CONFIG, mxfp4, mxfp4_numbers, pack_mxfp4
from weights.formats.fp8_mxfp4 import MXFP4
from zoo.errors import MalformedError

PRESET, LAYERS = "gpt-oss-20b", 4
EXPERTS = "model.layers.0.mlp.experts."


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_exact(dtype: torch.dtype) -> None:
    """Each byte under each scale but the last, against float64: float32 and bfloat16 hold all but the very largest."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 255, 16, 16).contiguous()
    scales = torch.arange(255, dtype=torch.uint8).view(1, 255, 1).expand(1, 255, 16).contiguous()
    numbers, exact = MXFP4().unpack(blocks, scales, dtype), mxfp4_numbers(blocks, scales)
    assert torch.equal(numbers, exact.to(dtype))
    if dtype != torch.float16:
        assert torch.equal(numbers.double(), exact.where(exact.abs() <= torch.finfo(dtype).max, exact * torch.inf))


def test_order_within_a_byte_and_the_last_scale() -> None:
    """The low half of a byte is the even element; scale 255 is NaN, by the format's definition."""
    blocks = torch.tensor([0x21, 0x97] + [0] * 14, dtype=torch.uint8).view(1, 1, 1, 16)
    (row,) = MXFP4().unpack(blocks, torch.tensor([[[128]]], dtype=torch.uint8), torch.float32)[0]
    assert row[:5].tolist() == [1.0, 2.0, 12.0, -1.0, 0.0]
    assert MXFP4().unpack(blocks, torch.tensor([[[255]]], dtype=torch.uint8), torch.bfloat16).isnan().all()


def test_packing_in_the_tests_finds_the_nearest() -> None:
    """The tests' own packer, on values that need no rounding."""
    exact = (torch.tensor(MXFP4_CODES).repeat(2, 2) * torch.tensor([[1.0], [8.0]]))[None]
    assert torch.equal(mxfp4_numbers(*mxfp4(exact)).float(), exact)


@pytest.fixture(scope="module")
def packed() -> tuple[Config, Tensors, Tensors, Tensor, Tensor]:
    """Config, stored tensors, the same unpacked, tokens, and the reference's logits with these weights."""
    config = toy_config(PRESET, LAYERS)
    reference = toy_reference(config)
    stored, numbers = pack_mxfp4(reference.state_dict())
    reference.load_state_dict(numbers)
    tokens = torch.randint(0, config["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))
    logits = exact_logits(config, reference, tokens)
    return config | {"quantization_config": MXFP4_CONFIG, "torch_dtype": "float32"}, stored, numbers, tokens, logits


@torch.no_grad()
def test_logits_equal_the_reference(packed: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, stored, _, tokens, logits = packed
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(write(tmp_path / "x", config, stored, shards=2), dtype=torch.float64)
    assert logits.abs().max() > 1
    assert_equal(model(tokens), logits)
    assert f"{2 * LAYERS} packed tensors (mxfp4, a scale for each 32) are unpacked as they are read" in caplog.text


@torch.no_grad()
def test_the_reference_reads_the_same_folder(packed: tuple, tmp_path: Path) -> None:
    """transformers unpacks MXFP4 on the CPU, to the same logits."""
    from transformers import AutoModelForCausalLM, Mxfp4Config

    config, stored, _, tokens, logits = packed
    folder = write(tmp_path / "x", config, stored)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", quantization_config=Mxfp4Config(dequantize=True)
    )
    assert_equal(exact_logits(config, reference, tokens), logits)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_parameters_are_those_of_the_bf16_layout(dtype: str, packed: tuple, tmp_path: Path) -> None:
    """Bit by bit, in every dtype. The bf16 layout is transposed."""
    config, stored, numbers, *_ = packed
    plain = {field: value for field, value in config.items() if field != "quantization_config"}
    expected = weights.load(write(tmp_path / "plain", plain, numbers), dtype=dtype).state_dict()
    for name, value in weights.load(write(tmp_path / "packed", config, stored), dtype=dtype).state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


def codes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("damage", "phrase"),
    [
        ({"gate_up_proj_scales": None}, f"without scales: {EXPERTS}gate_up_proj_blocks"),
        ({"gate_up_proj_blocks": None}, f"scales without mxfp4, a scale for each 32: {EXPERTS}gate_up_proj_scales"),
        ({"down_proj_blocks": torch.zeros(8, 64, 3, 16)}, f"a scale for each 32: {EXPERTS}down_proj_scales"),
        ({"down_proj_scales": codes(8, 64, 2)}, "down_proj_scales [8, 64, 2] instead of [8, 64, 3]"),
        ({"down_proj_scales": torch.zeros(8, 64, 3)}, "down_proj_scales of another dtype than uint8"),
        ({"down_proj_blocks": codes(8, 64, 3, 8)}, f"wrong shape: {EXPERTS}down_proj_blocks [8, 64, 3, 8]"),
        ({"down_proj_blocks": codes(8, 64, 48)}, f"wrong shape: {EXPERTS}down_proj_blocks [8, 64, 48]"),
        (
            {"down_proj_blocks": codes(8, 96, 2, 16), "down_proj_scales": codes(8, 96, 2)},  # transposed
            f"wrong shape: {EXPERTS}down_proj_blocks [8, 96, 64] instead of [8, 64, 96]",
        ),
        (
            {"down_proj_blocks": codes(7, 64, 3, 16), "down_proj_scales": codes(7, 64, 3)},
            f"wrong shape: {EXPERTS}down_proj_blocks [7, 64, 96] instead of [8, 64, 96]",
        ),
        ({"down_proj": torch.zeros(8, 96, 64)}, f"not understood: {EXPERTS}down_proj_blocks"),  # in both layouts
    ],
)
def test_damage(damage: dict[str, Tensor | None], phrase: str, packed: tuple, tmp_path: Path) -> None:
    config, stored, *_ = packed
    changed = stored | {EXPERTS + name: value for name, value in damage.items()}
    kept = {name: value for name, value in changed.items() if value is not None}
    with pytest.raises(MalformedError) as caught:
        weights.load(write(tmp_path / "x", config, kept))
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_packing_is_refused(packed: tuple, tmp_path: Path) -> None:
    config, stored, *_ = packed
    said = config["quantization_config"]
    with pytest.raises(MalformedError, match=r"not understood: quantization_config\.wings=2"):
        weights.load(write(tmp_path / "wings", config | {"quantization_config": said | {"wings": 2}}, stored))
    with pytest.raises(MalformedError, match="yet no tensor is stored so"):
        weights.load(write(tmp_path / "fp8", config | {"quantization_config": FP8_CONFIG}, stored))
