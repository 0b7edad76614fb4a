"""Reads llama.cpp's .gguf files, and converts their tensors to the names and the layout of Hugging Face.

The gguf library parses the file, maps the tensor names and dequantises. Facts that a .gguf file lacks (Gemma's layer
pattern and local RoPE base, SmolLM3's layers without positions) come from the preset with the same dimensions.
"""

import logging
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from reprlib import repr as brief
from struct import unpack
from types import ModuleType
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor

from weights.formats.generation import generation_config
from weights.formats.gguf_layout import (
    ARCHITECTURES,
    EXPERTS,
    FLATTENED,
    TensorNames,
    joined,
    joined_shape,
    split_parts,
    undone,
)
from weights.formats.gguf_metadata import (
    NOTED,
    PREDICTED,
    ROPE_TABLES,
    metadata_of,
    rope_factors,
    spec_differences,
)
from weights.formats.untrusted import CONFIG_LIMIT, MB
from weights.matching import HEAD, Source, StoredTensor, layout, match
from zoo import catalog
from zoo.architectures import families
from zoo.blocks.layer import Layer
from zoo.errors import MalformedError, SpecError, enough, unknown
from zoo.hf.checkpoint_layout import Rules
from zoo.model.decoder import Decoder
from zoo.model.sampling import GenerationConfig

EMBEDDING = "token_embd.weight"
UNQUANTISED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LONG_LIST = 4096  # a list of more entries describes the vocabulary, not the layers
MAX_LIST, MAX_LIST_BYTES = 1_000_000, 32 * MB  # limits of one list; Gemma's 514,906 merges take 10 MB
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p"}  # setting -> key in the file
VERSIONS = (2, 3)
MAX_TENSORS, MAX_FIELDS, MAX_ENTRIES = 5_000, 1_000, 20_000  # the library makes half a dozen objects for each
MIN_TENSOR_BYTES, MIN_FIELD_BYTES = 32, 13
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LongList:
    """A long list, such as a vocabulary, which is read on demand. `start` is the file offset of its entries, `kind`
    their type, `length` their number, and `nbytes` their size."""

    path: Path
    start: int
    kind: gguf.GGUFValueType
    length: int
    nbytes: int

    def read(self) -> list[Any]:
        """Returns the entries. Raises MalformedError for a list beyond the limits, and for text that is not UTF-8."""
        if self.length > MAX_LIST or self.nbytes > MAX_LIST_BYTES:
            size = f"{self.length} entries in {self.nbytes} bytes"
            raise MalformedError(f"{self.path}: a list of {size} is above the limit of {MAX_LIST} and {MAX_LIST_BYTES}")
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.nbytes)
        if len(data) < self.nbytes:
            raise MalformedError(f"{self.path} is cut short in a list of {self.length} entries")
        if self.kind != gguf.GGUFValueType.STRING:
            return list(np.frombuffer(data, gguf.GGUFReader.gguf_scalar_to_np[self.kind]).tolist())
        found, at = [], 0
        try:
            for _ in range(self.length):
                end = at + 8 + int.from_bytes(data[at : at + 8], "little")
                found.append(data[at + 8 : end].decode())
                at = end
        except UnicodeDecodeError as error:
            raise MalformedError(f"{self.path}: an entry of a list is not UTF-8: {error.reason}") from error
        return found


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The library's reader, changed to skip long lists: reading a vocabulary entry by entry takes ten seconds."""

    entries = 0  # total number in short lists

    def __init__(self, path: Path) -> None:
        self.path, self.long_lists = path, dict[int, LongList]()  # by the file offset of their values
        super().__init__(path, "c")  # copy on write: torch warns about memory that cannot be written

    def contents(self, field: gguf.ReaderField) -> Any:
        """Returns the value of a field. A long list is returned as a LongList; an empty list, and a text longer than
        any chat template, as None."""
        if field.types[:1] == [gguf.GGUFValueType.STRING] and field.parts[-1].nbytes > CONFIG_LIMIT:
            return None
        at = field.offset + sum(part.nbytes for part in field.parts[:3])  # key and type
        return field.contents() if field.data else self.long_lists.get(at)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, (length,) = int(self._get(orig_offs, "u4")[0]), self._get(orig_offs + 4, "u8")
            self.entries += int(length) if length <= LONG_LIST else 0
            if self.entries > MAX_ENTRIES:
                raise ValueError(f"its short lists hold more than {MAX_ENTRIES} entries")
            if length > LONG_LIST:
                entries, start = gguf.GGUFValueType(kind), orig_offs + 12
                nbytes = self._extent(start, entries, int(length))
                self.long_lists[orig_offs] = LongList(self.path, start, entries, int(length), nbytes)
                return 12 + nbytes, [], [], []
        return super()._get_field_parts(orig_offs, raw_type)

    def _extent(self, start: int, kind: Any, length: int) -> int:
        """Returns the size in bytes of `length` entries that begin at `start`."""
        if kind != gguf.GGUFValueType.STRING:
            return length * self.gguf_scalar_to_np[kind]().itemsize
        raw, at = memoryview(self.data), start
        for _ in range(length):
            if at >= len(raw):
                raise ValueError(f"a list of {length} entries is cut short")
            at += 8 + int.from_bytes(raw[at : at + 8], "little")
        return at - start


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields and the tensors of a .gguf file, each by name. A long list is returned as a LongList. Raises
    MalformedError for an unreadable file."""
    if problem := _start_problem(path):
        raise MalformedError(f"{path} is not a readable .gguf file: {problem}")
    try:
        reader = _Reader(path)
        if odd := [name for name in (*reader.fields, *(t.name for t in reader.tensors)) if not name.isprintable()]:
            raise ValueError(f"names that cannot be printed: {enough(ascii(name[:100]) for name in odd)}")
        fields = {name: reader.contents(field) for name, field in reader.fields.items()}
        fields = {name: value for name, value in fields.items() if value is not None}
        return fields, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the library has no error types of its own: every error means a bad file
        raise MalformedError(f"{path} is not a readable .gguf file: {type(error).__name__}: {error}") from error


def _start_problem(path: Path) -> str | None:
    """Describes what is wrong with the first 24 bytes of a .gguf file, or returns None if they are valid."""
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


class Stored(NamedTuple):
    """A tensor of Hugging Face's layout: the names of the file's tensors that hold it, the spec of its layer, and the
    shape that the model expects."""

    names: tuple[str, ...]
    layer: Layer | None
    shape: tuple[int, ...]


class _Held(Container[str]):
    """The Hugging Face names of the tensors in the file. `find` maps a name to the file's names, () if it is absent."""

    def __init__(self, find: Callable[[str], tuple[str, ...]]) -> None:
        self._find = find

    def __contains__(self, name: object) -> bool:
        return bool(self._find(str(name)))


