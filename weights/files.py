"""A folder in Hugging Face layout: config.json, and one safetensors file or several with an index.

Nothing in the folder is trusted. A shard's name must be a plain file name, every file must lie in the folder (or be one
of the hub cache's own blobs), JSON has a size limit, a header is held against its file before it is parsed, and pickles
are never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.matching import READ, Entry, folded
from zoo import catalog
from zoo.decoder import Decoder
from zoo.errors import MalformedError, NotAvailable
from zoo.layout import COMMON, Rules

MB = 10**6
CONFIG_LIMIT, INDEX_LIMIT, HEADER_LIMIT = 1 * MB, 32 * MB, 8 * MB
CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}  # of packed weights
WORDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Folder:
    """The tensors of a folder: `entries` says what there is, `get` maps one into memory without reading it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(member(path, CONFIG), CONFIG_LIMIT)
        self.family = catalog.family_of(self.config)
        self._held: dict[str, Any] = {}  # tensor -> the open file that holds it
        if (path / SINGLE).exists() or not (path / INDEX).exists():
            self._open(SINGLE)
        else:
            self._open_shards(read_json(member(path, INDEX), INDEX_LIMIT))

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
            raise MalformedError(f"{self.path / CONFIG}: dtype {said!r} is none of {', '.join(WORDS)}")
        return WORDS[said]

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text, by generation_config.json or else by config.json."""
        path = self.path / GENERATION
        said = read_json(member(self.path, GENERATION), CONFIG_LIMIT).get("eos_token_id") if path.exists() else None
        said = self._said("eos_token_id") if said is None else said
        ends = said if isinstance(said, list) else [] if said is None else [said]
        if not all(isinstance(end, int) for end in ends):
            raise MalformedError(f"{self.path}: eos_token_id {said!r} is no token id")
        return ends

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """The model that config.json describes."""
        return catalog.from_hf(self.config, ignore_fields)

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
        return [self._entry(name) for name in self._held]

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, on the CPU and as it is stored unless said: then it shares the file's pages."""
        return self._held[name].get_tensor(name).to(device, dtype)

    def _entry(self, name: str) -> Entry:
        view = self._held[name].get_slice(name)
        return Entry(name, tuple(view.get_shape()), DTYPES.get(view.get_dtype()))

    def _open(self, name: str) -> list[str]:
        """Open one safetensors file of the folder -> the names it holds, now in `_held`."""
        path = member(self.path, name)
        check_header(path)
        try:
            opened = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise MalformedError(f"{path}: no readable safetensors file: {error}") from error
        names = list(opened.keys())
        self._held |= dict.fromkeys(names, opened)
        return names

    def _open_shards(self, index: dict[str, Any]) -> None:
        """Open every shard the index names, and see that each holds what the index says and nothing else."""
        where = self.path / INDEX
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
            raise MalformedError(f"{where}: weight_map must say for each tensor which file holds it")
        bad = sorted({shard for shard in shards.values() if not SHARD.fullmatch(shard)})
        if bad:
            raise MalformedError(f"{where}: not the plain name of a .safetensors file: {', '.join(map(repr, bad))}")
        absent = [shard for shard in sorted(set(shards.values())) if not (self.path / shard).exists()]
        if absent:
            raise NotAvailable(f"{self.path}: {INDEX} names files that are not there: {', '.join(folded(absent))}")
        found = {(name, shard) for shard in sorted(set(shards.values())) for name in self._open(shard)}
        said = set(shards.items())
        told = [
            *(f"{shard} lacks {', '.join(names)}" for shard, names in _by_shard(said - found)),
            *(f"{shard} holds {', '.join(names)} against the index" for shard, names in _by_shard(found - said)),
        ]
        if told:
            raise MalformedError(f"{where}: {'; '.join(told)}")


def _by_shard(pairs: set[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    shards = sorted({shard for _, shard in pairs})
    return [(shard, folded(name for name, held in pairs if held == shard)) for shard in shards]


def member(folder: Path, name: str) -> Path:
    """A file of the folder. Raises NotAvailable if it is not there, MalformedError if it is a link that leads out."""
    path = folder / name
    if not path.is_file():
        raise NotAvailable(f"{folder}: there is no {name}")
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"  # of the hub's cache, whose snapshots/<commit>/ are links
    if not real.is_relative_to(home) and not (home.parent.name == "snapshots" and real.parent == blobs):
        raise MalformedError(f"{path} is a link that leads out of its folder, to {real}")
    return path


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise MalformedError(f"{path} has {size} bytes, above the {limit} that such a file can need")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def check_header(path: Path) -> None:
    """Raise MalformedError if a safetensors header cannot be what its first 8 bytes, its length, say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise MalformedError(f"{path} is cut short: {size} bytes, and its header alone needs {length + 8}")
    if length > HEADER_LIMIT:
        raise MalformedError(f"{path}: a header of {length} bytes is above the limit of {HEADER_LIMIT}")
