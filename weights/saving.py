"""Saving a model as a folder in Hugging Face layout, which `weights.load` and the reference implementation read.

The folder takes its name when all of it is on disk, so there is never half of one. Tensors are written one at a time,
in the layout of the released files, by the rules that reading goes by.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from math import prod
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from torch import Tensor

from weights.formats.hf_folder import CONFIG, INDEX, SINGLE, WORDS
from weights.matching import Entry, TensorMapping, listed, match
from zoo import catalog
from zoo.catalog import to_hf
from zoo.errors import NotAvailable, UsageError
from zoo.hf.checkpoint_layout import COMMON
from zoo.model.decoder import Model

log = logging.getLogger(__name__)

CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
NAMES = {dtype: word for word, dtype in WORDS.items()}


def save(model: Model, folder: str | Path, *, shard_bytes: int = 5_000_000_000) -> None:
    """Write a model to a new folder: config.json and safetensors, in files of at most `shard_bytes` of tensors each.

    A larger tensor has a file of its own; with several files there is an index. Every number is stored in the dtype it
    has, a tied head not at all. The tokenizer is no part of a model: it and generation_config.json are yours to add.

    Raises SpecError for a model that no published config says, UsageError for a folder that holds something already, or
    for a model without weights or with other parameters than its spec says, NotAvailable where the disk fails.
    """
    if shard_bytes < 1:
        raise UsageError(f"shard_bytes={shard_bytes} is below 1")
    config, parameters, moves = _planned(model)
    shards = list(_shards((entry for move in moves for entry in _entries(move, parameters)), shard_bytes))
    tensors = chain.from_iterable(_written(move, parameters) for move in moves)
    with _appearing(Path(folder), sum(map(_nbytes, chain(*shards)))) as fresh:
        _write_json(fresh / CONFIG, config)
        _write_shards(fresh, shards, tensors)


def described(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the tensors by name that `save` would write. What is stored as it is held is the parameter
    itself, not a copy. Raises as `save` does."""
    config, parameters, moves = _planned(model)
    written = ((_entries(move, parameters), _written(move, parameters)) for move in moves)
    return config, {entry.name: tensor for pair in written for entry, tensor in zip(*pair, strict=True)}


def _planned(model: Model) -> tuple[dict[str, Any], dict[str, Tensor], list[TensorMapping]]:
    """The config.json, the parameters, and which of them become which tensors."""
    parameters = _parameters(model)
    config = to_hf(model.spec) | {"dtype": NAMES[model.embed.weight.dtype]}
    rules = (*getattr(catalog.family_of(config), "WEIGHTS", ()), *COMMON)
    return config, parameters, match(model.spec, parameters, rules, stored=())  # nothing to go by: as in released files


def _write_shards(folder: Path, shards: list[list[Entry]], tensors: Iterator[Tensor]) -> None:
    """The files, which take the tensors in turn, and their index where there are several."""
    index: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / name, shard, islice(tensors, len(shard)))
        log.info("%s: %d tensors, %.2f GB", name, len(shard), sum(map(_nbytes, shard)) / 1e9)
        index |= {entry.name: name for entry in shard}
    if len(shards) > 1:
        size = {"total_size": sum(map(_nbytes, chain(*shards)))}
        _write_json(folder / INDEX, {"metadata": size, "weight_map": dict(sorted(index.items()))})


def _parameters(model: Model) -> dict[str, Tensor]:
    """The parameters by name. Raises UsageError unless they are what reading them back would make of the spec."""
    held: dict[str, Tensor] = dict(model.named_parameters())
    dtype = model.embed.weight.dtype
    if any(parameter.is_meta for parameter in held.values()):
        raise UsageError("a model on the meta device has no weights to save")
    if dtype not in NAMES:
        raise UsageError(f"a model in {dtype} cannot be saved, only one in {', '.join(WORDS)}: model.to(...) first")
    meant = dict(catalog.allocate(model.spec, "meta", dtype).named_parameters())
    forms = {name: (_form(held.get(name)), _form(meant.get(name))) for name in (*meant, *held)}
    odd = [f"{name} ({given} instead of {form})" for name, (given, form) in forms.items() if given != form]
    if odd:
        raise UsageError(f"the model is not what its spec says: {listed(odd)}")
    return held


def _form(parameter: Tensor | None) -> str:
    if parameter is None:
        return "none"
    return f"{str(parameter.dtype).removeprefix('torch.')} {list(parameter.shape)}"


def _entries(move: TensorMapping, parameters: dict[str, Tensor]) -> Iterator[Entry]:
    """What a move will store."""
    shapes = move.expected({name: parameters[name].to("meta") for name in move.ours})
    return (Entry(name, shape, parameters[move.ours[0]].dtype) for name, shape in shapes.items())


def _written(move: TensorMapping, parameters: dict[str, Tensor]) -> Iterable[Tensor]:
    """The tensors themselves, in the same order."""
    return move.rule.write([parameters[name].detach() for name in move.ours], move.layer)


def _nbytes(entry: Entry) -> int:
    assert entry.dtype is not None
    return prod(entry.shape) * entry.dtype.itemsize


def _shards(entries: Iterable[Entry], most: int) -> Iterator[list[Entry]]:
    """Runs of at most `most` bytes, and of at least one tensor."""
    shard: list[Entry] = []
    held = 0
    for entry in entries:
        if shard and held + _nbytes(entry) > most:
            yield shard
            shard, held = [], 0
        shard.append(entry)
        held += _nbytes(entry)
    yield shard


def _write_safetensors(path: Path, entries: Iterable[Entry], tensors: Iterable[Tensor]) -> None:
    """A safetensors file, holding one tensor at a time. (The library's own writer takes all of a file's at once.)"""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        assert entry.dtype is not None
        start, end = end, end + _nbytes(entry)
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(map(_bytes, tensors))  # which lets go of each before it asks for the next
        file.flush()
        os.fsync(file.fileno())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().data


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _appearing(place: Path, nbytes: int) -> Iterator[Path]:
    """A folder to write `nbytes` into, beside `place` and hidden. It is `place` in the end, or gone after an error."""
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise UsageError(f"{place} is there already, and nothing is written over it: give another name, or remove it")
    parent = place.absolute().parent
    fresh = parent / f".{place.name}.{token_hex(4)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < nbytes:
            raise NotAvailable(f"{place} needs {nbytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there")
        fresh.mkdir()
        try:
            yield fresh
            _sync(fresh)
            fresh.rename(place)  # which fails if something has come to be there meanwhile
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        _sync(parent)
    except OSError as error:
        raise NotAvailable(f"{place} cannot be written: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """See to it that the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
