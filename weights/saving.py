"""Saves a model as a folder in Hugging Face layout, which `weights.load` and the reference implementation read.

The folder gets its name when all of it is on disk, so that it is never there in part. Tensors are written one at a
time, in the layout of the released files, by the rules that loading reads them with.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights.formats.hf_folder import CONFIG, DTYPES, INDEX, SINGLE
from weights.formats.untrusted import DTYPES as SAFETENSORS_DTYPES
from weights.matching import StoredTensor, layout, listed, match, stored_tensors
from zoo import catalog
from zoo.catalog import to_hf
from zoo.errors import NotAvailable, UsageError
from zoo.model.module import Model
from zoo.new_files import new_folder
from zoo.units import dtype_name

SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
log = logging.getLogger(__name__)


def save(model: Model, folder: str | Path, *, shard_bytes: int = 5_000_000_000) -> None:
    """Writes a model to a new folder: config.json and safetensors, in files of at most `shard_bytes` of tensors each.

    A larger tensor gets a file of its own; several files get an index. Every tensor keeps its dtype; a tied head is not
    stored. The tokenizer is not part of a model: add its files and generation_config.json yourself.

    Raises SpecError for a model that no published config can describe, and NotAvailable where the disk fails. Raises
    UsageError for a folder that already holds something, and for a model without weights or with other parameters than
    its spec says.
    """
    if shard_bytes < 1:
        raise UsageError(f"shard_bytes must be at least 1, got {shard_bytes}")
    config, entries, tensors = _checkpoint(model)
    shards = list(_shards(entries, shard_bytes))
    target = Path(folder)
    _require_room(target, sum(entry.nbytes for entry in entries))
    with new_folder(target) as fresh:
        _write_json(fresh / CONFIG, config)
        _write_shards(fresh, shards, tensors)


def to_checkpoint(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config.json that `save` would write, and the tensors by name. A tensor that is stored as the model
    holds it is the parameter itself, not a copy. Raises as `save` does."""
    config, entries, tensors = _checkpoint(model)
    return config, {entry.name: tensor for entry, tensor in zip(entries, tensors, strict=True)}


def _checkpoint(model: Model) -> tuple[dict[str, Any], list[StoredTensor], Iterator[Tensor]]:
    """Returns the config.json, the entries to store, and the tensors themselves, each made when it is asked for."""
    parameters = _parameters(model)
    config = to_hf(model.spec) | {"dtype": dtype_name(model.embed.weight.dtype)}
    mappings = match(model.spec, parameters, layout(catalog.family_of(config)), stored=())  # as in released files
    meta = {name: parameter.to("meta") for name, parameter in parameters.items()}
    entries = [
        StoredTensor(name, shape, parameters[mapping.module_names[0]].dtype)
        for mapping in mappings
        for name, shape in mapping.expected(meta).items()
    ]
    return config, entries, chain.from_iterable(mapping.write(parameters) for mapping in mappings)


def _parameters(model: Model) -> dict[str, Tensor]:
    """Returns the parameters by name. Raises UsageError unless they are those that loading would make for the spec."""
    held = {name: tensor.detach() for name, tensor in stored_tensors(model).items()}
    dtype = model.embed.weight.dtype
    if any(parameter.is_meta for parameter in held.values()):
        raise UsageError("a model on the meta device has no weights to save")
    if dtype not in DTYPES.values():
        raise UsageError(f"a model in {dtype} cannot be saved, only one in {', '.join(DTYPES)}: model.to(...) first")
    expected = stored_tensors(catalog.allocate(model.spec, "meta", dtype))
    both = {name: (_type(held.get(name)), _type(expected.get(name))) for name in (*expected, *held)}
    if wrong := [f"{name} ({got} instead of {wanted})" for name, (got, wanted) in both.items() if got != wanted]:
        raise UsageError(f"the model is not what its spec says: {listed(wrong)}")
    return held


def _type(parameter: Tensor | None) -> str:
    return "none" if parameter is None else f"{dtype_name(parameter.dtype)} {list(parameter.shape)}"


def _shards(entries: Iterable[StoredTensor], max_bytes: int) -> Iterator[list[StoredTensor]]:
    """Splits the tensors, in order, into lists of at most `max_bytes` each, but at least one tensor."""
    shard: list[StoredTensor] = []
    total = 0
    for entry in entries:
        if shard and total + entry.nbytes > max_bytes:
            yield shard
            shard, total = [], 0
        shard.append(entry)
        total += entry.nbytes
    yield shard


def _write_shards(folder: Path, shards: list[list[StoredTensor]], tensors: Iterator[Tensor]) -> None:
    """Writes the files, which take the tensors in turn, and an index where there are several."""
    index, total = dict[str, str](), 0
    for i, shard in enumerate(shards):
        name = SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / name, shard, islice(tensors, len(shard)))
        nbytes = sum(entry.nbytes for entry in shard)
        log.info("%s: %d tensors, %.2f GB", name, len(shard), nbytes / 1e9)
        total += nbytes
        index |= {entry.name: name for entry in shard}
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))})


def _write_safetensors(path: Path, entries: Iterable[StoredTensor], tensors: Iterable[Tensor]) -> None:
    """Writes a safetensors file, one tensor at a time. (The library's own writer takes all of a file's at once.)"""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        assert entry.dtype is not None
        start, end = end, end + entry.nbytes
        extent = {"shape": entry.shape, "data_offsets": [start, end]}
        header[entry.name] = {"dtype": SAFETENSORS_NAMES[entry.dtype], **extent}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(map(_bytes, tensors))  # writelines drops each tensor before it asks for the next


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().data


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _require_room(target: Path, nbytes: int) -> None:
    """Raises UsageError if `target` exists already, NotAvailable if `nbytes` do not fit on its disk."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UsageError(f"{target} is there already, and nothing is overwritten: give another name, or remove it")
    try:
        free = shutil.disk_usage(next(parent for parent in target.absolute().parents if parent.exists())).free
    except OSError as error:
        raise NotAvailable(f"{target} cannot be written: {error.strerror or error}") from error
    if free < nbytes:
        raise NotAvailable(f"{target} needs {nbytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there")
