"""A .gguf file, as llama.cpp writes it, under the names and in the layout of Hugging Face.

The gguf library reads it, names its tensors and undoes their quantisation. What such a file does not say of its
architecture (Gemma's plan of layers and RoPE base of its local ones, SmolLM3's layers without positions) comes from the
preset of equal dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from reprlib import repr as brief
from types import ModuleType
from typing import Any

import gguf
import torch
from einops import rearrange
from torch import Tensor

from weights.formats.gguf_metadata import differences, rope_factors, unsaid, unused_words, words_of
from weights.matching import HEAD, Entry, match
from zoo import catalog
from zoo.architectures import families
from zoo.blocks import GQA
from zoo.errors import MalformedError, SpecError, enough, unknown
from zoo.hf.checkpoint_layout import COMMON, Rename, Rules
from zoo.model.decoder import Decoder

# GGUF's name of an architecture -> ours. Mistral Small 3.1 goes by Llama's.
FAMILIES = {
    "gemma3": ("gemma3",),
    "gpt-oss": ("gpt-oss",),
    "llama": ("llama3", "mistral3"),
    "mistral3": ("mistral3",),
    "olmo2": ("olmo2",),
    "qwen3": ("qwen3",),
    "qwen3moe": ("qwen3",),
    "smollm3": ("smollm3",),
}
SHIFTED = {"gemma3"}  # llama.cpp stores what a norm multiplies by, 1 + w, where Hugging Face stores w
PAIRED = {"llama", "mistral3", "smollm3"}  # and rows of queries and keys 2j and 2j + 1 that turn together
# Experts are stacked, gate and up apart, neither transposed nor by turns.
EXPERTS: Rules = (
    *(Rename(f"ffn.block.experts.{part}", f"mlp.experts.{part}_proj.weight") for part in ("gate", "up", "down")),
    *(Rename(f"ffn.block.experts.{part}_bias", f"mlp.experts.{part}_proj.bias") for part in ("gate", "up", "down")),
    Rename("attn.block.sinks", "self_attn.sinks.weight"),
)
EMBEDDING, ROPE_FREQS = "token_embd.weight", "rope_freqs.weight"
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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

    @property
    def rules(self) -> Rules:
        """The layout of this family's tensors."""
        return (*EXPERTS, *getattr(self._preset[1], "WEIGHTS", ()), *COMMON)

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
        name, _, spec = self._preset
        vouched = {*words_of(spec), *unused_words(spec), *ignore_fields}
        left = [f"{self.kind}.{key}={brief(value)}" for key, value in self._said.items() if key not in vouched]
        if left:
            raise MalformedError(
                f"{self.path}: not understood: {', '.join(left)}; pass --ignore-field NAME (ignore_fields=), the name "
                f"without {self.kind}., to vouch for one"
            )
        missing = [*unsaid(self._said, spec), *(["rope_freqs"] if self._lacks_factors(spec) else [])]
        log.info("%s does not say %s: taken from %s, of the same dimensions", self.path.name, ", ".join(missing), name)
        return spec

    @cached_property
    def _preset(self) -> tuple[str, ModuleType, Decoder]:
        """The preset that says what the file says wherever both say something, dimensions being said by both. Of
        several the one of the file's context."""
        differ: dict[str, list[str]] = {}
        found: list[tuple[str, ModuleType, Decoder]] = []
        for family in (families()[name] for name in FAMILIES[self.kind]):
            for name, size in family.SIZES.items():
                differ[name] = [*differences(self._said, size.spec), *self._other_factors(size.spec)]
                if not differ[name]:
                    found.append((name, family, size.spec))
        if not found:
            nearest = min(differ, key=lambda name: len(differ[name]))
            told = ", ".join(differ[nearest])
            raise MalformedError(f"{self.path}: no preset has its dimensions; {nearest} is nearest, but for {told}")
        context = self._said.get("context_length")
        name, family, spec = min(found, key=lambda each: (each[2].context != context, self._lacks_factors(each[2])))
        return name, family, self._sized(spec)

    def _sized(self, spec: Decoder) -> Decoder:
        """The preset with this file's vocabulary and context, which converters change."""
        rows = int(self._tensors[EMBEDDING].shape[-1]) if EMBEDDING in self._tensors else spec.vocab
        try:
            return replace(spec, vocab=rows, context=self._said.get("context_length"))
        except SpecError as error:
            raise MalformedError(f"{self.path}: {error}") from error

    @cached_property
    def _said(self) -> dict[str, Any]:
        """What the file says about its architecture, by the key without the architecture's name."""
        prefix = f"{self.kind}."
        return {key.removeprefix(prefix): value for key, value in self._fields.items() if key.startswith(prefix)}

    def _lacks_factors(self, spec: Decoder) -> bool:
        return rope_factors(spec) is not None and ROPE_FREQS not in self._tensors

    def _other_factors(self, spec: Decoder) -> list[str]:
        """A table of rotary factors, where there is one, must be the preset's: of ones where that scales nothing."""
        if ROPE_FREQS not in self._tensors:
            return []
        theirs, ours = self._numbers(self._tensors[ROPE_FREQS]), rope_factors(spec)
        ours = torch.ones(words_of(spec)["rope.dimension_count"] // 2) if ours is None else ours
        equal = theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-5, atol=0)
        return [] if equal else ["another table of rope_freqs"]

    def entries(self) -> list[Entry]:
        """Every tensor there is, by the name that Hugging Face gives it; one that it has no name for by its own."""
        names = {gguf: name for name, gguf in self._names.items()}
        return [
            Entry(names.get(name, name), tuple(int(n) for n in reversed(tensor.shape)), torch.float32)
            for name, tensor in self._tensors.items()
            if name != ROPE_FREQS  # it was held against the preset's
        ]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Hugging Face's name of every tensor of this model -> GGUF's."""
        spec = self._preset[2]
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        table = gguf.get_tensor_name_map(kinds[self.kind], len(spec.layers))
        parameters = dict(catalog.allocate(spec, "meta").named_parameters())
        wanted = [name for move in match(spec, parameters, self.rules, ()) for name in move.theirs]
        return {
            name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in dict.fromkeys([*wanted, HEAD])
        }

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor by Hugging Face's name, dequantised to float32 unless said."""
        numbers = self._numbers(self._tensors[self._names[name]])
        if self.kind in SHIFTED and name.endswith("norm.weight"):
            numbers = numbers - 1
        if self.kind in PAIRED and name.endswith(("q_proj.weight", "k_proj.weight")):
            numbers = self._halved(numbers, name)
        return numbers.to(device, dtype)

    def _halved(self, rows: Tensor, name: str) -> Tensor:
        """Rows that turn together, from side by side to half a head apart."""
        mixer = self._preset[2].layers[0].mixer
        assert isinstance(mixer, GQA)
        heads = mixer.heads if name.endswith("q_proj.weight") else mixer.kv_heads
        return rearrange(rows, "(h pair side) d -> (h side pair) d", h=heads, side=2)

    def _numbers(self, tensor: Any) -> Tensor:
        try:
            return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        except NotImplementedError as error:
            raise MalformedError(
                f"{self.path}: {tensor.name} is quantised in a way that is not read: {error}"
            ) from error


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
