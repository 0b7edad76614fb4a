"""Quantised weights: FP8, FP4 and MXFP4, stored as codes and the scales that multiply them."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from weights.matching import Part, StoredTensor, refuse_problems
from zoo.errors import MalformedError
from zoo.hf.fields import Fields
from zoo.units import dtype_name

Shape = tuple[int, ...]
FP8_BLOCK = 128  # rows and columns that share a scale
MXFP4_BLOCK = 32  # elements that share a scale, in 16 bytes
MXFP4_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # values of codes 0 to 7; codes 8 to 15 are their negatives
MXFP4_VALUES = (*MXFP4_POSITIVE, *(-value for value in MXFP4_POSITIVE))
MXFP4_PAIRS = [(MXFP4_VALUES[byte & 15], MXFP4_VALUES[byte >> 4]) for byte in range(256)]  # low half of a byte first
PACKED_DTYPES = {torch.float8_e4m3fn, torch.int8, torch.uint8}
MXFP4_SCALES = [*(2.0 ** (exponent - 127) for exponent in range(255)), float("nan")]


class PackedFormat(ABC):
    """A format that stores a tensor as two tensors, codes and scales. The codes have the dtype `dtype`, and their name
    ends in `codes`. In the name of the scales, one of `scales` replaces that ending."""

    description: ClassVar[str]
    codes: ClassVar[str]
    scales: ClassVar[tuple[str, ...]]
    dtype: ClassVar[torch.dtype]
    scale_dtypes: ClassVar[frozenset[torch.dtype]]

    @abstractmethod
    def check_config(self, config: Fields) -> None:
        """Reads all fields of quantization_config. Raises MalformedError if they describe another format."""

    @abstractmethod
    def unpacked_shape(self, codes: Shape) -> Shape | None:
        """Returns the shape of the tensor that codes of this shape unpack to, or None if codes cannot have the
        shape."""

    @abstractmethod
    def scales_shape(self, codes: Shape) -> Shape:
        """Returns the shape of the scales for codes of this shape."""

    @abstractmethod
    def nbytes(self, shape: Shape) -> int:
        """Returns the bytes of codes and scales for matrices of the unpacked shape (..., rows, columns)."""

    @abstractmethod
    def blocks(self, dim: int) -> int:
        """Returns the number of rows along a dimension of the unpacked tensor that share a scale."""

    def parts(self, part: Part, tensor: StoredTensor, codes: Shape) -> tuple[Part, Part]:
        """Returns the parts of the codes and of the scales that unpack to a part of `tensor`. `codes` is the shape of
        the codes. Raises MalformedError for a part that splits a block of elements that share a scale."""
        block, size = self.blocks(part.dim), tensor.shape[part.dim]
        for rows in part.ranges:
            if rows.start % block or (rows.stop % block and rows.stop != size):
                where = f"{tensor.name}: rows {rows.start} to {rows.stop - 1} along dimension {part.dim}"
                raise MalformedError(f"{where} are not whole blocks of {block} that share a scale")

        def divided(by: int) -> Part:
            return Part(part.dim, tuple(range(rows.start // by, -(-rows.stop // by)) for rows in part.ranges))

        return divided(size // codes[part.dim]), divided(block)

    @abstractmethod
    def unpack(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the unpacked tensor, rounded to `dtype` only at the end. Temporary tensors are much smaller."""

    def unpacked(self, codes: StoredTensor) -> StoredTensor:
        """Describes the tensor that `codes` unpack to: the same name, the unpacked shape, float32."""
        return StoredTensor(codes.name, self.unpacked_shape(codes.shape) or (), torch.float32)

    def pairs(self, where: Path, stored: Iterable[StoredTensor]) -> dict[str, str]:
        """Returns {name of the codes: name of the scales} for the packed tensors of a source. Raises one MalformedError
        naming all codes without scales, scales without codes, and wrong shapes and dtypes."""
        tensors = {tensor.name: tensor for tensor in stored}
        packed = (name for name, each in tensors.items() if each.dtype == self.dtype and name.endswith(self.codes))
        scales = {name: self._scales_of(name, tensors) for name in packed}
        ends = [name for name in tensors.keys() - scales.values() if name.endswith(self.scales[0])]
        stems = {name: tensors.get(name.removesuffix(self.scales[0]) + self.codes) for name in ends}
        unpaired = [name for name, held in stems.items() if held is None or held.dtype not in PACKED_DTYPES]
        misfits = (self._misfit(tensors[name], tensors.get(scales[name])) for name in scales)
        problems = {
            "without scales": [name for name in scales if scales[name] not in tensors],
            f"scales without {self.description}": unpaired,
            "wrong shape": [misfit for misfit in misfits if misfit],
        }
        refuse_problems(f"{where}: the packed tensors ({self.description}) cannot be read", problems)
        return scales

    def _scales_of(self, codes: str, tensors: Container[str]) -> str:
        """Returns the name of the scales of `codes`: the first possible name that is in `tensors`, or else the first
        possible name."""
        names = [codes.removesuffix(self.codes) + ending for ending in self.scales]
        return next((name for name in names if name in tensors), names[0])

    def _misfit(self, codes: StoredTensor, scales: StoredTensor | None) -> str | None:
        """Describes a wrong shape or dtype in a pair, or returns None if the pair is valid."""
        if self.unpacked_shape(codes.shape) is None:
            return f"{codes.name} {list(codes.shape)}"
        if scales is not None and scales.shape != (shape := self.scales_shape(codes.shape)):
            return f"{scales.name} {list(scales.shape)} instead of {list(shape)}"
        if scales is not None and scales.dtype not in self.scale_dtypes:
            return f"{scales.name} of another dtype than {' or '.join(sorted(map(dtype_name, self.scale_dtypes)))}"
        return None


