"""A folder of packed weights, read as if it held plain numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from reprlib import repr as brief

import torch
from torch import Tensor

from weights.formats.hf_folder import CONFIG, Folder
from weights.formats.fp8_mxfp4 import Format
from weights.formats.quantization import FORMATS
from weights.matching import Entry
from zoo.errors import MalformedError
from zoo.hf.checkpoint_layout import Rules
from zoo.hf.fields import Fields
from zoo.model.decoder import Decoder

log = logging.getLogger(__name__)


class Unpacked:
    """The tensors of a folder, packed ones under the name of their codes. `get` unpacks one at a time."""

    def __init__(self, folder: Folder, packing: Format, said: Fields) -> None:
        self._folder, self._packing, self._said = folder, packing, said
        self.path = folder.path
        entries = folder.entries()
        self._packed = packing.pairs(folder.path, entries)
        if not self._packed:
            raise MalformedError(f"{folder.path}: {CONFIG} says {packing.words}, yet no tensor is stored so")
        scales = {packed.scales.name for packed in self._packed.values()}
        self._entries = [
            self._packed[entry.name].plain if entry.name in self._packed else entry
            for entry in entries
            if entry.name not in scales
        ]
        log.info("%d packed tensors (%s) are unpacked as they are read", len(self._packed), packing.words)

    @property
    def rules(self) -> Rules:
        """The layout of this family's tensors."""
        return self._folder.rules

    @property
    def dtype(self) -> torch.dtype:
        """What config.json says, else that of the first tensor that is not packed."""
        return self._folder.dtype

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text."""
        return self._folder.ends

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """The model that config.json describes."""
        self._said.finish(ignore_fields)
        return self._folder.spec(ignore_fields)

    def entries(self) -> list[Entry]:
        """Every tensor there is, unpacked."""
        return self._entries

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor's numbers, unpacked on the device: float32 unless said."""
        packed = self._packed.get(name)
        if packed is None:
            return self._folder.get(name, device, dtype)
        codes, scales = (self._folder.get(entry.name, device) for entry in (packed.codes, packed.scales))
        return self._packing.unpack(codes, scales, dtype or torch.float32)


def unpacked(folder: Folder) -> Folder | Unpacked:
    """The folder itself where its config says nothing of packing, else unpacked: `Folder` refuses other schemes."""
    said = folder.packing
    if said is None:
        return folder
    if not isinstance(said, dict):
        raise MalformedError(f"{folder.path / CONFIG}: quantization_config={brief(said)} is no object")
    fields = Fields(said, where="quantization_config.")
    packing = FORMATS[fields.get("quant_method")]
    packing.check_config(fields)
    return Unpacked(folder, packing, fields)
