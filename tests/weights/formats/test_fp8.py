"""DeepSeek-V3 as it is stored: float8 matrices with a scale for each block of 128 x 128."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weights
from tests.exact import assert_equal
from tests.reference import exact_logits, toy_config, toy_reference
from tests.weights.checkpoints import Config, Tensors, read, write
from tests.weights.packers import FP8_CONFIG, FP8_NAMES, fp8, fp8_numbers, pack_fp8, per_expert
from weights.formats.fp8_mxfp4 import FP8
from zoo.errors import MalformedError

PRESET, LAYERS = "deepseek-v3-671b", 5
# No side but one is a multiple of 128, and each matrix has more than one block: kv_a_proj has 144 + 16 rows.
WIDTHS = {
    "hidden_size": 136,
    "intermediate_size": 256,
    "moe_intermediate_size": 132,
    "q_lora_rank": 140,
    "kv_lora_rank": 144,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (576, 300), (127, 513)])
def test_numbers_are_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Against float64, rounded to float32 and then, as DeepSeek does, to the dtype."""
    codes, scales = fp8(torch.randn(shape))
    numbers = FP8().unpack(codes, scales, dtype)
    assert torch.equal(numbers, fp8_numbers(codes, scales).float().to(dtype))
    assert FP8().scales_shape(shape) == scales.shape


