"""The header of a safetensors file: the name, dtype, shape and place of each tensor.

It is read strictly here before the library maps the file. The library silently keeps the last of two tensors of one
name, and takes ten times the size of a header in memory to read it.
"""

from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch

from weights.formats.json_limits import HEADER_LIMIT, parse
from weights.matching import StoredTensor
from zoo.errors import MalformedError, enough

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8, "I8": torch.int8}  # packed weights
DTYPES |= {"F8_E8M0": torch.float8_e8m0fnu}  # their scales
DTYPES |= {"I64": torch.int64, "I32": torch.int32}  # tables of ids
BITS = {word: 8 * dtype.itemsize for word, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= {"BOOL": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
BITS |= {"U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64}
MAX_NAME_CHARACTERS, MAX_AXES = 512, 16  # more than any checkpoint has
MAX_VALUES = 700_000  # eight for each tensor that can be described in HEADER_LIMIT bytes
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save's files begin


def read_header(path: Path) -> list[StoredTensor]:
    """Returns every tensor of a safetensors file, sorted by name. Raises MalformedError for an invalid file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if _is_pickle(start, length, size):
            raise MalformedError(f"{path} is a pickle, which can run code and is never opened; save it as safetensors")
        if size < 8 or length > size - 8:
            raise MalformedError(f"{path} is cut short: {size} bytes, and its header alone needs {length + 8}")
        if length > HEADER_LIMIT:
            raise MalformedError(f"{path}: a header of {length} bytes is above the limit of {HEADER_LIMIT}")
        file.seek(8)
        header = parse(f"{path}: the header", file, length, MAX_VALUES)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError(f"{path}: the header's __metadata__ holds more than text")
    if wrong := [ascii(name[:MAX_NAME_CHARACTERS]) for name, info in header.items() if not _is_tensor(name, info)]:
        raise MalformedError(f"{path}: the header does not describe a tensor under {enough(wrong)}")
    _check_extents(path, header, size - 8 - length)
    return [
        StoredTensor(name, tuple(info["shape"]), DTYPES.get(info["dtype"])) for name, info in sorted(header.items())
    ]


def _is_pickle(start: bytes, length: int, size: int) -> bool:
    """Whether a file of `size` bytes that begins with these nine is a pickle, and not a safetensors file.

    A safetensors file begins with the length of its header: those of 640, 896, 1152 and 1408 bytes, and one in 2,048 of
    the longer ones, begin as a pickle does. The first eight bytes of a pickle, read as a length, are far more than its
    size, and the ninth is not `{`. A file of at most eight bytes has no ninth: the length alone decides.
    """
    if not start.startswith(PICKLES) or length <= size - 8:
        return False
    return length > HEADER_LIMIT if len(start) < 9 else not start.endswith(b"{")


def _is_tensor(name: str, info: Any) -> bool:
    """Whether an entry of the header has a printable name, a known dtype, a shape, and a range of that many bytes."""
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        return False
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    dtype, shape, extent = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS or not _counts(shape, MAX_AXES):
        return False
    return _counts(extent, 2) and len(extent) == 2 and 8 * (extent[1] - extent[0]) == prod(shape) * BITS[dtype]


def _counts(value: Any, max_length: int) -> bool:
    """Whether this is a list of non-negative integers, at most `max_length` of them."""
    return (
        isinstance(value, list) and len(value) <= max_length and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _check_extents(path: Path, header: dict[str, Any], size: int) -> None:
    """Raises MalformedError unless the tensors follow one another and fill the `size` bytes."""
    extents = sorted((*info["data_offsets"], name) for name, info in header.items())
    ends = [(0, 0, ""), *extents, (size, size, "")]
    if overlap := [f"{one[2]} and {other[2]}" for one, other in pairwise(extents) if other[0] < one[1]]:
        raise MalformedError(f"{path}: tensors overlap: {enough(overlap)}")
    if extents and extents[-1][1] > size:
        missing = extents[-1][1] - size
        raise MalformedError(f"{path} is cut short: {missing} bytes are missing at the end, of {extents[-1][2]}")
    if any(one[1] != other[0] for one, other in pairwise(ends)):
        raise MalformedError(f"{path} holds {size} bytes of tensors, of which its header leaves some unnamed")
