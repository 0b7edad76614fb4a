"""Reads a folder in Hugging Face layout: config.json, and one safetensors file or several with an index.

Nothing in the folder is trusted: docs/loading.md lists the errors for broken and hostile folders. A folder is refused
for its scheme of quantisation before any field of its config is checked, since no field can make it readable.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.formats.fp8_mxfp4 import EXPERT_DTYPES, FORMATS, FP4, PackedFormat, expert_dtype, formats_of
from weights.formats.generation import generation_config
from weights.formats.untrusted import CONFIG_LIMIT, INDEX_LIMIT, member, read_header, read_json
from weights.matching import HEAD, READABLE_DTYPES, Part, Source, StoredTensor, layout, listed
from zoo import catalog
from zoo.errors import MalformedError, NotAvailable, enough
from zoo.hf.checkpoint_layout import Rules
from zoo.hf.config import contradicts_on_tying
from zoo.hf.fields import Fields
from zoo.model.decoder import Decoder
from zoo.model.sampling import GenerationConfig

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MODELOPT = "hf_quant_config.json"  # where older files of ModelOpt name their scheme, instead of config.json
SHARD = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")
MAX_PARAMETERS, MAX_EXPERTS = 10**14, 10**5  # in all layers: more than any release has, less than torch can size
MAX_BROKEN_SHARDS = 20  # in one error message
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
_SPELT_ALIKE = (
    "AQLM|AWQ|BitNet|bitsandbytes|compressed-tensors|EETQ|FBGEMM FP8|FP-Quant|GGUF|GPTQ|HIGGS|HQQ|MXFP8|NVFP4|Quanto|"
    "SINQ|SpQR|torchao|VPTQ"
)
# quant_method, in lower case and with hyphens -> the scheme's usual name.
NAMES = {name.lower().replace(" ", "-"): name for name in _SPELT_ALIKE.split("|")} | {
    **dict.fromkeys(("auto-round", "intel/auto-round"), "AutoRound"),
    **dict.fromkeys(("modelopt", "modelopt-fp4"), "NVIDIA ModelOpt"),
    "quark": "AMD Quark",
}
# Where quant_method is missing, any of these fields reveals the scheme. The first scheme counts.
MARKS = {
    "bitsandbytes": ("load_in_4bit", "load_in_8bit"),
    "compressed-tensors": ("config_groups",),
    "NVIDIA ModelOpt": ("quant_algo",),
    "GPTQ": ("desc_act", "damp_percent"),
    "AWQ": ("zero_point", "q_group_size", "w_bit"),
    "MLX": ("group_size",),
}
log = logging.getLogger(__name__)


class HFFolder(Source):
    """The tensors of a folder. `get` maps a tensor into memory without reading it. A packed tensor (fp8, fp4, MXFP4)
    has the name of its codes, and `get` unpacks it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(member(path, CONFIG), CONFIG_LIMIT)
        check_scheme(path, self.config)
        self.family = catalog.family_of(self.config)
        self._read_headers()
        self._packed: dict[str, tuple[PackedFormat, str]] = {}  # name of the codes -> format, name of the scales
        self._quantization: Fields | None = None
        if (quantization := self._field("quantization_config")) is not None:
            self._read_packed(quantization)

    @property
    def rules(self) -> Rules:
        return layout(self.family)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that config.json states, or else that of the first tensor that is not packed."""
        name = self._field("dtype") or self._field("torch_dtype")
        if name is None:
            unpacked = (each.dtype for each in self._stored if each.name not in self._packed)
            return next((dtype for dtype in unpacked if dtype in READABLE_DTYPES), torch.float32)
        if not isinstance(name, str) or name not in DTYPES:
            raise MalformedError(f"{self.path / CONFIG}: dtype must be one of {', '.join(DTYPES)}, got {brief(name)}")
        return DTYPES[name]

    @property
    def generation(self) -> GenerationConfig:
        """The settings in generation_config.json. Where it names no end tokens, config.json does."""
        has_file = (self.path / GENERATION).exists()
        settings = read_json(member(self.path, GENERATION), CONFIG_LIMIT) if has_file else {}
        if settings.get("eos_token_id") is None:
            settings["eos_token_id"] = self._field("eos_token_id")
        return generation_config(settings, self.path / GENERATION)

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """Returns the model that config.json describes. Raises MalformedError for a model that the files cannot
        hold."""
        if self._quantization is not None:
            self._quantization.finish(ignore_fields)
        spec = catalog.from_hf(self.config, ignore_fields)
        if contradicts_on_tying(self.config):  # the reference ties a head only where none is stored
            spec = replace(spec, tied=HEAD not in self.tensors)
        experts = sum(layer.mixture.experts for layer in spec.layers if layer.mixture)
        count = len(self._shard_of)
        limits = (
            ("layers", len(spec.layers), count, f"with {count} tensors in the files"),
            ("experts in all layers", experts, MAX_EXPERTS, f"above {MAX_EXPERTS}"),
            ("parameters", spec.params(), MAX_PARAMETERS, f"above {MAX_PARAMETERS}"),
        )
        if problems := [f"{what}: {number} {limit}" for what, number, most, limit in limits if number > most]:
            raise MalformedError(f"{self.path / CONFIG} describes an impossible model; {', '.join(problems)}")
        return spec

    def stored(self) -> list[StoredTensor]:
        return self._stored

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """Returns the tensor. On the CPU and in its own dtype it shares the file's pages, unless it is packed."""
        name = self.tensors[name].name
        if name not in self._packed:
            return self._mapped(name).to(device, dtype)
        packing, scales = self._packed[name]
        return packing.unpack(self._mapped(name).to(device), self._mapped(scales).to(device), dtype or torch.float32)

    def get_part(self, name: str, part: Part, device: str | torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Returns part of a tensor. On the CPU and in its own dtype, one range of rows shares the file's pages; for
        other parts the pages of the whole tensor may be touched, and are released."""
        stored = self.tensors[name]
        if stored.name not in self._packed:
            return part.of(self._mapped(stored.name)).to(device, dtype)
        packing, scales_name = self._packed[stored.name]
        whole = self._mapped(stored.name)
        codes, scales = packing.parts(part, stored, tuple(whole.shape))
        own_codes, own_scales = codes.of(whole), scales.of(self._mapped(scales_name))
        return packing.unpack(own_codes.to(device), own_scales.to(device), dtype or torch.float32)

    def _read_headers(self) -> None:
        """Reads the header of each safetensors file."""
        self._opened: dict[str, Any] = {}  # shard -> its mapped file
        if (self.path / SINGLE).exists() or not (self.path / INDEX).exists():
            self._stored = read_header(member(self.path, SINGLE))
            self._shard_of = {tensor.name: SINGLE for tensor in self._stored}
        else:
            self._shard_of = weight_map(self.path)
            self._stored = self._read_shards()

    def _mapped(self, name: str) -> Tensor:
        shard = self._shard_of[name]
        if shard not in self._opened:
            path = member(self.path, shard)
            try:
                self._opened[shard] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise MalformedError(f"{path} is not a readable safetensors file: {error}") from error
        return self._opened[shard].get_tensor(name)

    def _field(self, name: str) -> Any:
        """Returns a field of config.json, which a multimodal wrapper may hold in its text_config."""
        value, text = self.config.get(name), self.config.get("text_config")
        return text.get(name) if value is None and isinstance(text, dict) else value

    def _read_packed(self, quantization: Any) -> None:
        """Pairs packed tensors with their scales. (`check_scheme` has refused other schemes.)"""
        if not isinstance(quantization, dict):
            where = f"{self.path / CONFIG}: quantization_config"
            raise MalformedError(f"{where} must be an object, got {brief(quantization)}")
        self._quantization = Fields(quantization, where="quantization_config.")
        for packing in formats_of(self.config, self._quantization):
            packing.check_config(self._quantization)
            pairs = packing.pairs(self.path, self._stored)
            if not pairs:
                raise MalformedError(f"{self.path}: {CONFIG} says {packing.description}, yet no tensor is stored so")
            self._packed |= {codes: (packing, scales) for codes, scales in pairs.items()}
            log.info("%d packed tensors (%s) are unpacked as they are read", len(pairs), packing.description)
        scales = {name for _, name in self._packed.values()}
        tensors = [tensor for tensor in self._stored if tensor.name not in scales]
        self._stored = [
            self._packed[each.name][0].unpacked(each) if each.name in self._packed else each for each in tensors
        ]

    def _read_shards(self) -> list[StoredTensor]:
        """Returns the tensors of all shards. Raises one MalformedError for all files that contradict the index."""
        expected: dict[str, set[str]] = {}
        for name, shard in self._shard_of.items():
            expected.setdefault(shard, set()).add(name)
        if absent := [shard for shard in expected if not (self.path / shard).exists()]:
            raise NotAvailable(f"{self.path}: {INDEX} names files that are not there: {listed(absent)}")
        tensors: list[StoredTensor] = []
        problems: list[str] = []
        for shard, names in sorted(expected.items()):
            try:
                found = read_header(member(self.path, shard))
            except MalformedError as error:
                problems.append(str(error))
                continue
            held = {tensor.name for tensor in found}
            if missing := [name if name.isprintable() else ascii(name) for name in names - held]:
                problems.append(f"{shard} lacks {listed(missing)}")
            if surplus := held - names:
                problems.append(f"{shard} holds {listed(surplus)} against the index")
            else:
                tensors += found
        if problems:
            raise MalformedError(f"{self.path / INDEX}: {'; '.join(problems[:MAX_BROKEN_SHARDS])}")
        return tensors


def weight_map(folder: Path) -> dict[str, str]:
    """Maps each tensor to its shard, by the index of the folder. Raises MalformedError for a shard that is not a plain
    file name."""
    where = folder / INDEX
    shards = read_json(member(folder, INDEX), INDEX_LIMIT).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(type(shard) is str for shard in shards.values()):
        raise MalformedError(f"{where}: weight_map must say for each tensor which file holds it")
    if bad := sorted({shard for shard in shards.values() if not SHARD.fullmatch(shard)}):
        names = enough(ascii(shard[:100]) for shard in bad)
        raise MalformedError(f"{where}: not the plain name of a .safetensors file: {names}")
    return shards


def check_scheme(folder: Path, config: dict[str, Any]) -> None:
    """Raises MalformedError naming the scheme of a folder whose weights are quantised in an unsupported one."""
    text = config.get("text_config")
    for part in (config, *([text] if isinstance(text, dict) else [])):
        refuse(part)
    if config.get("quantization_config") is None and (folder / MODELOPT).exists():
        raise _unsupported("NVIDIA ModelOpt", f"{MODELOPT} is there")


def refuse(config: dict[str, Any]) -> None:
    """Raises MalformedError for an unsupported scheme. A malformed field is left to the reader."""
    if mlx := config.get("quantization"):
        raise _unsupported("MLX", f"quantization={brief(mlx)}")
    if sparse := config.get("compression_config"):
        raise _unsupported("compressed-tensors", f"compression_config={brief(sparse)}")
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return
    method = quantization.get("quant_method")
    if method == "fp8" and quantization.get("weight_block_size") is None:
        size = "quantization_config.weight_block_size=None is not supported"
        raise _unsupported("fp8 with one scale per tensor or row, as of AutoFP8 and FP8-static", size)
    experts = expert_dtype(config, quantization)
    if method == "fp8" and experts not in [*EXPERT_DTYPES]:
        raise _unsupported("experts in another format than the rest", f"expert_dtype={brief(experts)} is not read")
    if not isinstance(method, str):
        present = {field for field, value in quantization.items() if value is not None}
        scheme = next((name for name, marks in MARKS.items() if present & {*marks}), "an unknown scheme")
    elif method in FORMATS:
        return
    else:
        scheme = NAMES.get(method.lower().replace("_", "-"), brief(method))
    raise _unsupported(scheme, f"quantization_config.quant_method={brief(method)} is not read")


def _unsupported(scheme: str, evidence: str) -> MalformedError:
    known = ", ".join(each.description for each in (*FORMATS.values(), FP4()))
    return MalformedError(
        f"config.json: the weights are quantised with a scheme that is not supported, {scheme}: {evidence}; {known} "
        "are, and bfloat16, float16 and float32. Take another repository of this model"
    )
