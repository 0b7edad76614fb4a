"""A .gguf file, as llama.cpp writes it, under the names and in the layout of Hugging Face.

The gguf library reads it, names its tensors and dequantises them. What such a file does not say (Gemma's layer pattern
and its local RoPE base, SmolLM3's layers without positions) comes from the preset of equal dimensions.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from math import isclose
from pathlib import Path
from reprlib import repr as brief
from struct import unpack
from types import ModuleType
from typing import Any

import gguf
import torch
from einops import rearrange
from torch import Tensor

from weights.matching import HEAD, Source, StoredTensor, layout, match
from zoo import catalog
from zoo.architectures import families
from zoo.blocks import GLU, GQA, LinearScaling, Llama3Scaling, MoE, RoPE, YarnScaling
from zoo.errors import MalformedError, SpecError, enough, unknown
from zoo.hf.checkpoint_layout import Rename, Rules
from zoo.model.decoder import Decoder

# GGUF's name of an architecture -> ours. Mistral Small 3.1 and Mixtral have Llama's name there.
FAMILIES: dict[str, tuple[str, ...]] = {"llama": ("llama3", "mistral3", "mixtral"), "qwen3moe": ("qwen3",)}
FAMILIES |= {"qwen2": ("qwen2-5",)}
FAMILIES |= {name: (name,) for name in ("gemma2", "gemma3", "gpt-oss", "mistral3", "olmo2", "qwen3", "smollm3")}
NORMS_PLUS_ONE = {"gemma2", "gemma3"}  # llama.cpp stores norm weights as 1 + w, Hugging Face as w
PAIRED_ROWS = {"llama", "mistral3", "smollm3"}  # RoPE rotates rows 2j and 2j + 1 of queries and keys as a pair
# Experts are stacked, gate and up apart, neither transposed nor interleaved.
EXPERTS: Rules = (
    *(Rename(f"ffn.block.experts.{part}", f"mlp.experts.{part}_proj.weight") for part in ("gate", "up", "down")),
    *(Rename(f"ffn.block.experts.{part}_bias", f"mlp.experts.{part}_proj.bias") for part in ("gate", "up", "down")),
    Rename("attn.block.sinks", "self_attn.sinks.weight"),
)
EMBEDDING, ROPE_FREQS = "token_embd.weight", "rope_freqs.weight"
UNQUANTISED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LONG_LIST = 4096  # a list of more entries describes the vocabulary, not the layers
VERSIONS = (2, 3)
MAX_TENSORS, MAX_FIELDS, MAX_ENTRIES = 5_000, 1_000, 20_000  # the library makes half a dozen objects of each
MIN_TENSOR_BYTES, MIN_FIELD_BYTES = 32, 13
# Metadata that a file must have these: they tell one preset from another.
REQUIRED = frozenset(
    "block_count embedding_length feed_forward_length attention.head_count expert_count expert_used_count".split()
)
# Where a file leaves these out, they follow from others, by the definition of GGUF.
IMPLIED = frozenset("attention.head_count_kv attention.key_length attention.value_length rope.dimension_count".split())
log = logging.getLogger(__name__)


class GGUFFile(Source):
    """The tensors of a .gguf file: `stored` lists them, `get` dequantises one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fields, self._tensors = read_gguf(path)
        self.kind = str(self._fields.get("general.architecture"))
        if self.kind not in FAMILIES:
            raise MalformedError(f"{path}: {unknown('GGUF architecture', self.kind, FAMILIES)}")

    @property
    def rules(self) -> Rules:
        return (*EXPERTS, *layout(self.preset[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's; float32 if that is quantised, since bfloat16 would round dequantised values once more."""
        kind = self._tensors[EMBEDDING].tensor_type.name if EMBEDDING in self._tensors else ""
        return UNQUANTISED.get(kind, torch.float32)

    @property
    def end_tokens(self) -> list[int]:
        end = self._fields.get("tokenizer.ggml.eos_token_id")
        return [] if end is None else [int(end)]

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """The preset of this file's dimensions, with the vocabulary size of its embedding. Raises MalformedError where
        there is none, or where the file has a field that is not understood."""
        name, _, spec = self.preset
        expected = metadata_of(spec)
        known = {*expected, "context_length", "vocab_size", *ignore_fields}
        if isinstance(spec.layers[0].feed_forward, MoE):
            known.add("feed_forward_length")  # the width of dense layers, of which this model has none
        if left := [f"{self.kind}.{key}={brief(value)}" for key, value in self._metadata.items() if key not in known]:
            raise MalformedError(
                f"{self.path}: not understood: {', '.join(left)}; pass --ignore-field NAME (ignore_fields=), the name "
                f"without {self.kind}., to ignore one"
            )
        absent = [key for key in expected if key not in self._metadata and key not in IMPLIED]
        missing = ", ".join(["the layer pattern", *absent, *(["rope_freqs"] if self._lacks_factors(spec) else [])])
        log.info("%s does not say %s: taken from %s, of the same dimensions", self.path.name, missing, name)
        return spec

    @cached_property
    def preset(self) -> tuple[str, ModuleType, Decoder]:
        """Name, family and spec of the preset that agrees with the file wherever both say something; both say the
        dimensions. Of several, the one with the file's context."""
        differ: dict[str, list[str]] = {}
        found: list[tuple[str, ModuleType, Decoder]] = []
        for family in (families()[name] for name in FAMILIES[self.kind]):
            for name, size in family.SIZES.items():
                differ[name] = [*spec_differences(self._metadata, size.spec), *self._other_factors(size.spec)]
                if not differ[name]:
                    found.append((name, family, size.spec))
        if not found:
            nearest = min(differ, key=lambda name: len(differ[name]))
            but = ", ".join(differ[nearest])
            raise MalformedError(f"{self.path}: no preset has its dimensions; {nearest} is nearest, but for {but}")
        context = self._metadata.get("context_length")
        name, family, spec = min(found, key=lambda each: (each[2].context != context, self._lacks_factors(each[2])))
        rows = int(self._tensors[EMBEDDING].shape[-1]) if EMBEDDING in self._tensors else spec.vocab
        try:
            return name, family, replace(spec, vocab=rows, context=context)  # converters change both
        except SpecError as error:
            raise MalformedError(f"{self.path}: {error}") from error

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """The fields about the architecture, by key without the architecture's name."""
        prefix = f"{self.kind}."
        return {key.removeprefix(prefix): value for key, value in self._fields.items() if key.startswith(prefix)}

    def _lacks_factors(self, spec: Decoder) -> bool:
        return rope_factors(spec) is not None and ROPE_FREQS not in self._tensors

    def _other_factors(self, spec: Decoder) -> list[str]:
        """A table of rotary factors, where there is one, must be the preset's: ones where the preset scales nothing."""
        if ROPE_FREQS not in self._tensors:
            return []
        stored, expected = self._dequantised(self._tensors[ROPE_FREQS]), rope_factors(spec)
        if expected is None:
            expected = torch.ones(metadata_of(spec)["rope.dimension_count"] // 2)
        equal = stored.shape == expected.shape and torch.allclose(stored, expected, rtol=1e-5, atol=0)
        return [] if equal else ["another table of rope_freqs"]

    def stored(self) -> list[StoredTensor]:
        """Every tensor, under Hugging Face's name; under its own if it has none there."""
        names = {gguf: name for name, gguf in self._names.items()}
        return [
            StoredTensor(names.get(name, name), tuple(int(n) for n in reversed(tensor.shape)), torch.float32)
            for name, tensor in self._tensors.items()
            if name != ROPE_FREQS  # compared with the preset's already
        ]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Hugging Face's name of every tensor of this model -> GGUF's."""
        spec = self.preset[2]
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        table = gguf.get_tensor_name_map(kinds[self.kind], len(spec.layers))
        parameters = dict(catalog.allocate(spec, "meta").named_parameters())
        names = [name for mapping in match(spec, parameters, self.rules, ()) for name in mapping.checkpoint_names]
        return {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in dict.fromkeys([*names, HEAD])}

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor by Hugging Face's name, dequantised to float32 and then cast."""
        tensor = self._dequantised(self._tensors[self._names[name]])
        if self.kind in NORMS_PLUS_ONE and name.endswith("norm.weight"):
            tensor = tensor - 1
        if self.kind in PAIRED_ROWS and name.endswith(("q_proj.weight", "k_proj.weight")):
            mixer = self.preset[2].layers[0].mixer
            assert isinstance(mixer, GQA)
            heads = mixer.heads if name.endswith("q_proj.weight") else mixer.kv_heads
            # The two rows of a pair, from side by side to half a head apart.
            tensor = rearrange(tensor, "(h pair side) d -> (h side pair) d", h=heads, side=2)
        return tensor.to(device, dtype)

    def _dequantised(self, tensor: Any) -> Tensor:
        try:
            return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        except NotImplementedError as error:
            raise MalformedError(f"{self.path}: {tensor.name} has a quantisation that is not read: {error}") from error


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The library's reader, but long lists are skipped: it takes ten seconds over a vocabulary, entry by entry."""

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
        """Bytes of `length` entries from `start` on."""
        if kind != gguf.GGUFValueType.STRING:
            return length * self.gguf_scalar_to_np[kind]().itemsize
        raw, at = memoryview(self.data), start
        for _ in range(length):
            if at >= len(raw):
                raise ValueError(f"a list of {length} entries is cut short")
            at += 8 + int.from_bytes(raw[at : at + 8], "little")
        return at - start


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields and the tensors of a .gguf file, by name. Raises MalformedError for a file that is not readable."""
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
    """Why the first 24 bytes cannot be those of a .gguf file of this size; None if they can."""
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


def metadata_of(spec: Decoder) -> dict[str, Any]:
    """The metadata of a file of this model, by key. Layers differ in windows and positions only."""
    windowed = next((layer.mixer for layer in spec.layers if layer.cache_spec().reach.limit), None)
    mixers = (layer.mixer for layer in spec.layers)
    full = next((m for m in mixers if isinstance(m, GQA) and m.window is None and isinstance(m.rope, RoPE)), windowed)
    assert isinstance(full, GQA)
    assert isinstance(full.rope, RoPE)
    ffn = spec.layers[0].feed_forward
    if isinstance(ffn, MoE):
        sizes = {"expert_count": ffn.experts, "expert_used_count": ffn.router.k}
        sizes["expert_feed_forward_length"] = ffn.expert.width
    else:
        assert isinstance(ffn, GLU)
        sizes = {"feed_forward_length": ffn.hidden}
    metadata: dict[str, Any] = {
        "block_count": len(spec.layers),
        "embedding_length": spec.dim,
        **sizes,
        "attention.head_count": full.heads,
        "attention.head_count_kv": full.kv_heads,
        "attention.key_length": full.head_dim,
        "attention.value_length": full.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm.eps,
        "rope.dimension_count": full.head_dim,
        "rope.freq_base": full.rope.theta,
        **_scaling(full.rope),
    }
    if full.cap:
        metadata["attn_logit_softcapping"] = full.cap
    if spec.logit_cap:
        metadata["final_logit_softcapping"] = spec.logit_cap
    if isinstance(windowed, GQA):
        metadata["attention.sliding_window"] = windowed.window
        if isinstance(windowed.rope, RoPE) and windowed.rope != full.rope:
            metadata["rope.freq_base_swa"] = windowed.rope.theta
    return metadata


def spec_differences(metadata: dict[str, Any], spec: Decoder) -> list[str]:
    """Where a file and a spec differ: in a required key, or in another key that the file has."""
    found = []
    for key, expected in metadata_of(spec).items():
        value = metadata.get(key, _implied(metadata, key, None if key in REQUIRED else expected))
        # Files hold float32.
        numbers = isinstance(expected, float) and isinstance(value, int | float)
        if not (isclose(value, expected, rel_tol=1e-6) if numbers else value == expected):
            found.append(f"{key} {value} instead of {expected}")
    return found


def rope_factors(spec: Decoder) -> Tensor | None:
    """(head_dim / 2,) what llama.cpp divides each rotary frequency by; None where it computes the scaling itself."""
    for mixer in (layer.mixer for layer in spec.layers):
        if isinstance(mixer, GQA) and isinstance(mixer.rope, RoPE) and isinstance(mixer.rope.scaling, Llama3Scaling):
            plain = mixer.rope.theta ** -(torch.arange(0, mixer.head_dim, 2) / mixer.head_dim)
            return plain / mixer.rope.scaling.scale(plain, mixer.rope.theta)
    return None


def _scaling(rope: RoPE) -> dict[str, Any]:
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, YarnScaling):
        ramp = {"rope.scaling.yarn_beta_fast": scaling.fast, "rope.scaling.yarn_beta_slow": scaling.slow}
        kind = {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        return kind | {"rope.scaling.original_context_length": scaling.original} | ramp
    return {}


def _implied(metadata: dict[str, Any], key: str, default: Any) -> Any:
    """The value of an absent key."""
    heads, dim = metadata.get("attention.head_count"), metadata.get("embedding_length")
    if key == "attention.head_count_kv":
        return heads
    if key == "attention.key_length" and isinstance(heads, int) and isinstance(dim, int) and heads > 0:
        return dim // heads
    return default
