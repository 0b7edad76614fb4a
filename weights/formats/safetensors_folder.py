"""Reads the safetensors files of a folder: one file, or several files with an index. Headers are checked first, and
each tensor is memory-mapped on demand.

Nothing in the folder is trusted: docs/loading.md lists the errors for broken and hostile folders.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.formats.generation import generation_config
from weights.formats.untrusted import CONFIG_LIMIT, INDEX_LIMIT, member, read_header, read_json
from weights.matching import Part, Source, StoredTensor, listed
from zoo.errors import MalformedError, NotAvailable, enough
from zoo.model.sampling import GenerationConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
SHARD = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")
MAX_BROKEN_SHARDS = 20  # in one error message


class SafetensorsFolder(Source):
    """The tensors of a folder. `held` lists every stored tensor; `shard_of` maps its name to its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: dict[str, Any] = {}  # shard -> its mapped file
        self.shard_of, self.held = read_headers(path)

    @property
    def generation(self) -> GenerationConfig:
        """The settings in generation_config.json."""
        return generation_config(self.generation_settings(), self.folder / GENERATION)

    def generation_settings(self) -> dict[str, Any]:
        """Returns the content of generation_config.json; {} if there is no such file."""
        has_file = (self.folder / GENERATION).exists()
        return read_json(member(self.folder, GENERATION), CONFIG_LIMIT) if has_file else {}

    def stored(self) -> list[StoredTensor]:
        return self.held

    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """Returns the tensor. On the CPU and in its stored dtype it shares the file's pages."""
        return self.mapped(self.tensors[name].name).to(device, dtype)

    def get_part(self, name: str, part: Part, device: str | torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Returns part of a tensor. On the CPU and in its stored dtype, a single range of rows shares the file's pages.
        For other parts, which are copies, the pages of the whole tensor may be read; they are then released."""
        return part.of(self.mapped(self.tensors[name].name)).to(device, dtype)

    def mapped(self, name: str) -> Tensor:
        """Returns the tensor with this name in the files. It is memory-mapped and not read yet."""
        shard = self.shard_of[name]
        if shard not in self._opened:
            path = member(self.path, shard)
            try:
                self._opened[shard] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise MalformedError(f"{path} is not a readable safetensors file: {error}") from error
        return self._opened[shard].get_tensor(name)


def has_headers(folder: Path) -> bool:
    """Whether the folder has a safetensors file, or an index of several."""
    return any((folder / name).exists() for name in (SINGLE, INDEX))


def read_headers(folder: Path) -> tuple[dict[str, str], list[StoredTensor]]:
    """Returns {name of a tensor: its file} and every stored tensor of a folder, from the headers alone. Raises
    NotAvailable for missing files, and one MalformedError for all files that contradict the index."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        held = read_header(member(folder, SINGLE))
        return {tensor.name: SINGLE for tensor in held}, held
    shard_of = weight_map(folder)
    expected = by_shard(shard_of)
    if absent := [shard for shard in expected if not (folder / shard).exists()]:
        raise NotAvailable(f"{folder}: {INDEX} names files that do not exist: {listed(absent)}")
    return shard_of, check_shards(folder / INDEX, expected, lambda shard: read_header(member(folder, shard)))


def by_shard(shard_of: dict[str, str]) -> dict[str, set[str]]:
    """Returns {file: names of its tensors}."""
    expected: dict[str, set[str]] = {}
    for name, shard in shard_of.items():
        expected.setdefault(shard, set()).add(name)
    return expected


def check_shards(
    where: object, expected: dict[str, set[str]], read: Callable[[str], list[StoredTensor]]
) -> list[StoredTensor]:
    """Returns the tensors of all shards, each read by `read`. Raises one MalformedError, naming the index `where`, for
    all shards that are invalid or contradict it."""
    tensors: list[StoredTensor] = []
    problems: list[str] = []
    for shard, names in sorted(expected.items()):
        try:
            found = read(shard)
        except MalformedError as error:
            problems.append(str(error))
            continue
        held = {tensor.name for tensor in found}
        if missing := [name if name.isprintable() else ascii(name) for name in names - held]:
            problems.append(f"{shard} lacks {listed(missing)}")
        if surplus := held - names:
            problems.append(f"{shard} holds {listed(surplus)}, contrary to the index")
        else:
            tensors += found
    if problems:
        raise MalformedError(f"{where}: {'; '.join(problems[:MAX_BROKEN_SHARDS])}")
    return tensors


def weight_map(folder: Path) -> dict[str, str]:
    """Returns {name of a tensor: its file} from the folder's index. Raises MalformedError for a shard that is not a
    plain file name."""
    where = folder / INDEX
    shards = read_json(member(folder, INDEX), INDEX_LIMIT).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(type(shard) is str for shard in shards.values()):
        raise MalformedError(f"{where}: weight_map must map the name of each tensor to its file")
    if bad := sorted({shard for shard in shards.values() if not SHARD.fullmatch(shard)}):
        names = enough(ascii(shard[:100]) for shard in bad)
        raise MalformedError(f"{where}: not the plain name of a .safetensors file: {names}")
    return shards
