"""Reads untrusted JSON and safetensors headers: strictly, with size limits, and only inside their own folder.

JSON is measured before it is parsed. Parsed objects can take thirty times the memory of the text, so both bytes and
values are limited. Safetensors headers are checked here before the library maps the file. The library silently keeps
the last of two tensors with the same name, and needs ten times the size of a header in memory.
"""

import json
import os
from collections import Counter
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from weights.matching import StoredTensor
from zoo.errors import MalformedError, NotAvailable, enough

MB = 10**6
CONFIG_LIMIT, INDEX_LIMIT, HEADER_LIMIT = 1 * MB, 32 * MB, 8 * MB
MAX_VALUES = 100_000  # an index has one value per tensor; DeepSeek-V3 has 92,000
MAX_NON_ASCII = 1 * MB  # one wide character makes every character take four bytes in memory
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8, "I8": torch.int8}  # packed weights
DTYPES |= {"F8_E8M0": torch.float8_e8m0fnu}  # scales of packed weights
DTYPES |= {"I64": torch.int64, "I32": torch.int32}  # tables of ids
BITS = {word: 8 * dtype.itemsize for word, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= {"BOOL": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
BITS |= {"U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64}
MAX_NAME_CHARACTERS, MAX_AXES = 512, 16  # more than any checkpoint has
MAX_HEADER_VALUES = 700_000  # eight values for each tensor that HEADER_LIMIT bytes can describe
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save's files begin


def member(folder: Path, name: str) -> Path:
    """Returns the path of a file in the folder. Raises NotAvailable if it does not exist, MalformedError for a link
    that leads out of the folder."""
    path = folder / name
    if not path.is_file():
        raise NotAvailable(f"{folder}: there is no {name}")
    if not os.access(path, os.R_OK):
        raise NotAvailable(f"{path} cannot be read: permission denied")
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"  # in the hub's cache, snapshots/<commit>/ holds links to these
    if not real.is_relative_to(home) and not (home.parent.name == "snapshots" and real.parent == blobs):
        raise MalformedError(f"{path} is a link that leads out of its folder, to {real}")
    return path


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Returns the JSON object in a file of at most `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise MalformedError(f"{path} has {size} bytes, above the {limit} that such a file can need")
    with path.open("rb") as file:
        return parse(str(path), file, limit, MAX_VALUES)


def parse(where: str, file: BinaryIO, size: int, max_values: int) -> dict[str, Any]:
    """Returns the JSON object in the next `size` bytes of a UTF-8 file, which may end earlier.

    Raises MalformedError, naming `where`, for invalid JSON, for duplicate keys in an object, and for clearly more than
    `max_values` values.
    """
    data = file.read(size)
    if data.count(b",") + data.count(b"[") + data.count(b"{") > max_values:
        raise MalformedError(f"{where} holds more than the {max_values} values that it can need")
    if len(data) > MAX_NON_ASCII and not data.isascii():
        raise MalformedError(f"{where} is above {MAX_NON_ASCII} bytes and not ASCII")
    try:
        text = data.decode()
        del data
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedError(f"{where} holds a {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(unique := dict(pairs)) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        duplicates = sorted(name for name, count in counts.items() if count > 1)
        raise ValueError(f"duplicate key: {enough(ascii(name[:80]) for name in duplicates)}")
    return unique


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
        header = parse(f"{path}: the header", file, length, MAX_HEADER_VALUES)
    return header_tensors(path, header, size - 8 - length)


def header_tensors(where: object, header: dict[str, Any], size: int | None = None) -> list[StoredTensor]:
    """Returns every tensor that a parsed header describes, sorted by name. Raises MalformedError, naming `where`, for
    an invalid header, or if its tensors do not fill the file's `size` bytes (None: the file's size is unknown)."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError(f"{where}: the header's __metadata__ holds more than text")
    if wrong := [ascii(name[:MAX_NAME_CHARACTERS]) for name, info in header.items() if not _is_tensor(name, info)]:
        raise MalformedError(f"{where}: the header does not describe a tensor under {enough(wrong)}")
    ends = [info["data_offsets"][1] for info in header.values()]
    _check_extents(where, header, max(ends, default=0) if size is None else size)
    return [
        StoredTensor(name, tuple(info["shape"]), DTYPES.get(info["dtype"])) for name, info in sorted(header.items())
    ]


def _is_pickle(start: bytes, length: int, size: int) -> bool:
    """Whether a file of `size` bytes is a pickle and not a safetensors file. `start` holds its first nine bytes.

    A safetensors file begins with the length of its header. The lengths 640, 896, 1152 and 1408, and one in 2,048 of
    the greater lengths, look like the start of a pickle. The first eight bytes of a pickle, read as a length, are far
    more than its size, and its ninth byte is not `{`. In a file of at most eight bytes, the length alone decides.
    """
    if not start.startswith(PICKLES) or length <= size - 8:
        return False
    return length > HEADER_LIMIT if len(start) < 9 else not start.endswith(b"{")


def _is_tensor(name: str, info: Any) -> bool:
    """Whether an entry of the header has a printable name, a known dtype, a shape, and a byte range of matching
    length."""
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


def _check_extents(path: object, header: dict[str, Any], size: int) -> None:
    """Raises MalformedError unless the tensors are contiguous and fill exactly `size` bytes."""
    extents = sorted((*info["data_offsets"], name) for name, info in header.items())
    ends = [(0, 0, ""), *extents, (size, size, "")]
    if overlap := [f"{one[2]} and {other[2]}" for one, other in pairwise(extents) if other[0] < one[1]]:
        raise MalformedError(f"{path}: tensors overlap: {enough(overlap)}")
    if extents and extents[-1][1] > size:
        missing = extents[-1][1] - size
        raise MalformedError(f"{path} is cut short: {missing} bytes are missing at the end, of {extents[-1][2]}")
    if any(one[1] != other[0] for one, other in pairwise(ends)):
        raise MalformedError(f"{path} holds {size} bytes of tensors, of which its header leaves some unnamed")
