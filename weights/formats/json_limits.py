"""Reading files that nobody vouches for: only those of their own folder, only as much as they can need.

JSON is measured before it is parsed. A parser makes objects of up to thirty times the text, so it is not the bytes
alone that have a limit, but also the values.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from zoo.errors import MalformedError, NotAvailable, enough

MB = 10**6
CONFIG_LIMIT, INDEX_LIMIT, HEADER_LIMIT = 1 * MB, 32 * MB, 8 * MB
PIECES = 100_000  # values that an index can need; DeepSeek-V3 has 92,000 tensors
ASCII_ABOVE = 1 * MB  # one wide character makes four bytes of each in memory


def member(folder: Path, name: str) -> Path:
    """A file of the folder. Raises NotAvailable if it is not there, MalformedError if it is a link that leads out."""
    path = folder / name
    if not path.is_file():
        raise NotAvailable(f"{folder}: there is no {name}")
    if not os.access(path, os.R_OK):
        raise NotAvailable(f"{path} may not be read")
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"  # of the hub's cache, whose snapshots/<commit>/ are links
    if not real.is_relative_to(home) and not (home.parent.name == "snapshots" and real.parent == blobs):
        raise MalformedError(f"{path} is a link that leads out of its folder, to {real}")
    return path


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise MalformedError(f"{path} has {size} bytes, above the {limit} that such a file can need")
    with path.open("rb") as file:
        return parse(str(path), file, limit, PIECES)


def parse(where: str, file: BinaryIO, size: int, pieces: int) -> dict[str, Any]:
    """The object that the next `size` bytes of UTF-8 JSON say, or as many as there are.

    No name may come twice in one object, nor many more than `pieces` values in all.
    """
    data = file.read(size)
    if data.count(b",") + data.count(b"[") + data.count(b"{") > pieces:
        raise MalformedError(f"{where} holds more than the {pieces} values that it can need")
    if len(data) > ASCII_ABOVE and not data.isascii():
        raise MalformedError(f"{where} is above {ASCII_ABOVE} bytes and not ASCII")
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
    found = dict(pairs)
    if len(found) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = {one for one, other in pairwise(names) if one == other}
        raise ValueError(f"said twice: {enough(ascii(name[:80]) for name in sorted(twice))}")
    return found
