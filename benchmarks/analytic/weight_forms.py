"""Formats of stored weights: one dtype, or matrices as 8-bit or 4-bit codes with separate scales.

The modules that a spec builds (on the meta device) show which weights are packed: all matrices of a block, or only its
experts. Norms, biases, routers, the embedding and the head are not packed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from weights.formats.fp8_mxfp4 import FP8, MXFP4, MXFP4_BLOCK, PackedFormat
from zoo.model.decoder import Decoder
from zoo.registry import Block
from zoo.units import dtype_name

RELEASED_DATA = Path(__file__).parents[1] / "data" / "released_weights.json"
BLOCK, ROUTER, BIAS = "block.", "router", "bias"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightForm:
    """A format of stored weights (zoo.model.pass_costs.WeightBytes).

    `experts`: the packed format of the experts' matrices. `matrices`: the packed format of a block's other matrices.
    None means not packed. `dtype`: the dtype of all other weights.
    """

    name: str
    dtype: torch.dtype = torch.bfloat16
    experts: PackedFormat | None = None
    matrices: PackedFormat | None = None

    @property
    def activation_itemsize(self) -> int:
        """Bytes per element of an activation: at least 2, since activations have 16 bits where weights have fewer."""
        return max(self.dtype.itemsize, 2)

    def params_bytes(self, params: int) -> int:
        """Returns the bytes of parameters that are not packed."""
        return params * self.dtype.itemsize

    def branch_bytes(self, branch: Block, dim: int) -> int:
        """Returns the bytes of a branch's weights in a model of width `dim`."""
        params = branch.params(dim)
        if self.experts is None and self.matrices is None:
            return self.params_bytes(params)
        shapes = ((shape, self.experts if len(shape) > 2 else self.matrices) for shape in _matrices(branch, dim))
        packed = [(shape, how) for shape, how in shapes if how]
        codes = sum(how.nbytes(shape) for shape, how in packed)
        return codes + self.params_bytes(params - sum(torch.Size(shape).numel() for shape, _ in packed))

    def model_bytes(self, spec: Decoder) -> int:
        """Returns the bytes of a model's weights. Each stored value counts once."""
        branches = [branch for layer in spec.layers for branch in (layer.attn, layer.ffn) if branch]
        outside = spec.params() - sum(branch.params(spec.dim) for branch in branches)
        return self.params_bytes(outside) + sum(self.branch_bytes(branch, spec.dim) for branch in branches)


@cache
def _matrices(branch: Block, dim: int) -> tuple[Shape, ...]:
    """Returns the shapes of the matrices of a branch's block that a quantised format packs.

    Matrices of a router, and convolution filters over a few tokens, are not packed.
    """
    try:
        with torch.device("meta"):
            module = branch.build(dim)
    except NotImplementedError:  # a spec without an implementation: none of its weights count as packed
        return ()
    return tuple(
        tuple(each.shape)
        for name, each in module.named_parameters()
        if name.startswith(BLOCK) and each.ndim > 1 and ROUTER not in name and not name.endswith(BIAS)
        if min(each.shape[-2:]) >= MXFP4_BLOCK
    )


_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
PLAIN = {dtype: WeightForm(dtype_name(dtype), dtype) for dtype in _PLAIN}
BFLOAT16 = PLAIN[torch.bfloat16]
FOUR_BIT = WeightForm("4-bit", experts=MXFP4(), matrices=MXFP4())
PACKED = {
    "fp8": WeightForm("fp8", experts=FP8(), matrices=FP8()),
    "mxfp4": WeightForm("mxfp4", experts=MXFP4()),
    "mxfp4+fp8": WeightForm("mxfp4+fp8", experts=MXFP4(), matrices=FP8()),
}
RELEASED = WeightForm("released")  # placeholder for each model's released format
FP8_METHOD, MXFP4_METHOD = "fp8", "mxfp4"  # quant_method in a config.json


@cache
def _released_names() -> dict[str, str]:
    names: dict[str, str] = json.loads(RELEASED_DATA.read_text(encoding="utf-8"))
    return names


def released_form(preset: str) -> WeightForm:
    """Returns the format of a preset's released weights: bfloat16 unless data/released_weights.json names another."""
    return _by_name(_released_names().get(preset, BFLOAT16.name))


def config_form(config: Mapping[str, Any]) -> WeightForm:
    """Returns the format of the weights that a config.json states, or bfloat16 if it states no known format."""
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    scheme = next((found for part in parts if isinstance(found := part.get("quantization_config"), Mapping)), {})
    experts = scheme.get("expert_dtype") or next((part["expert_dtype"] for part in parts if "expert_dtype" in part), "")
    if scheme.get("quant_method") == FP8_METHOD:
        return PACKED["mxfp4+fp8" if experts == "fp4" else "fp8"]
    if scheme.get("quant_method") == MXFP4_METHOD:
        return PACKED["mxfp4"]
    given = (part.get(key) for part in parts for key in ("dtype", "torch_dtype"))
    return _by_name(next((str(each) for each in given if each), BFLOAT16.name))


def _by_name(name: str) -> WeightForm:
    return PACKED.get(name) or {form.name: form for form in PLAIN.values()}.get(name, BFLOAT16)
