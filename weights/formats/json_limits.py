"""Reads untrusted JSON: only files inside their own folder, and only up to the size that such a file can need.

JSON is measured before it is parsed. A parser makes objects of up to thirty times the size of the text, so both bytes
and values are limited.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from zoo.errors import MalformedError, NotAvailable, enough

MB = 10**6
CONFIG_LIMIT, INDEX_LIMIT, HEADER_LIMIT = 1 * MB, 32 * MB, 8 * MB
MAX_VALUES = 100_000  # an index needs one for each tensor; DeepSeek-V3 has 92,000
MAX_NON_ASCII = 1 * MB  # in memory, one wide character makes every character take four bytes


def member(folder: Path, name: str) -> Path:
    """Returns the path of a file in the folder. Raises NotAvailable if it does not exist, MalformedError for a link
    that leads elsewhere."""
    path = folder / name
    if not path.is_file():
        raise NotAvailable(f"{folder}: there is no {name}")
    if not os.access(path, os.R_OK):
        raise NotAvailable(f"{path} may not be read")
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
    """Returns the JSON object in the next `size` bytes of UTF-8, or in fewer at the end of the file.

    Raises MalformedError, naming `where`, for duplicate keys in one object, and for clearly more than `max_values`.
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