def test_every_code() -> None:
    """All 256, each on a block's edge: exactly two are NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).repeat(2, 1)
    numbers = FP8().unpack(codes, torch.tensor([[0.3, 7.0]]), torch.float32)
    exact = fp8_numbers(codes, torch.tensor([[0.3, 7.0]])).float()
    torch.testing.assert_close(numbers, exact, rtol=0, atol=0, equal_nan=True)
    assert numbers.isnan().sum() == 4


@pytest.fixture(scope="module")
def packed() -> tuple[Config, Tensors, Tensors, Tensor, Tensor]:
    """Config, stored tensors, the same unpacked, tokens, and the reference's logits with these weights."""
    config = toy_config(PRESET, LAYERS) | WIDTHS
    reference = toy_reference(config)
    stored, numbers = pack_fp8(per_expert(reference.state_dict()))
    reference.load_state_dict(fused(numbers, config))
    tokens = torch.randint(0, config["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))
    logits = exact_logits(config, reference, tokens)
    return config | {"quantization_config": FP8_CONFIG, "torch_dtype": "float32"}, stored, numbers, tokens, logits


def fused(tensors: Tensors, config: Config) -> Tensors:
    """The way back from `per_expert`."""
    count = config["n_routed_experts"]
    whole = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in {name.partition("experts.")[0] for name in tensors if ".experts." in name}:
        gate, up, down = (
            torch.stack([tensors[f"{layer}experts.{e}.{part}_proj.weight"] for e in range(count)])
            for part in ("gate", "up", "down")
        )
        whole |= {f"{layer}experts.gate_up_proj": torch.cat([gate, up], 1), f"{layer}experts.down_proj": down}
    return whole


@torch.no_grad()
def test_logits_equal_the_reference(packed: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a multi-token prediction layer after the last one, packed too, which is not read."""
    config, stored, _, tokens, logits = packed
    extra = {
        name.replace(f"layers.{LAYERS - 1}.", f"layers.{LAYERS}."): tensor
        for name, tensor in stored.items()
        if f"layers.{LAYERS - 1}." in name
    }
    extra |= {f"model.layers.{LAYERS}.enorm.weight": torch.ones(136)}
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(write(tmp_path / "x", config, stored | extra, shards=3), dtype=torch.float64)
    assert logits.abs().max() > 1
    assert_equal(model(tokens), logits)
    matrices = sum(bool(FP8_NAMES.fullmatch(name)) for name in stored | extra)
    assert (
        f"{matrices} packed tensors (fp8 e4m3, a scale for each 128 x 128) are unpacked as they are read" in caplog.text
    )
    beside = sum(not name.endswith("_scale_inv") for name in extra)
    assert f"left alone: {beside} tensors, the multi-token prediction layer" in caplog.text


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_parameters_are_those_of_the_unpacked_checkpoint(dtype: str, packed: tuple, tmp_path: Path) -> None:
    """Bit by bit, in every dtype: no value is rounded twice."""
    config, stored, numbers, *_ = packed
    plain = {field: value for field, value in config.items() if field != "quantization_config"}
    expected = weights.load(write(tmp_path / "plain", plain, numbers), dtype=dtype).state_dict()
    for name, value in weights.load(write(tmp_path / "packed", config, stored), dtype=dtype).state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


def test_any_family_may_be_packed(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Qwen3's fp8 releases have the same form, with scales in bfloat16."""
    config, tensors = read(saved("qwen3-4b"))
    stored, _ = pack_fp8(tensors)
    stored = {name: value.bfloat16() if "scale" in name else value for name, value in stored.items()}
    model = weights.load(write(tmp_path / "x", config | {"quantization_config": FP8_CONFIG}, stored))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(
        model.layers[0].ffn.block.up.weight, fp8_numbers(stored[name], stored[f"{name}_scale_inv"]).float()
    )


Q, DOWN = "model.layers.0.self_attn.q_a_proj.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("damage", "phrases"),
    [
        ({f"{Q}_scale_inv": None}, [f"without scales: {Q}"]),
        ({Q: None}, ["scales without fp8 e4m3, a scale for each 128 x 128: ", f"{Q}_scale_inv"]),
        ({Q: torch.zeros(140, 136)}, ["scales without fp8", f"{Q}_scale_inv"]),
        ({f"{Q}_scale_inv": torch.ones(2, 3)}, [f"wrong shape: {Q}_scale_inv [2, 3] instead of [2, 2]"]),
        ({f"{Q}_scale_inv": torch.ones(2)}, [f"{Q}_scale_inv [2] instead of [2, 2]"]),
        ({f"{Q}_scale_inv": torch.ones(2, 2).char()}, [f"{Q}_scale_inv of another dtype than bfloat16 or float32"]),
        ({Q: torch.zeros(140).to(torch.float8_e4m3fn)}, [f"wrong shape: {Q} [140]"]),
        ({Q: torch.zeros(140, 136).to(torch.float8_e5m2)}, ["scales without fp8", f"{Q}_scale_inv"]),
        (
            {Q: torch.zeros(12, 136).to(torch.float8_e4m3fn), f"{Q}_scale_inv": torch.ones(1, 2)},
            [f"the tensors do not fit the model; wrong shape: {Q} [12, 136] instead of [140, 136]"],
        ),
        (
            {f"{Q}_scale_inv": None, f"{DOWN}_scale_inv": torch.ones(1, 1)},
            [f"without scales: {Q}", f"wrong shape: {DOWN}_scale_inv [1, 1] instead of [2, 2]"],
        ),
        (
            {"model.layers.0.input_layernorm.weight": torch.ones(136).to(torch.float8_e4m3fn)},
            ["without scales: model.layers.0.input_layernorm.weight"],
        ),
    ],
)
def test_damage(damage: dict[str, Tensor | None], phrases: list[str], packed: tuple, tmp_path: Path) -> None:
    config, stored, *_ = packed
    kept = {name: value for name, value in (stored | damage).items() if value is not None}
    message = refused(write(tmp_path / "x", config, kept))
    assert all(phrase in message for phrase in phrases), message


def refused(folder: Path) -> str:
    """The error message for a folder, one line."""
    with pytest.raises(MalformedError) as caught:
        weights.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "phrase"),
    [
        ({"quant_method": "awq"}, "quant_method='awq' is not read; fp8 e4m3, a scale for each 128 x 128"),
        ({"quant_method": None}, "quant_method=None is not read"),
        ({"quant_method": {}}, "quant_method={} is not read"),
        ({"fmt": "e5m2"}, "quantization_config.fmt='e5m2' is not supported, only 'e4m3'"),
        ({"weight_block_size": [64, 64]}, "quantization_config.weight_block_size=[64, 64] is not supported"),
        ({"weight_block_size": None}, "quantization_config.weight_block_size=None is not supported"),
        ({"wings": 2}, "not understood: quantization_config.wings=2"),
    ],
)
def test_other_packing_is_refused(said: Config, phrase: str, packed: tuple, tmp_path: Path) -> None:
    config, stored, *_ = packed
    message = refused(write(tmp_path / "x", config | {"quantization_config": FP8_CONFIG | said}, stored))
    assert phrase in message


def test_config_and_tensors_must_agree(packed: tuple, tmp_path: Path) -> None:
    """Packed tensors without a quantization_config are refused, and a quantization_config without packed tensors."""
    config, stored, numbers, *_ = packed
    assert "yet no tensor is stored so" in refused(write(tmp_path / "plain", config, numbers))
    silent = {field: value for field, value in config.items() if field != "quantization_config"}
    assert "neither float32, bfloat16, float16 nor float64: " in refused(write(tmp_path / "silent", silent, stored))
    assert "must be an object" in refused(write(tmp_path / "word", config | {"quantization_config": "fp8"}, stored))


def test_a_field_can_be_ignored(packed: tuple, tmp_path: Path) -> None:
    config, stored, *_ = packed
    folder = write(tmp_path / "x", config | {"quantization_config": FP8_CONFIG | {"wings": 2}}, stored)
    weights.load(folder, ignore_fields=["quantization_config.wings"])
