"""Matrices in float8 e4m3 with a scale for each block of 128 x 128, as DeepSeek-V3 was released (section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from weights.formats.fp8_mxfp4 import Format, Shape
from zoo.hf.fields import Fields

SIDE = 128


class FP8(Format):
    """Element (i, j) is its code times scale (i // 128, j // 128): blocks at the lower and the right edge are partial.

    The scales are named `weight_scale_inv`, and multiply all the same.
    """

    words = "fp8 e4m3, a scale for each 128 x 128"
    codes = ".weight"
    scales = ".weight_scale_inv"
    dtype = torch.float8_e4m3fn
    scale_dtypes = frozenset({torch.float32, torch.bfloat16})

    def check_config(self, said: Fields) -> None:
        """Activations are not rounded here; which matrices are packed, and how scales were rounded, the files say."""
        said.expect(fmt="e4m3", weight_block_size=[SIDE, SIDE], expert_dtype="fp8")
        said.unused("modules_to_convert", "modules_to_not_convert", "ignored_layers")
        said.unused("activation_scheme", "dequantize", "scale_fmt")

    def unpacked_shape(self, codes: Shape) -> Shape | None:
        return codes if len(codes) == 2 else None

    def scales_shape(self, codes: Shape) -> Shape:
        return tuple(-(-side // SIDE) for side in codes)

    def unpack(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """One row of blocks at a time, so that nothing but the result is as large as the matrix."""
        numbers = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        for rows, packed, scale in zip(numbers.split(SIDE), codes.split(SIDE), scales.float(), strict=True):
            rows.copy_(packed.float() * scale.repeat_interleave(SIDE)[: codes.shape[1]])
        return numbers
