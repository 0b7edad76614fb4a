"""A .gguf file, as llama.cpp writes it, under the names and in the layout of Hugging Face.

The gguf library reads it, names its tensors and undoes their quantisation. What such a file does not say about its
architecture (Gemma's plan of layers, the RoPE base of its local ones) comes from the preset of equal dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from math import isclose
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import gguf
import torch
from torch import Tensor

from weights.matching import Entry, match
from zoo import catalog
from zoo.architectures import families
from zoo.blocks import GLU, GQA, LinearScaling, RoPE
from zoo.decoder import Decoder
from zoo.errors import MalformedError, SpecError, enough, unknown
from zoo.layout import COMMON, Rules

FAMILIES = {"gemma3": "gemma3"}  # GGUF's name of an architecture -> ours
SHIFTED = {"gemma3"}  # llama.cpp stores what a norm multiplies by, 1 + w, where Hugging Face stores w
EMBEDDING = "token_embd.weight"
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DIMENSIONS = (
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
)
IMPLIED = ("attention.value_length", "rope.dimension_count")  # by attention.key_length
LONG = 4096  # a list of more entries describes the vocabulary, not the layers
VERSIONS = (2, 3)
MOST_TENSORS, MOST_FIELDS, MOST_ENTRIES = 5_000, 1_000, 20_000  # the library makes half a dozen objects of each
LEAST_TENSOR, LEAST_FIELD = 32, 13  # bytes that one takes
log = logging.getLogger(__name__)


class GGUFFile:
    """The tensors of a .gguf file: `entries` says what there is, `get` dequantises one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fields, self._tensors = _read(path)
        self.kind = str(self._fields.get("general.architecture"))
        if self.kind not in FAMILIES:
            raise MalformedError(f"{path}: {unknown('GGUF architecture', self.kind, FAMILIES)}")
        self.family = families()[FAMILIES[self.kind]]

    @property
    def rules(self) -> Rules:
        """The layout of this family's tensors."""
        return (*getattr(self.family, "WEIGHTS", ()), *COMMON)

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's; float32 if that is quantised: it holds the dequantised numbers as they are, and bfloat16
        would round them once more."""
        kind = self._tensors[EMBEDDING].tensor_type.name if EMBEDDING in self._tensors else ""
        return PLAIN.get(kind, torch.float32)

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text."""
        end = self._fields.get("tokenizer.ggml.eos_token_id")
        return [] if end is None else [int(end)]

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """The preset of this file's dimensions, with as many tokens as its embedding has rows.

        Raises MalformedError where there is none, or where the file says something else that is not understood.
        """
        name, spec = self._preset
        said = self._said()
        vouched = {"context_length", "vocab_size", *_says(spec), *ignore_fields}
        left = [f"{self.kind}.{key}={brief(value)}" for key, value in said.items() if key not in vouched]
        if left:
            raise MalformedError(
                f"{self.path}: not understood: {', '.join(left)}; pass --ignore-field NAME (ignore_fields=), the name "
                f"without {self.kind}., to vouch for one"
            )
        unsaid = ["the plan of layers", *(key for key in _says(spec) if key not in said and key not in IMPLIED)]
        log.info("%s does not say %s: taken from %s, of the same dimensions", self.path.name, ", ".join(unsaid), name)
        return spec

    @cached_property
    def _preset(self) -> tuple[str, Decoder]:
        """The preset that says what the file says wherever both say something, dimensions being said by both."""
        differ: dict[str, list[str]] = {}
        for name, size in self.family.SIZES.items():
            differ[name] = self._differences(size.spec)
            if not differ[name]:
                return name, self._sized(size.spec)
        nearest = min(differ, key=lambda name: len(differ[name]))
        told = ", ".join(differ[nearest])
        raise MalformedError(f"{self.path}: no preset has its dimensions; {nearest} is nearest, but for {told}")

    def _sized(self, spec: Decoder) -> Decoder:
        """The preset with this file's vocabulary and context, which converters change."""
        rows = int(self._tensors[EMBEDDING].shape[-1]) if EMBEDDING in self._tensors else spec.vocab
        try:
            return replace(spec, vocab=rows, context=self._said().get("context_length"))
        except SpecError as error:
            raise MalformedError(f"{self.path}: {error}") from error

    def _said(self) -> dict[str, Any]:
        """What the file says about its architecture, by the key without the architecture's name."""
        prefix = f"{self.kind}."
        return {key.removeprefix(prefix): value for key, value in self._fields.items() if key.startswith(prefix)}

    def _differences(self, spec: Decoder) -> list[str]:
        said = self._said()
        pairs = {key: (said.get(key, None if key in DIMENSIONS else ours), ours) for key, ours in _says(spec).items()}
        return [
            f"{key} {theirs} instead of {ours}" for key, (theirs, ours) in pairs.items() if not _equal(theirs, ours)
        ]

    def entries(self) -> list[Entry]:
        """Every tensor there is, by the name that Hugging Face gives it; one that it has no name for by its own."""
        names = {gguf: name for name, gguf in self._names.items()}
        return [
            Entry(names.get(name, name), tuple(int(n) for n in reversed(tensor.shape)), torch.float32)
            for name, tensor in self._tensors.items()
        ]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Hugging Face's name of every tensor of this model -> GGUF's."""
        spec = self._preset[1]
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        table = gguf.get_tensor_name_map(kinds[self.kind], len(spec.layers))
        parameters = dict(catalog.allocate(spec, "meta").named_parameters())
        wanted = (name for move in match(spec, parameters, self.rules, ()) for name in move.theirs)
        return {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in wanted}

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor by Hugging Face's name, dequantised to float32 unless said."""
        tensor = self._tensors[self._names[name]]
        try:
            numbers = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        except NotImplementedError as error:
            raise MalformedError(
                f"{self.path}: {tensor.name} is quantised in a way that is not read: {error}"
            ) from error
        moved = numbers - 1 if self.kind in SHIFTED and name.endswith("norm.weight") else numbers
        return moved.to(device, dtype)


