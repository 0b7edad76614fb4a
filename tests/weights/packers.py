"""Packing tensors as releases store them, and unpacking them in float64: independent of the loader."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tests.reference import toy_config, toy_reference
from tests.weights.checkpoints import Config, Tensors

FP8_CONFIG = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
# Which of DeepSeek-V3's matrices are packed: those of attention and of the feed-forwards, but not the router.
FP8_NAMES = re.compile(r".*\.(self_attn|mlp|mlp\.shared_experts|mlp\.experts\.\d+)\.\w+_proj(_with_mqa)?\.weight")


def fp8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Packs a matrix: returns its codes, and a scale for each block of 128 x 128 that maps the largest number to
    448."""
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
    """The unpacked matrix in float64: element (i, j) has scale (i // 128, j // 128)."""
    rows, columns = (torch.arange(side) // 128 for side in codes.shape)
    return codes.double() * scales.double()[rows][:, columns]


def pack_fp8(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Returns a checkpoint packed as DeepSeek-V3 is stored, and the same unpacked again in float32."""
    stored, numbers = {}, {}
    for name, tensor in tensors.items():
        if FP8_NAMES.fullmatch(name):
            stored[name], stored[f"{name}_scale_inv"] = codes, scales = fp8(tensor)
            numbers[name] = fp8_numbers(codes, scales).float()
        else:
            stored[name] = numbers[name] = tensor
    return stored, numbers


def per_expert(tensors: Tensors) -> Tensors:
    """Returns transformers' fused experts as they are stored: one by one."""
    single = {}
    for name, tensor in tensors.items():
        before, _, part = name.rpartition(".")
        for e in range(len(tensor) if before.endswith("experts") else 0):
            if part == "gate_up_proj":
                gate, up = tensor[e].chunk(2)
                single |= {f"{before}.{e}.gate_proj.weight": gate, f"{before}.{e}.up_proj.weight": up}
            else:
                single[f"{before}.{e}.down_proj.weight"] = tensor[e]
        if not before.endswith("experts"):
            single[name] = tensor
    return single


MXFP4_CONFIG = {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "quant_method": "mxfp4"}
MXFP4_CODES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def mxfp4(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """(experts, out, in) -> blocks (experts, out, in / 32, 16) and scales (experts, out, in / 32). Numbers are scaled
    so that the largest of a block is between 4 and 8, and rounded to the nearest code. Even elements are in the low
    half of a byte."""
    grouped = numbers.double().unflatten(-1, (-1, 32))
    exponents = grouped.abs().amax(-1).clamp(min=2.0**-126).log2().floor() - 2
    distance = (grouped / 2 ** exponents[..., None])[..., None] - torch.tensor(MXFP4_CODES, dtype=torch.float64)
    codes = distance.abs().argmin(-1)
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8), (exponents + 127).to(torch.uint8)


def mxfp4_numbers(blocks: Tensor, scales: Tensor) -> Tensor:
    """The unpacked tensor in float64: code times 2^(scale - 127)."""
    halves = torch.stack([blocks % 16, blocks // 16], dim=-1).flatten(-2).long()
    powers = torch.full(scales.shape, 2.0, dtype=torch.float64) ** (scales.double() - 127)
    return (torch.tensor(MXFP4_CODES, dtype=torch.float64)[halves] * powers[..., None]).flatten(-2)


def pack_mxfp4(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """gpt-oss's bf16 layout, whose experts are (in, out) -> as it is released, (out, in) in MXFP4, and the numbers that
    this stands for in the bf16 layout, in float32."""
    stored, numbers = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            blocks, scales = mxfp4(tensor.transpose(1, 2))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            numbers[name] = mxfp4_numbers(blocks, scales).float().transpose(1, 2)
        else:
            stored[name] = numbers[name] = tensor
    return stored, numbers


# Which of DeepSeek-V4's matrices are packed: experts in fp4, those of attention and of the shared expert in fp8.
FP4_NAMES = re.compile(r".*\.ffn\.experts\.\d+\.w[123]\.weight")
FP8_BESIDE_FP4 = re.compile(r".*\.(attn\.w\w+|attn\.indexer\.wq_b|ffn\.shared_experts\.w[123])\.weight")


def fp4(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> codes (out, in / 2) and powers of two (out, in / 32)."""
    blocks, scales = mxfp4(matrix[None])
    return blocks[0].flatten(1).view(torch.int8), scales[0].view(torch.float8_e8m0fnu)


def fp4_numbers(codes: Tensor, scales: Tensor) -> Tensor:
    """The unpacked matrix in float64: code times scale."""
    halves = torch.stack([codes.view(torch.uint8) % 16, codes.view(torch.uint8) // 16], dim=-1).flatten(1).long()
    numbers = torch.tensor(MXFP4_CODES, dtype=torch.float64)[halves]
    return numbers * scales.double().repeat_interleave(32, dim=1)


def pack_fp4(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """DeepSeek-V4's checkpoint as it is released, with scales that are powers of two, and unpacked in float32."""
    stored, numbers = {}, {}
    for name, tensor in tensors.items():
        scales = name.removesuffix("weight") + "scale"
        if FP4_NAMES.fullmatch(name):
            stored[name], stored[scales] = codes, powers = fp4(tensor)
            numbers[name] = fp4_numbers(codes, powers).float()
        elif FP8_BESIDE_FP4.fullmatch(name):
            _, exact = fp8(tensor)
            powers = exact.to(torch.float8_e8m0fnu)
            rows, columns = (torch.arange(side) // 128 for side in tensor.shape)
            codes = (tensor / powers.float()[rows][:, columns]).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored |= {name: codes, scales: powers}
            numbers[name] = fp8_numbers(codes, powers.float()).float()
        else:
            stored[name] = numbers[name] = tensor
    return stored, numbers


SCHEMES = {"deepseek_v3": (pack_fp8, FP8_CONFIG), "gpt_oss": (pack_mxfp4, MXFP4_CONFIG)}


def packed_toy(name: str, layers: int, **widths: int) -> tuple[Config, Tensors, Tensors]:
    """A preset's toy form at these widths, packed as it is released: its config, the stored tensors, and the same
    unpacked in float32."""
    config = toy_config(name, layers) | widths
    pack, scheme = SCHEMES[config["model_type"]]
    state = toy_reference(config).state_dict()
    stored, numbers = pack(per_expert(state) if pack is pack_fp8 else state)
    return config | {"quantization_config": scheme, "torch_dtype": "float32"}, stored, numbers
