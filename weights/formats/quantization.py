"""Quantisation schemes: those that are read, and the names of those that are refused.

A source is refused for its scheme before any field of its config is checked, since no field can make it readable.
"""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as brief
from typing import Any

from weights.formats.fp8_mxfp4 import FP8, MXFP4, PackedFormat
from zoo.errors import MalformedError

MODELOPT = "hf_quant_config.json"  # where older files of ModelOpt name their scheme, instead of config.json
FORMATS: dict[str, PackedFormat] = {"fp8": FP8(), "mxfp4": MXFP4()}  # quant_method -> the format, if it is read

_SPELT_ALIKE = (
    "AQLM|AWQ|BitNet|bitsandbytes|compressed-tensors|EETQ|FBGEMM FP8|FP-Quant|GGUF|GPTQ|HIGGS|HQQ|MXFP8|NVFP4|Quanto|"
    "SINQ|SpQR|torchao|VPTQ"
)
# quant_method, in lower case and with hyphens -> the scheme's usual name.
NAMES = {name.lower().replace(" ", "-"): name for name in _SPELT_ALIKE.split("|")} | {
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "modelopt": "NVIDIA ModelOpt",
    "modelopt-fp4": "NVIDIA ModelOpt",
    "quark": "AMD Quark",
}
# Where quant_method is missing, any of these fields reveals the scheme. The first scheme counts.
MARKS = {
    "bitsandbytes": ("load_in_4bit", "load_in_8bit"),
    "compressed-tensors": ("config_groups",),
    "NVIDIA ModelOpt": ("quant_algo",),
    "GPTQ": ("desc_act", "damp_percent"),
    "AWQ": ("zero_point", "q_group_size", "w_bit"),
    "MLX": ("group_size",),
}


def check_scheme(folder: Path, config: dict[str, Any]) -> None:
    """Raise MalformedError naming the scheme of a folder whose weights are quantised in one that is not read."""
    text = config.get("text_config")
    for part in (config, *([text] if isinstance(text, dict) else [])):
        refuse(part)
    if config.get("quantization_config") is None and (folder / MODELOPT).exists():
        raise _unsupported("NVIDIA ModelOpt", f"{MODELOPT} is there")


def refuse(config: dict[str, Any]) -> None:
    """Raise MalformedError for a scheme that is not read. A field that is malformed is left to the reader."""
    if mlx := config.get("quantization"):
        raise _unsupported("MLX", f"quantization={brief(mlx)}")
    if sparse := config.get("compression_config"):
        raise _unsupported("compressed-tensors", f"compression_config={brief(sparse)}")
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return
    method = quantization.get("quant_method")
    if method == "fp8" and quantization.get("weight_block_size") is None:
        size = "quantization_config.weight_block_size=None is not supported"
        raise _unsupported("fp8 with one scale per tensor or row, as of AutoFP8 and FP8-static", size)
    if not isinstance(method, str):
        present = {field for field, value in quantization.items() if value is not None}
        scheme = next((name for name, marks in MARKS.items() if present & {*marks}), "an unknown scheme")
    elif method in FORMATS:
        return
    else:
        scheme = NAMES.get(method.lower().replace("_", "-"), brief(method))
    raise _unsupported(scheme, f"quantization_config.quant_method={brief(method)} is not read")


def _unsupported(scheme: str, evidence: str) -> MalformedError:
    known = ", ".join(each.description for each in FORMATS.values())
    return MalformedError(
        f"config.json: the weights are quantised with a scheme that is not supported, {scheme}: {evidence}; {known} "
        "are, and bfloat16, float16 and float32. Take another repository of this model"
    )
