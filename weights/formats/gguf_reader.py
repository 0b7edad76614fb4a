"""Reads the fields and tensors of a .gguf file: the gguf library's reader, with limits on a file's declarations."""

from pathlib import Path
from struct import unpack
from typing import Any

import gguf

from zoo.errors import MalformedError, enough

LONG_LIST = 4096  # a list of more entries describes the vocabulary, not the layers
VERSIONS = (2, 3)
MAX_TENSORS, MAX_FIELDS, MAX_ENTRIES = 5_000, 1_000, 20_000  # the library makes half a dozen objects of each
MIN_TENSOR_BYTES, MIN_FIELD_BYTES = 32, 13


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The library's reader without long lists, since it reads a vocabulary entry by entry, for ten seconds."""

    entries = 0  # in short lists

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, (length,) = int(self._get(orig_offs, "u4")[0]), self._get(orig_offs + 4, "u8")
            self.entries += int(length) if length <= LONG_LIST else 0
            if self.entries > MAX_ENTRIES:
                raise ValueError(f"its short lists hold more than {MAX_ENTRIES} entries")
            if length > LONG_LIST:
                return 12 + self._extent(orig_offs + 12, gguf.GGUFValueType(kind), int(length)), [], [], []
        return super()._get_field_parts(orig_offs, raw_type)

    def _extent(self, start: int, kind: Any, length: int) -> int:
        """Returns the bytes of `length` entries from `start` on."""
        if kind != gguf.GGUFValueType.STRING:
            return length * self.gguf_scalar_to_np[kind]().itemsize
        raw, at = memoryview(self.data), start
        for _ in range(length):
            if at >= len(raw):
                raise ValueError(f"a list of {length} entries is cut short")
            at += 8 + int.from_bytes(raw[at : at + 8], "little")
        return at - start


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields and the tensors of a .gguf file, by name. Raises MalformedError for an unreadable file."""
    if problem := _start_problem(path):
        raise MalformedError(f"{path} is not a readable .gguf file: {problem}")
    try:
        reader = _Reader(path, "c")  # copy on write: torch warns about memory that cannot be written
        if odd := [name for name in (*reader.fields, *(t.name for t in reader.tensors)) if not name.isprintable()]:
            raise ValueError(f"names that cannot be printed: {enough(ascii(name[:100]) for name in odd)}")
        fields = {name: field.contents() for name, field in reader.fields.items() if field.data}
        return fields, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the library has no error types of its own: any of them is the file's fault
        raise MalformedError(f"{path} is not a readable .gguf file: {type(error).__name__}: {error}") from error


def _start_problem(path: Path) -> str | None:
    """Describes a mistake in the first 24 bytes of a .gguf file of this size; None if there is none."""
    with path.open("rb") as file:
        size, start = path.stat().st_size, file.read(24)
    if len(start) < 24:
        return f"{size} bytes are too few for its start"
    magic, version, tensors, fields = unpack("<4sIQQ", start)
    if magic != b"GGUF":
        return f"it starts with {magic!r} instead of b'GGUF'"
    if version not in VERSIONS:
        return f"version must be one of {', '.join(map(str, VERSIONS))}, got {version}"
    if tensors > MAX_TENSORS or fields > MAX_FIELDS:
        return f"{tensors} tensors and {fields} fields are more than the {MAX_TENSORS} and {MAX_FIELDS} of any release"
    if tensors * MIN_TENSOR_BYTES + fields * MIN_FIELD_BYTES > size:
        return f"{size} bytes are too few for {tensors} tensors and {fields} fields"
    return None
