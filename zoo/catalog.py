"""Every released model by name: presets, families and hub ids, and building one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

import torch

from zoo.architectures import families
from zoo.core.kernels import active
from zoo.errors import MalformedError, unknown
from zoo.hf.config import Size
from zoo.model.decoder import Decoder, Model, initialise
from zoo.swaps.tiny import tiny as _tiny


@cache
def sizes() -> dict[str, Size]:
    """Preset name -> its published size, family by family, in the order of their files."""
    return {name: size for family in families().values() for name, size in family.SIZES.items()}


def names() -> list[str]:
    """Every published size: "qwen3-0.6b", "deepseek-v3-671b", "gpt-oss-20b", ..."""
    return list(sizes())


def resolve(name: str) -> str:
    """A preset, a family (its smallest size) or a preset's hub id -> the preset's name. Raises UsageError otherwise."""
    folded = name.lower().replace("_", "-")
    known = {preset: preset for preset in sizes()}
    known |= {size.hub.lower().replace("_", "-"): preset for preset, size in sizes().items()}
    for family, module in families().items():
        known.setdefault(family, min(module.SIZES, key=lambda preset: module.SIZES[preset].params))
    if folded not in known:
        raise unknown("model", name, [*sizes(), *families()])
    return known[folded]


def spec(name: str, tiny: bool = False) -> Decoder:
    """The spec of a preset, a family or a preset's hub id; `tiny` at toy widths with the same composition."""
    full = sizes()[resolve(name)].spec
    return _tiny(full) if tiny else full


def build(
    name_or_spec: str | Decoder,
    *,
    tiny: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Model:
    """A model in eval mode with fresh weights drawn from `seed`; on the meta device without any."""
    model = allocate(_decoder(name_or_spec, tiny), device, dtype)
    if torch.device(device).type != "meta":
        initialise(model, seed)
    return model


def allocate(spec: Decoder, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """A model in eval mode whose weights are whatever its memory held. Raises NotAvailable or MalformedError for a
    ZOO_KERNELS that cannot be read, before anything is built."""
    active()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return spec.build().eval()
    finally:
        torch.set_default_dtype(before)


def _decoder(name_or_spec: str | Decoder, tiny: bool) -> Decoder:
    if isinstance(name_or_spec, str):
        return spec(name_or_spec, tiny)
    return _tiny(name_or_spec) if tiny else name_or_spec


def family_of(config: Any) -> ModuleType:
    """The architecture module that reads a published config.json, by its model_type."""
    by_type = {kind: family for family in families().values() for kind in family.from_hf.model_types}
    if not isinstance(config, dict) or "model_type" not in config:
        raise MalformedError("config.json: is no object with a model_type, which says what it configures")
    model_type = str(config["model_type"])
    if model_type not in by_type:
        raise MalformedError(f"config.json: {unknown('model_type', model_type, by_type)}")
    return by_type[model_type]


def from_hf(config: dict[str, Any], ignore_fields: Iterable[str] = ()) -> Decoder:
    """A published config.json of any of the architectures -> its spec. Raises MalformedError for what it cannot be."""
    spec: Decoder = family_of(config).from_hf(config, ignore_fields)
    return spec