def _says(spec: Decoder) -> dict[str, Any]:
    """What a file of this model says of it, in GGUF's words. Layers differ in windows and positions only."""
    windowed = next((layer.mixer for layer in spec.layers if layer.stored().window), None)
    whole = next((layer.mixer for layer in spec.layers if not layer.stored().window), windowed)
    ffn = spec.layers[0].ffn.block
    assert isinstance(whole, GQA)
    assert isinstance(whole.rope, RoPE)
    assert isinstance(ffn, GLU)
    sizes = (len(spec.layers), spec.dim, ffn.hidden, whole.heads, whole.kv_heads, whole.head_dim)
    says: dict[str, Any] = dict(zip(DIMENSIONS, sizes, strict=True)) | {
        "attention.value_length": whole.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm.eps,
        "rope.dimension_count": whole.head_dim,
        "rope.freq_base": whole.rope.theta,
    }
    if isinstance(windowed, GQA) and isinstance(windowed.rope, RoPE):
        says |= {"attention.sliding_window": windowed.window, "rope.freq_base_swa": windowed.rope.theta}
    if isinstance(whole.rope.scaling, LinearScaling):
        says |= {"rope.scaling.type": "linear", "rope.scaling.factor": whole.rope.scaling.factor}
    return says


def _equal(theirs: Any, ours: Any) -> bool:
    """Equal as far as the float32 of a file can say."""
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return isclose(theirs, ours, rel_tol=1e-6)
    return bool(theirs == ours)


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The library's, which takes ten seconds over a vocabulary, entry by entry: long lists are stepped over."""

    entries = 0  # of the lists that are not

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, (length,) = int(self._get(orig_offs, "u4")[0]), self._get(orig_offs + 4, "u8")
            self.entries += int(length) if length <= LONG else 0
            if self.entries > MOST_ENTRIES:
                raise ValueError(f"its short lists hold more than {MOST_ENTRIES} entries")
            if length > LONG:
                return 12 + self._extent(orig_offs + 12, gguf.GGUFValueType(kind), int(length)), [], [], []
        return super()._get_field_parts(orig_offs, raw_type)

    def _extent(self, start: int, kind: Any, length: int) -> int:
        """Bytes of `length` entries from `start` on."""
        if kind != gguf.GGUFValueType.STRING:
            return length * self.gguf_scalar_to_np[kind]().itemsize
        raw, at = memoryview(self.data), start
        for _ in range(length):
            if at >= len(raw):
                raise ValueError(f"a list of {length} entries is cut short")
            at += 8 + int.from_bytes(raw[at : at + 8], "little")
        return at - start


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields and the tensors of a .gguf file, by name."""
    _check_start(path)
    try:
        reader = _Reader(path, "c")  # copy on write: torch warns about memory that cannot be written
        if odd := [name for name in (*reader.fields, *(t.name for t in reader.tensors)) if not name.isprintable()]:
            raise ValueError(f"names that cannot be printed: {enough(ascii(name[:100]) for name in odd)}")
        fields = {name: field.contents() for name, field in reader.fields.items() if field.data}
        return fields, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the library has no errors of its own: what it stumbles over is the file's fault
        raise MalformedError(f"{path}: no readable .gguf file: {type(error).__name__}: {error}") from error


def _check_start(path: Path) -> None:
    """Raise MalformedError unless the first 24 bytes can be those of a .gguf file of this size."""
    with path.open("rb") as file:
        size, start = path.stat().st_size, file.read(24)
    magic, version = start[:4], int.from_bytes(start[4:8], "little")
    tensors, fields = int.from_bytes(start[8:16], "little"), int.from_bytes(start[16:24], "little")
    if len(start) < 24:
        wrong = f"{size} bytes are too few for its start"
    elif magic != b"GGUF":
        wrong = f"it starts with {magic!r} instead of b'GGUF'"
    elif version not in VERSIONS:
        wrong = f"version {version} is none of {', '.join(map(str, VERSIONS))}"
    elif tensors > MOST_TENSORS or fields > MOST_FIELDS:
        wrong = (
            f"{tensors} tensors and {fields} fields are more than the {MOST_TENSORS} and {MOST_FIELDS} of any release"
        )
    elif tensors * LEAST_TENSOR + fields * LEAST_FIELD > size:
        wrong = f"{size} bytes are too few for {tensors} tensors and {fields} fields"
    else:
        return
    raise MalformedError(f"{path}: no readable .gguf file: {wrong}")
