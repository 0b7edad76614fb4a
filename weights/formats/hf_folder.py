"""Reads a folder in Hugging Face layout: config.json, and one safetensors file or several with an index.

Nothing in the folder is trusted: docs/loading.md lists the errors for broken and hostile folders. An unsupported
quantisation scheme is refused before any other field of the config is checked, since no field can make the folder
readable.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import torch
from torch import Tensor

from weights.formats.fp8_mxfp4 import EXPERT_DTYPES, FORMATS, FP4, PackedFormat, expert_dtype, formats_of
from weights.formats.generation import generation_config
from weights.formats.safetensors_folder import GENERATION, SafetensorsFolder
from weights.formats.untrusted import CONFIG_LIMIT, member, read_json
from weights.matching import HEAD, READABLE_DTYPES, Part, layout
from zoo import catalog
from zoo.errors import MalformedError
from zoo.hf.checkpoint_layout import Rules
from zoo.hf.config import contradicts_on_tying
from zoo.hf.fields import Fields
from zoo.model.decoder import Decoder
from zoo.model.sampling import GenerationConfig

CONFIG = "config.json"
MODELOPT = "hf_quant_config.json"  # names the scheme of older ModelOpt checkpoints, instead of config.json
MAX_PARAMETERS, MAX_EXPERTS = 10**14, 10**5  # in all layers: above every release, below torch's size limit
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
# If quant_method is missing, any of these fields reveals the scheme. The first match counts.
MARKS = {
    "bitsandbytes": ("load_in_4bit", "load_in_8bit"),
    "compressed-tensors": ("config_groups",),
    "NVIDIA ModelOpt": ("quant_algo",),
    "GPTQ": ("desc_act", "damp_percent"),
    "AWQ": ("zero_point", "q_group_size", "w_bit"),
    "MLX": ("group_size",),
}
log = logging.getLogger(__name__)


class HFFolder(SafetensorsFolder):
    """The tensors of a folder in Hugging Face layout. `get` memory-maps a tensor. A packed tensor (fp8, fp4, MXFP4) has
    the name of its codes, and `get` unpacks it."""

    def __init__(self, path: Path) -> None:
        self.config = read_json(member(path, CONFIG), CONFIG_LIMIT)
        check_scheme(path, self.config)
        self.family = catalog.family_of(self.config)
        super().__init__(path)
        self._packed: dict[str, tuple[PackedFormat, str]] = {}  # name of the codes -> format, name of the scales
        self._quantization: Fields | None = None
        if (quantization := self._field("quantization_config")) is not None:
            self._read_packed(quantization)

    @property
    def rules(self) -> Rules:
        return layout(self.family)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in config.json, or else the dtype of the first tensor that is not packed."""
        name = self._field("dtype") or self._field("torch_dtype")
        if name is None:
            unpacked = (each.dtype for each in self.held if each.name not in self._packed)
            return next((dtype for dtype in unpacked if dtype in READABLE_DTYPES), torch.float32)
        if not isinstance(name, str) or name not in DTYPES:
            raise MalformedError(f"{self.path / CONFIG}: dtype must be one of {', '.join(DTYPES)}, got {brief(name)}")
        return DTYPES[name]

    @property
    def generation(self) -> GenerationConfig:
        """The settings in generation_config.json. If it names no end tokens, they come from config.json."""
        settings = self.generation_settings()
        if settings.get("eos_token_id") is None:
            settings["eos_token_id"] = self._field("eos_token_id")
        return generation_config(settings, self.path / GENERATION)

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """Returns the model that config.json describes. Raises MalformedError for a model that the files cannot
        hold."""
        if self._quantization is not None:
            self._quantization.finish(ignore_fields)
        spec = catalog.from_hf(self.config, ignore_fields)
        if contradicts_on_tying(self.config):  # the reference ties a head only if no head is stored
            spec = replace(spec, tied=HEAD not in self.tensors)
        experts = sum(layer.mixture.experts for layer in spec.layers if layer.mixture)
        count = len(self.shard_of)
        limits = (
            ("layers", len(spec.layers), count, f"with {count} tensors in the files"),
            ("experts in all layers", experts, MAX_EXPERTS, f"above {MAX_EXPERTS}"),
            ("parameters", spec.params(), MAX_PARAMETERS, f"above {MAX_PARAMETERS}"),
        )
        if problems := [f"{what}: {number} {limit}" for what, number, most, limit in limits if number > most]:
            raise MalformedError(f"{self.path / CONFIG} describes an impossible model; {', '.join(problems)}")
        return spec

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """Returns the tensor. On the CPU and in its stored dtype it shares the file's pages, unless it is packed."""
        codes = self.tensors[name].name
        if codes not in self._packed:
            return super().get(name, device, dtype)
        packing, scales = self._packed[codes]
        return packing.unpack(self.mapped(codes).to(device), self.mapped(scales).to(device), dtype or torch.float32)

    def get_part(self, name: str, part: Part, device: str | torch.device, dtype: torch.dtype | None = None) -> Tensor:
        stored = self.tensors[name]
        if stored.name not in self._packed:
            return super().get_part(name, part, device, dtype)
        packing, scales_name = self._packed[stored.name]
        whole = self.mapped(stored.name)
        codes, scales = packing.parts(part, stored, tuple(whole.shape))
        own_codes, own_scales = codes.of(whole), scales.of(self.mapped(scales_name))
        return packing.unpack(own_codes.to(device), own_scales.to(device), dtype or torch.float32)

    def _field(self, name: str) -> Any:
        """Returns a field of config.json, which a multimodal wrapper may hold in its text_config."""
        value, text = self.config.get(name), self.config.get("text_config")
        return text.get(name) if value is None and isinstance(text, dict) else value

    def _read_packed(self, quantization: Any) -> None:
        """Pairs packed tensors with their scales. (`check_scheme` has already refused other schemes.)"""
        if not isinstance(quantization, dict):
            where = f"{self.path / CONFIG}: quantization_config"
            raise MalformedError(f"{where} must be an object, got {brief(quantization)}")
        self._quantization = Fields(quantization, where="quantization_config.")
        for packing in formats_of(self.config, self._quantization):
            packing.check_config(self._quantization)
            pairs = packing.pairs(self.path, self.held)
            if not pairs:
                raise MalformedError(f"{self.path}: {CONFIG} says {packing.description}, but no tensor has this format")
            self._packed |= {codes: (packing, scales) for codes, scales in pairs.items()}
            log.info("%d packed tensors (%s) are unpacked as they are read", len(pairs), packing.description)
        scales = {name for _, name in self._packed.values()}
        tensors = [tensor for tensor in self.held if tensor.name not in scales]
        self.held = [
            self._packed[each.name][0].unpacked(each) if each.name in self._packed else each for each in tensors
        ]


def check_scheme(folder: Path, config: dict[str, Any]) -> None:
    """Raises MalformedError, naming the scheme, if a folder's weights are quantised with an unsupported scheme."""
    text = config.get("text_config")
    for part in (config, *([text] if isinstance(text, dict) else [])):
        refuse(part)
    if config.get("quantization_config") is None and (folder / MODELOPT).exists():
        raise _unsupported("NVIDIA ModelOpt", f"{MODELOPT} is there")


def refuse(config: dict[str, Any]) -> None:
    """Raises MalformedError if a config names an unsupported scheme. Malformed fields are refused later, when they are
    read."""
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
    known = "; ".join(each.description for each in (*FORMATS.values(), FP4()))
    return MalformedError(
        f"config.json: the weights are quantised with a scheme that is not supported, {scheme}: {evidence}. "
        f"Supported: {known}; bfloat16, float16 and float32. Use another repository of this model"
    )
