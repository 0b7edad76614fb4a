"""Safetensors files whose first bytes, the header's length, are those of a pickle, and real pickles."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from weights.formats.untrusted import HEADER_LIMIT, PICKLES, read_header
from weights.matching import StoredTensor
from zoo.errors import MalformedError

ALIKE = [640, 896, 1152, 1408]  # lengths whose first two bytes are a pickle's: its mark and its protocol, 2 to 5
TENSOR = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
HELD = [StoredTensor("a", (2,), torch.float32)]


def safetensors(length: int) -> bytes:
    """A file with one tensor and a header of `length` bytes."""
    return struct.pack("<Q", length) + json.dumps(TENSOR).ljust(length).encode() + bytes(8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_these_lengths_begin_as_pickles_do() -> None:
    assert all(struct.pack("<Q", length).startswith(PICKLES) for length in ALIKE)
    assert sum(struct.pack("<Q", length).startswith(PICKLES) for length in range(0, 2**16, 8)) == len(ALIKE)


def test_every_length_of_a_header_is_read(file: Path) -> None:
    for length in [
        *range(len(json.dumps(TENSOR)), 1500),
        *(2**16 * i + length for i in (1, 2, 120) for length in ALIKE),
    ]:
        file.write_bytes(safetensors(length))
        assert read_header(file) == HELD, length
        if length in ALIKE:
            with safe_open(file, framework="pt") as library:
                assert library.get_tensor("a").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("length", [*ALIKE, 2**16 + 640])
def test_a_truncated_file_with_such_a_header_is_named_as_truncated(length: int, file: Path) -> None:
    whole = safetensors(length)
    for size in [*range(2, 64), length // 2, *range(length, len(whole))]:
        file.write_bytes(whole[:size])
        with pytest.raises(MalformedError, match="is cut short"):
            read_header(file)


def test_a_header_as_long_as_a_zip_archive_says_is_too_long(file: Path) -> None:
    """The file is sparse and takes no space on disk."""
    length = int.from_bytes(b"PK\x03\x04", "little")
    assert length > HEADER_LIMIT
    for size in (8 + length, 2**30):
        with file.open("wb") as stream:
            stream.write(struct.pack("<Q", length) + b"{")
            stream.truncate(size)
        with pytest.raises(MalformedError, match=f"a header of {length} bytes is above the limit of {HEADER_LIMIT}"):
            read_header(file)


def zipped(value: Any, path: Path) -> None:
    torch.save(value, path)


def unzipped(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def plain(protocol: int) -> Callable[[Any, Path], None]:
    """A pickle that Python wrote, in this protocol."""

    def save(value: Any, path: Path) -> None:
        path.write_bytes(pickle.dumps(value, protocol))

    return save


WRITERS = {"zip": zipped, "old": unzipped} | {f"protocol {n}": plain(n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)}
VALUES = {
    "nothing": None,
    "zero": 0.0,  # whose bytes are zeros, as are those of a length
    "empty": {},
    "text": "x" * 3,
    "tensors": {"model.norm.weight": torch.zeros(300)},
    "large": {"model.embed_tokens.weight": torch.zeros(2**20)},
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pickle_is_recognised_whole_or_truncated(writer: str, value: str, file: Path) -> None:
    WRITERS[writer](VALUES[value], file)
    whole = file.read_bytes()
    assert whole.startswith(PICKLES)
    for size in {min(len(whole), size) for size in (9, 1000, len(whole))}:
        file.write_bytes(whole[:size])
        with pytest.raises(MalformedError, match="is a pickle, which can run code and is never opened"):
            read_header(file)