class FP8(PackedFormat):
    """Matrices in float8 e4m3 with a scale for each block of 128 x 128, as in DeepSeek-V3 (section 3.3 of its report).

    Element (i, j) is code (i, j) times scale (i // 128, j // 128). Blocks at the bottom and right edges may be partial.
    Scales are factors despite their name `weight_scale_inv`. DeepSeek-V4's scales are powers of two, named `scale`.
    """

    description = "fp8 e4m3, a scale for each 128 x 128"
    codes = ".weight"
    scales = (".weight_scale_inv", ".scale")
    dtype = torch.float8_e4m3fn
    scale_dtypes = frozenset({torch.float32, torch.bfloat16, torch.float8_e8m0fnu})

    def check_config(self, config: Fields) -> None:
        """Checks the format and the block size. The fields about activations and the list of packed matrices are
        ignored."""
        config.expect(fmt="e4m3", weight_block_size=[FP8_BLOCK, FP8_BLOCK])
        config.unused("expert_dtype")  # FP4 is a format of its own: see `formats_of`
        config.unused("modules_to_convert", "modules_to_not_convert", "ignored_layers")
        config.unused("activation_scheme", "dequantize", "scale_fmt")

    def unpacked_shape(self, codes: Shape) -> Shape | None:
        return codes if len(codes) == 2 else None

    def scales_shape(self, codes: Shape) -> Shape:
        return tuple(-(-side // FP8_BLOCK) for side in codes)

    def nbytes(self, shape: Shape) -> int:
        *stacked, rows, columns = shape
        return prod(stacked) * (rows * columns + 4 * prod(self.scales_shape((rows, columns))))

    def blocks(self, dim: int) -> int:
        return FP8_BLOCK

    def unpack(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Unpacks one row of blocks at a time, to keep the temporary tensors small."""
        result = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        for rows, packed, scale in zip(result.split(FP8_BLOCK), codes.split(FP8_BLOCK), scales.float(), strict=True):
            rows.copy_(packed.float() * scale.repeat_interleave(FP8_BLOCK)[: codes.shape[1]])
        return result


class MXFP4(PackedFormat):
    """Experts in 4-bit floats with a power-of-two scale for every 32 elements, as in gpt-oss (OCP MX 1.0).

    Codes are (experts, out, in / 32, 16 bytes), scales (experts, out, in / 32), unpacked tensors (experts, out, in).
    """

    description = "mxfp4, a scale for each 32"
    codes = "_blocks"
    scales: ClassVar[tuple[str, ...]] = ("_scales",)
    dtype = torch.uint8
    scale_dtypes = frozenset({torch.uint8})

    def check_config(self, config: Fields) -> None:
        """Ignores the list of packed tensors: the files show which tensors are packed."""
        config.unused("dequantize", "modules_to_not_convert")

    def unpacked_shape(self, codes: Shape) -> Shape | None:
        experts, out, blocks, width = codes if len(codes) == 4 else (0, 0, 0, 0)
        return (experts, out, blocks * MXFP4_BLOCK) if 2 * width == MXFP4_BLOCK else None

    def scales_shape(self, codes: Shape) -> Shape:
        return codes[:-1]

    def nbytes(self, shape: Shape) -> int:
        """Counts the codes of each block and one byte for its scale. The last block of a row may be partial."""
        return prod(shape[:-1]) * -(-shape[-1] // MXFP4_BLOCK) * (MXFP4_BLOCK // 2 + 1)

    def blocks(self, dim: int) -> int:
        return MXFP4_BLOCK if dim == 2 else 1

    def unpack(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Unpacks one expert at a time. Products are exact in float32, and in bfloat16, which has the same range of
        exponents."""
        wide, word = (torch.bfloat16, torch.int32) if dtype == torch.bfloat16 else (torch.float32, torch.int64)
        # The two values of a byte are looked up together, as one integer, which is faster.
        pairs = torch.tensor(MXFP4_PAIRS, dtype=wide, device=codes.device).view(word).flatten()
        powers = torch.tensor(MXFP4_SCALES, dtype=wide, device=codes.device)
        experts, out, blocks, _ = codes.shape
        result = torch.empty(experts, out, blocks, MXFP4_BLOCK, dtype=dtype, device=codes.device)
        for expert, packed, scale in zip(result, codes, scales, strict=True):
            looked_up = pairs.index_select(0, packed.flatten().int()).view(wide).view_as(expert)
            expert.copy_(looked_up * powers[scale.int()][..., None])
        return result.flatten(-2)


class FP4(MXFP4):
    """Matrices in 4-bit floats with a power-of-two scale for every 32 elements of a row, as in DeepSeek-V4's experts.

    Codes are (out, in / 2 bytes), with the first of two elements in the low half of a byte. Scales are (out, in / 32),
    unpacked tensors (out, in).
    """

    description = "fp4 e2m1, a scale for each 32 of a row"
    codes = ".weight"
    scales = (".weight_scale_inv", ".scale")
    dtype = torch.int8
    scale_dtypes = frozenset({torch.float8_e8m0fnu, torch.uint8})

    def check_config(self, config: Fields) -> None:
        """Reads no fields: FP4 occurs only beside FP8, which reads them."""

    def unpacked_shape(self, codes: Shape) -> Shape | None:
        return (codes[0], 2 * codes[1]) if len(codes) == 2 and 2 * codes[1] % MXFP4_BLOCK == 0 else None

    def scales_shape(self, codes: Shape) -> Shape:
        return codes[0], 2 * codes[1] // MXFP4_BLOCK

    def blocks(self, dim: int) -> int:
        return MXFP4_BLOCK if dim == 1 else 1

    def unpack(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Unpacks the matrix like one expert in MXFP4, with the same codes and exponents."""
        packed = codes.contiguous().view(torch.uint8).unflatten(1, (-1, MXFP4_BLOCK // 2))
        return super().unpack(packed[None], scales.contiguous().view(torch.uint8)[None], dtype)[0]


FORMATS: dict[str, PackedFormat] = {"fp8": FP8(), "mxfp4": MXFP4()}  # quant_method -> supported format
EXPERT_DTYPES = {"fp8": (), "fp4": (FP4(),)}  # dtype of the experts -> further formats in an fp8 checkpoint


def formats_of(config: dict[str, Any], quantization: Fields) -> list[PackedFormat]:
    """Returns the packed formats that a checkpoint may contain. Its scheme must be supported."""
    method = quantization.get("quant_method")
    beside = EXPERT_DTYPES[expert_dtype(config, quantization.values)] if method == "fp8" else ()
    return [FORMATS[method], *beside]


def expert_dtype(config: dict[str, Any], quantization: dict[str, Any]) -> str:
    """Returns the dtype of the experts, or "fp8" if no field states it. The field is in `quantization`, in `config` or
    in the text_config of a multimodal wrapper."""
    text = config.get("text_config")
    said = [quantization, config, *([text] if isinstance(text, dict) else [])]
    return next((part["expert_dtype"] for part in said if part.get("expert_dtype")), "fp8")
