"""Quantised repositories are refused in one line that names the scheme, before any field of the config is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weights
import zoo
from tests.configs import older, smallest
from tests.weights.checkpoints import write
from tests.weights.packers import FP8_CONFIG, MXFP4_CONFIG
from weights.formats.fp8_mxfp4 import FORMATS
from weights.formats.hf_folder import MODELOPT, NAMES, check_scheme, refuse
from zoo.errors import MalformedError

MLX = {"group_size": 64, "bits": 4}
# What a repository of each scheme says, and the name that the refusal has for it.
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "AWQ": ({"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm", "zero_point": True}, "AWQ"),
    "AWQ, older": ({"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}, "AWQ"),
    "GPTQ": ({"bits": 4, "group_size": 128, "desc_act": False, "quant_method": "gptq", "sym": True}, "GPTQ"),
    "GPTQ, older": ({"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False}, "GPTQ"),
    "bitsandbytes": (
        {"_load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "load_in_4bit": True, "quant_method": "bitsandbytes"},
        "bitsandbytes",
    ),
    "bitsandbytes, older": ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, "bitsandbytes"),
    "compressed-tensors": (
        {"config_groups": {"group_0": {}}, "format": "float-quantized", "quant_method": "compressed-tensors"},
        "compressed-tensors",
    ),
    "FP8-static": (
        {"config_groups": {"group_0": {"input_activations": {"dynamic": False}}}, "quant_method": "compressed_tensors"},
        "compressed-tensors",
    ),
    "AutoFP8": ({"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"}, "AutoFP8"),
    "FBGEMM": ({"activation_scale_ub": 1200.0, "quant_method": "fbgemm_fp8"}, "FBGEMM FP8"),
    "ModelOpt": ({"quant_algo": "NVFP4", "quant_method": "modelopt", "producer": {"name": "modelopt"}}, "ModelOpt"),
    "MLX, newer": (MLX | {"mode": "affine"}, "MLX"),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    "a scheme of next year": ({"quant_method": "q_next"}, "'q_next'"),
    "nothing known": ({"sparkle": 1}, "an unknown scheme"),
}


def refusal(folder: Path, **options: Any) -> str:
    """The error message for a folder, one line."""
    with pytest.raises(MalformedError) as caught:
        weights.load(folder, **options)
    message = str(caught.value)
    assert message.startswith("config.json: the weights are quantised with a scheme that is not supported, ")
    assert message.isprintable()
    assert "--ignore-field" not in message
    assert all(each.description in message for each in FORMATS.values())
    return message


def config_only(folder: Path, config: dict[str, Any]) -> Path:
    """A folder that holds a config and no weights: the scheme is refused first."""
    return write(folder, config, {})


@pytest.mark.parametrize("scheme", SAID)
def test_the_scheme_is_named_before_any_field_is_judged(scheme: str, tmp_path: Path) -> None:
    said, name = SAID[scheme]
    config = older(smallest()[0], quantization_config=said, surprise=3)
    del config["hidden_size"]
    message = refusal(config_only(tmp_path / "x", config), ignore_fields=["quantization_config"])
    assert name in message
    assert "surprise" not in message
    assert name in refusal(config_only(tmp_path / "y", config | {"model_type": "none of ours"}))


@pytest.mark.parametrize("method", NAMES)
def test_every_named_method_is_refused_by_its_name(method: str) -> None:
    for spelt in (method, method.upper(), method.replace("-", "_")):
        with pytest.raises(MalformedError, match=NAMES[method]):
            refuse({"quantization_config": {"quant_method": spelt}})


def test_experts_in_another_format_than_the_rest() -> None:
    """Said beside the scheme (DeepSeek-V4) or in it. Without a scheme the field says nothing of the stored tensors."""
    for dtype in ("fp6", ["fp4"], 4):
        for said in (
            {"expert_dtype": dtype, "quantization_config": FP8_CONFIG},
            {"quantization_config": {**FP8_CONFIG, "expert_dtype": dtype}},
            {"text_config": {"expert_dtype": dtype, "quantization_config": FP8_CONFIG}},
        ):
            with pytest.raises(MalformedError, match="experts in another format than the rest"):
                check_scheme(Path("nowhere"), said)
    refuse({"expert_dtype": "fp6"})
    for dtype in ("fp4", "fp8", None):
        refuse({"expert_dtype": dtype, "quantization_config": FP8_CONFIG})


def test_mlx_schemes_outside_quantization_config(tmp_path: Path) -> None:
    for i, said in enumerate(({"quantization": MLX}, {"quantization": MLX, "quantization_config": MLX})):
        assert "MLX: quantization=" in refusal(config_only(tmp_path / str(i), older(smallest()[0], **said)))
    read = older(smallest()[0], quantization={**MLX, "mode": "mxfp4"}, quantization_config=MXFP4_CONFIG)
    assert "MLX" in refusal(config_only(tmp_path / "mxfp4", read))


def test_schemes_in_the_text_config_of_a_multimodal_wrapper(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "gptq"}}}
    assert "GPTQ" in refusal(config_only(tmp_path / "x", config))


def test_modelopt_schemes_in_a_file_of_their_own(tmp_path: Path) -> None:
    folder = config_only(tmp_path / "x", older(smallest()[0], quantization_config=None))
    (folder / MODELOPT).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}), encoding="utf-8")
    assert f"NVIDIA ModelOpt: {MODELOPT} is there" in refusal(folder)


@pytest.mark.parametrize("said", [FP8_CONFIG, MXFP4_CONFIG, None, {}])
def test_supported_schemes_are_not_refused(said: dict[str, Any] | None) -> None:
    refuse({"quantization_config": said or None, "quantization": said and None})


@pytest.mark.parametrize("scheme", SAID)
def test_the_architecture_of_a_quantised_repository_is_read_all_the_same(scheme: str) -> None:
    """The scheme does not matter for the spec, and so for tables of parameters and caches."""
    name = smallest()[0]
    assert zoo.from_hf(older(name, quantization_config=SAID[scheme][0], quantization=MLX)) == zoo.spec(name)
