"""A folder in Hugging Face layout: config.json, and one safetensors file or several with an index.

Nothing in the folder is trusted: docs/loading.md says what a broken or a hostile one gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.formats.json_limits import CONFIG_LIMIT, INDEX_LIMIT, member, read_json
from weights.formats.quantization import check_scheme
from weights.formats.safetensors_header import read_header
from weights.matching import HEAD, READ, Entry, listed, text_names
from zoo import catalog
from zoo.blocks import MoE
from zoo.errors import MalformedError, NotAvailable, enough
from zoo.hf.checkpoint_layout import COMMON, Rules
from zoo.hf.config import contradicts_on_tying
from zoo.model.decoder import Decoder

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")
MOST_PARAMETERS, MOST_EXPERTS = 10**14, 10**5  # in all layers: beyond what any release has, and what torch can size
MOST_TOLD = 20  # shards about which something is said
WORDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Folder:
    """The tensors of a folder: `entries` says what there is, `get` maps one into memory without reading it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(member(path, CONFIG), CONFIG_LIMIT)
        check_scheme(path, self.config)
        self.family = catalog.family_of(self.config)
        whole = (path / SINGLE).exists() or not (path / INDEX).exists()
        self._entries, self._shard = self._whole() if whole else self._sharded()
        self._opened: dict[str, Any] = {}  # shard -> its mapped file

    @property
    def rules(self) -> Rules:
        """The layout of this family's tensors."""
        return (*getattr(self.family, "WEIGHTS", ()), *COMMON)

    @property
    def dtype(self) -> torch.dtype:
        """What config.json says, else that of the first tensor of plain numbers."""
        said = self._said("dtype") or self._said("torch_dtype")
        if said is None:
            return next((tensor.dtype for tensor in self.entries() if tensor.dtype in READ), torch.float32)
        if not isinstance(said, str) or said not in WORDS:
            raise MalformedError(f"{self.path / CONFIG}: dtype {brief(said)} is none of {', '.join(WORDS)}")
        return WORDS[said]

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text, by generation_config.json or else by config.json."""
        path = self.path / GENERATION
        said = read_json(member(self.path, GENERATION), CONFIG_LIMIT).get("eos_token_id") if path.exists() else None
        said = self._said("eos_token_id") if said is None else said
        ends = said if isinstance(said, list) else [] if said is None else [said]
        if not all(type(end) is int and end >= 0 for end in ends):
            raise MalformedError(f"{self.path}: eos_token_id {brief(said)} is no token id")
        return ends

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """The model that config.json describes, as far as the files can hold it."""
        spec = catalog.from_hf(self.config, ignore_fields)
        if contradicts_on_tying(self.config):  # the reference ties only what is not stored twice
            spec = replace(spec, tied=HEAD not in text_names(self.path, self.entries()))
        experts = sum(layer.ffn.block.experts for layer in spec.layers if isinstance(layer.ffn.block, MoE))
        told = [
            f"{what}: {number} {least}"
            for what, number, most, least in (
                ("layers", len(spec.layers), len(self._entries), f"with {len(self._entries)} tensors in the files"),
                ("experts in all layers", experts, MOST_EXPERTS, f"above {MOST_EXPERTS}"),
                ("parameters", spec.params(), MOST_PARAMETERS, f"above {MOST_PARAMETERS}"),
            )
            if number > most
        ]
        if told:
            raise MalformedError(f"{self.path / CONFIG} describes an impossible model; {', '.join(told)}")
        return spec

    @property
    def packing(self) -> Any:
        """What config.json says of how the weights are packed, None if nothing."""
        return self._said("quantization_config")

    def _said(self, name: str) -> Any:
        """A field of config.json that a multimodal wrapper may say for its parts."""
        text = self.config.get("text_config")
        said = self.config.get(name)
        return text.get(name) if said is None and isinstance(text, dict) else said

    def entries(self) -> list[Entry]:
        """Every tensor there is, in order of the files."""
        return list(self._entries.values())

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, on the CPU and as it is stored unless said: then it shares the file's pages."""
        shard = self._shard[name]
        if shard not in self._opened:
            self._opened[shard] = self._open(shard)
        return self._opened[shard].get_tensor(name).to(device, dtype)

    def _open(self, shard: str) -> Any:
        path = member(self.path, shard)
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise MalformedError(f"{path}: no readable safetensors file: {error}") from error

    def _whole(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """What the one file holds, and where it is: name -> entry, name -> file."""
        entries = {entry.name: entry for entry in read_header(member(self.path, SINGLE))}
        return entries, dict.fromkeys(entries, SINGLE)

    def _sharded(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """The same for many files, each seen to hold what the index says and nothing else. One error for all."""
        shards = weight_map(self.path)
        said: dict[str, set[str]] = {}
        for name, shard in shards.items():
            said.setdefault(shard, set()).add(name)
        absent = [shard for shard in said if not (self.path / shard).exists()]
        if absent:
            raise NotAvailable(f"{self.path}: {INDEX} names files that are not there: {listed(absent)}")
        entries: dict[str, Entry] = {}
        told: list[str] = []
        for shard, names in sorted(said.items()):
            try:
                held = {entry.name: entry for entry in read_header(member(self.path, shard))}
            except MalformedError as error:
                told.append(str(error))
                continue
            if lacks := [ascii_name(name) for name in names if name not in held]:
                told.append(f"{shard} lacks {listed(lacks)}")
            if surplus := [name for name in held if name not in names]:
                told.append(f"{shard} holds {listed(surplus)} against the index")
            else:
                entries |= held
        if told:
            raise MalformedError(f"{self.path / INDEX}: {'; '.join(told[:MOST_TOLD])}")
        return entries, shards


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> shard, as the index of the folder says. The names of the shards are plain file names."""
    where = folder / INDEX
    said = read_json(member(folder, INDEX), INDEX_LIMIT).get("weight_map")
    if not isinstance(said, dict) or not said or not all(type(shard) is str for shard in said.values()):
        raise MalformedError(f"{where}: weight_map must say for each tensor which file holds it")
    bad = sorted({shard for shard in said.values() if not SHARD.fullmatch(shard)})
    if bad:
        names = enough(ascii(shard[:100]) for shard in bad)
        raise MalformedError(f"{where}: not the plain name of a .safetensors file: {names}")
    return said


def ascii_name(name: str) -> str:
    """A name that a terminal can be shown."""
    return name if name.isprintable() else ascii(name)
