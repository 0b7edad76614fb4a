"""Packing tensors as releases store them, and what the packed ones stand for in float64: independent of the loader."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tests.weights.checkpoints import Tensors

FP8_CONFIG = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
# Which of DeepSeek-V3's matrices are packed: those of attention and of the feed-forwards, but not the router.
FP8_NAMES = re.compile(r".*\.(self_attn|mlp|mlp\.shared_experts|mlp\.experts\.\d+)\.\w+_proj(_with_mqa)?\.weight")


def fp8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix -> its codes, and a scale for each block of 128 x 128 that takes the largest number to 448."""
    height, width = matrix.shape
    codes = torch.empty(height, width, dtype=torch.float8_e4m3fn)
    scales = torch.empty((height + 127) // 128, (width + 127) // 128)
    for row in range(0, height, 128):
        for column in range(0, width, 128):
            block = matrix[row : row + 128, column : column + 128]
            scale = block.abs().max() / 448
            scales[row // 128, column // 128] = scale
            codes[row : row + 128, column : column + 128] = (block / scale).to(torch.float8_e4m3fn)
    return codes, scales


def fp8_numbers(codes: Tensor, scales: Tensor) -> Tensor:
    """What they stand for, in float64: element (i, j) has scale (i // 128, j // 128)."""
    rows, columns = (torch.arange(side) // 128 for side in codes.shape)
    return codes.double() * scales.double()[rows][:, columns]


def pack_fp8(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A checkpoint -> the same as DeepSeek-V3's is stored, and the numbers that this stands for, in float32."""
    stored, numbers = {}, {}
    for name, tensor in tensors.items():
        if FP8_NAMES.fullmatch(name):
            stored[name], stored[f"{name}_scale_inv"] = codes, scales = fp8(tensor)
            numbers[name] = fp8_numbers(codes, scales).float()
        else:
            stored[name] = numbers[name] = tensor
    return stored, numbers