class GGUFFile(Source):
    """The tensors of a .gguf file: `stored` lists them, `get` dequantises one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fields, self._tensors = read_gguf(path)
        self.kind = str(self._fields.get("general.architecture"))
        if self.kind not in ARCHITECTURES:
            raise MalformedError(f"{path}: {unknown('GGUF architecture', self.kind, ARCHITECTURES)}")

    @property
    def text_path(self) -> Path:
        return self.path

    @property
    def rules(self) -> Rules:
        return (*ARCHITECTURES[self.kind].rules, *EXPERTS, *layout(self.preset[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's dtype; float32 if it is quantised, since bfloat16 would round dequantised values again."""
        kind = self._tensors[EMBEDDING].tensor_type.name if EMBEDDING in self._tensors else ""
        return UNQUANTISED.get(kind, torch.float32)

    @property
    def generation(self) -> GenerationConfig:
        """The sampling settings, and the ids of the tokens that end a text, a turn or a message."""
        settings = {name: self._fields.get(f"general.sampling.{key}") for name, key in SAMPLING.items()}
        decimal = {name: float(str(np.float32(n))) for name, n in settings.items() if isinstance(n, float)}
        ids = [self._fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        ends = dict.fromkeys(each for each in ids if each is not None)
        return generation_config(settings | decimal | {"eos_token_id": [*ends]}, self.path)

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """Returns the spec of the preset with this file's dimensions, and with the vocabulary size of the file's
        embedding. Raises MalformedError if there is no such preset, or if the file has an unknown field."""
        name, _, spec = self.preset
        expected = metadata_of(self.kind, spec)
        known = {*expected, *ignore_fields}
        if left := [f"{self.kind}.{key}={brief(value)}" for key, value in self._metadata.items() if key not in known]:
            raise MalformedError(
                f"{self.path}: not understood: {', '.join(left)}; pass --ignore-field NAME (ignore_fields=), the name "
                f"without {self.kind}., to ignore one"
            )
        absent = [key for key, value in expected.items() if key in NOTED - self._metadata.keys() and value is not ...]
        tables = (name.removesuffix(".weight") for name in self._missing_factors(spec))
        missing = ", ".join(["the layer pattern", *absent, *tables])
        log.info("%s does not say %s: taken from %s, of the same dimensions", self.path.name, missing, name)
        return spec

    @cached_property
    def preset(self) -> tuple[str, ModuleType, Decoder]:
        """Name, family and spec of the preset that contradicts no value in the file, dimensions included. Among several
        such presets, one with the file's context is preferred."""
        differ: dict[str, list[str]] = {}
        found: list[tuple[str, ModuleType, Decoder]] = []
        for family in (families()[name] for name in ARCHITECTURES[self.kind].families):
            for name, size in family.SIZES.items():
                differ[name] = [
                    *spec_differences(self.kind, self._metadata, size.spec),
                    *self._other_factors(size.spec),
                ]
                if not differ[name]:
                    found.append((name, family, size.spec))
        if not found:
            nearest = min(differ, key=lambda name: len(differ[name]))
            but = ", ".join(differ[nearest])
            raise MalformedError(f"{self.path}: no preset has its dimensions; {nearest} is nearest, but for {but}")
        context = self._metadata.get("context_length")
        name, family, spec = min(found, key=lambda each: (each[2].context != context, self._missing_factors(each[2])))
        rows = int(self._tensors[EMBEDDING].shape[-1]) if EMBEDDING in self._tensors else spec.vocab
        try:
            return name, family, replace(spec, vocab=rows, context=context)  # converters change both of them
        except SpecError as error:
            raise MalformedError(f"{self.path}: {error}") from error

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """The fields about the architecture. Their keys lack the prefix with the architecture's name."""
        prefix = f"{self.kind}."
        found = {key.removeprefix(prefix): value for key, value in self._fields.items() if key.startswith(prefix)}
        layers, predicted = found.get("block_count"), found.get(PREDICTED)
        if not isinstance(layers, int) or not isinstance(predicted, int):
            return found
        # The last layers predict further tokens and are not loaded.
        found["block_count"] = layers - predicted
        lists = {key: value for key, value in found.items() if isinstance(value, list) and len(value) == layers}
        return found | {key: value[: layers - predicted] for key, value in lists.items()}

    def _missing_factors(self, spec: Decoder) -> list[str]:
        return sorted(rope_factors(spec).keys() - self._tensors.keys())

    def _other_factors(self, spec: Decoder) -> list[str]:
        """Returns a line for each of the file's tables of rotary factors that differs from the preset's table. A preset
        without scaling counts as a table of ones."""
        expected, found = rope_factors(spec), []
        rotated = metadata_of(self.kind, spec)["rope.dimension_count"]
        plain = torch.ones(0 if rotated is ... else rotated // 2)
        for name in self._tensors.keys() & ROPE_TABLES:
            stored, wanted = self._dequantised(self._tensors[name]), expected.get(name, plain)
            if stored.shape != wanted.shape or not torch.allclose(stored, wanted, rtol=1e-5, atol=0):
                found.append(f"another table of {name.removesuffix('.weight')}")
        return sorted(found)

    def stored(self) -> list[StoredTensor]:
        """Returns every tensor, under its Hugging Face name or, if it has none, under its name in the file."""
        found = [StoredTensor(name, self._shape(name), torch.float32) for name in self._names]
        used = {name for tensor in self._names.values() for name in tensor.names}
        others = self._tensors.keys() - used - ROPE_TABLES  # `_other_factors` compares these
        return [*found, *(StoredTensor(name, self._raw_shape(name), torch.float32) for name in sorted(others))]

    @cached_property
    def _names(self) -> dict[str, Stored]:
        """The model's tensors that the file holds, by Hugging Face name."""
        spec = self.preset[2]
        named = TensorNames(self.kind, len(spec.layers))
        parameters = dict(catalog.allocate(spec, "meta").named_parameters())
        found: dict[str, Stored] = {}
        for mapping in match(spec, parameters, self.rules, _Held(lambda name: self._held_in(named(name)))):
            for name, shape in mapping.expected(parameters).items():
                if names := self._held_in(named(name)):
                    found[name] = Stored(names, mapping.layer, shape)
        if HEAD not in found and (names := self._held_in(named(HEAD))):
            found[HEAD] = Stored(names, None, self._raw_shape(names[0]))
        return found

    def _held_in(self, name: str | None) -> tuple[str, ...]:
        """Returns the names of the file's tensors that hold this tensor: its own name, or its two parts; () if it is
        absent."""
        if name is None or name in self._tensors:
            return () if name is None else (name,)
        parts = split_parts(name) or ()
        return parts if parts and all(part in self._tensors for part in parts) else ()

    def _raw_shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def _shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of Hugging Face's tensor. Conversion and quantisation may add or remove axes of length
        1."""
        tensor = self._names[name]
        shapes = [self._raw_shape(each) for each in tensor.names]
        shape = joined_shape(*shapes) if len(shapes) == 2 else shapes[0]
        if tensor.names[0].endswith(FLATTENED):
            shape = (prod(shape),)
        same = [n for n in shape if n != 1] == [n for n in tensor.shape if n != 1]
        return tensor.shape if same else shape

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """Returns the tensor with this Hugging Face name, dequantised to float32 and then cast."""
        if name not in self._names:
            return self._dequantised(self._tensors[name]).to(device, dtype)
        stored = self._names[name]
        parts = [self._dequantised(self._tensors[each]) for each in stored.names]
        tensor = joined(*parts) if len(parts) == 2 else parts[0]
        mixer = stored.layer.mixer if stored.layer else None
        tensor = undone(name, tensor.reshape(self._shape(name)), mixer, ARCHITECTURES[self.kind].changes)
        return tensor.to(device, dtype)

    def _dequantised(self, tensor: Any) -> Tensor:
        data = np.asarray(tensor.data)  # gguf makes many views, and a view of a memmap is slow to make
        try:
            return torch.from_numpy(gguf.dequantize(data, tensor.tensor_type))
        except NotImplementedError as error:
            raise MalformedError(f"{self.path}: {tensor.name} has an unsupported quantisation: {error}") from error
