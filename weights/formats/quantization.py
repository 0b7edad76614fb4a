"""Schemes of quantised weights: those that are read, and the names of those that are not.

A source is refused for its scheme before any field of its config is judged: whatever the fields say, it cannot be read.
"""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as brief
from typing import Any

from weights.formats.fp8 import FP8
from weights.formats.json_limits import CONFIG_LIMIT, member, read_json
from weights.formats.mxfp4 import MXFP4
from weights.formats.fp8_mxfp4 import Format
from zoo.errors import MalformedError

MODELOPT = "hf_quant_config.json"  # older files of ModelOpt say it there and not in config.json
FORMATS: dict[str, Format] = {"fp8": FP8(), "mxfp4": MXFP4()}  # those that are read, by quant_method

# quant_method, in small letters and with hyphens -> the name that people know it by.
NAMES = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fbgemm-fp8": "FBGEMM FP8",
    "fp-quant": "FP-Quant",
    "gguf": "GGUF",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "intel/auto-round": "AutoRound",
    "modelopt": "NVIDIA ModelOpt",
    "modelopt-fp4": "NVIDIA ModelOpt",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
# Fields that tell the scheme where quant_method is missing. The first that is there counts.
MARKS = {
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "config_groups": "compressed-tensors",
    "quant_algo": "NVIDIA ModelOpt",
    "desc_act": "GPTQ",
    "damp_percent": "GPTQ",
    "zero_point": "AWQ",
    "q_group_size": "AWQ",
    "w_bit": "AWQ",
    "group_size": "MLX",
}


def check_scheme(folder: Path, config: dict[str, Any]) -> None:
    """Raise MalformedError, naming the scheme, for a folder whose weights are quantised in a way that is not read."""
    text = config.get("text_config")
    for part in (config, *([text] if isinstance(text, dict) else [])):
        refuse(part)
    if config.get("quantization_config") is None and (folder / MODELOPT).exists():
        raise _unsupported("NVIDIA ModelOpt", f"{MODELOPT} is there")


def check_config(folder: Path) -> None:
    """`check_scheme` of a folder's config.json, where there is one."""
    if (folder / "config.json").exists():
        check_scheme(folder, read_json(member(folder, "config.json"), CONFIG_LIMIT))


def refuse(said: dict[str, Any]) -> None:
    """Raise MalformedError for a scheme that is not read. What is no scheme at all is left to the reader."""
    if mlx := said.get("quantization"):
        raise _unsupported("MLX", f"quantization={brief(mlx)}")
    if sparse := said.get("compression_config"):
        raise _unsupported("compressed-tensors", f"compression_config={brief(sparse)}")
    packing = said.get("quantization_config")
    if not isinstance(packing, dict):
        return
    method = packing.get("quant_method")
    if method == "fp8" and packing.get("weight_block_size") is None:
        size = "quantization_config.weight_block_size=None is not supported"
        raise _unsupported("fp8 with one scale per tensor or row, as of AutoFP8 and FP8-static", size)
    if not isinstance(method, str) or method not in FORMATS:
        raise _unsupported(_name(packing, method), f"quantization_config.quant_method={brief(method)} is not read")


def _name(packing: dict[str, Any], method: Any) -> str:
    if isinstance(method, str):
        return NAMES.get(method.lower().replace("_", "-"), brief(method))
    return next((name for mark, name in MARKS.items() if packing.get(mark) is not None), "an unknown scheme")


def _unsupported(scheme: str, evidence: str) -> MalformedError:
    known = ", ".join(packing.words for packing in FORMATS.values())
    return MalformedError(
        f"config.json: the weights are quantised with a scheme that is not supported, {scheme}: {evidence}; {known} "
        "are, and bfloat16, float16 and float32. Take another repository of this model"
    )
