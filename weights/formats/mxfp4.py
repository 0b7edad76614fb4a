"""Experts in MXFP4, as gpt-oss was released: 4-bit floats with a power of two for each 32 of them (OCP MX 1.0)."""

from __future__ import annotations

import torch
from torch import Tensor

from weights.formats.fp8_mxfp4 import Format, Shape
from zoo.hf.fields import Fields

BLOCK = 32  # numbers with one scale, in 16 bytes
POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of codes 0 to 7; 8 to 15 are the same negated
CODES = (*POSITIVE, *(-number for number in POSITIVE))
PAIRS = [(CODES[byte & 15], CODES[byte >> 4]) for byte in range(256)]  # the low half of a byte comes first
SCALES = [*(2.0 ** (exponent - 127) for exponent in range(255)), float("nan")]


class MXFP4(Format):
    """Codes (experts, out, in / 32, 16 bytes) and scales (experts, out, in / 32) are numbers (experts, out, in)."""

    words = "mxfp4, a scale for each 32"
    codes = "_blocks"
    scales = "_scales"
    dtype = torch.uint8
    scale_dtypes = frozenset({torch.uint8})

    def check_config(self, said: Fields) -> None:
        """Which tensors are packed, the files say."""
        said.unused("dequantize", "modules_to_not_convert")

    def unpacked_shape(self, codes: Shape) -> Shape | None:
        experts, out, blocks, width = codes if len(codes) == 4 else (0, 0, 0, 0)
        return (experts, out, blocks * BLOCK) if 2 * width == BLOCK else None

    def scales_shape(self, codes: Shape) -> Shape:
        return codes[:-1]

    def unpack(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """One expert at a time. Products are exact in float32, and in bfloat16, whose exponents are the same."""
        wide, word = (torch.bfloat16, torch.int32) if dtype == torch.bfloat16 else (torch.float32, torch.int64)
        pairs = torch.tensor(PAIRS, dtype=wide, device=codes.device).view(word).flatten()  # both as one word: fast
        powers = torch.tensor(SCALES, dtype=wide, device=codes.device)
        experts, out, blocks, _ = codes.shape
        numbers = torch.empty(experts, out, blocks, BLOCK, dtype=dtype, device=codes.device)
        for expert, packed, scale in zip(numbers, codes, scales, strict=True):
            looked_up = pairs.index_select(0, packed.flatten().int()).view(wide).view_as(expert)
            expert.copy_(looked_up * powers[scale.int()][..., None])
        return numbers.flatten(-2)
