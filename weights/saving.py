"""Saves a model as a folder that `weights.load` reads: in Hugging Face layout, or in the zoo's own.

The reference implementation can also read Hugging Face layout, but no published config describes most swapped models.
The zoo's own layout holds any model: spec.json, and each parameter under its own name.

The folder gets its final name once it is complete, so that no partial folder has this name. Tensors are written one at
a time, by the same rules as in loading.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from weights.formats.generation import generation_fields
from weights.formats.hf_folder import CONFIG, DTYPES
from weights.formats.safetensors_folder import GENERATION, INDEX, SINGLE
from weights.formats.untrusted import DTYPES as SAFETENSORS_DTYPES
from weights.formats.zoo_folder import SPEC, own_layout
from weights.matching import StoredTensor, listed, match, stored_tensors
from weights.matching import layout as hf_layout
from zoo import catalog
from zoo.catalog import to_hf
from zoo.errors import NotAvailable, SpecError, UsageError, unknown
from zoo.hf.checkpoint_layout import Rules
from zoo.model.module import Model
from zoo.new_files import new_folder
from zoo.spec_files import spec_text
from zoo.units import dtype_name

SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
Layout = Literal["auto", "hf", "zoo"]
log = logging.getLogger(__name__)


def save(
    model: Model, folder: str | Path, *, layout: Layout = "auto", shard_bytes: int = 5_000_000_000
) -> Literal["hf", "zoo"]:
    """Writes a model to a new folder: its description, and safetensors files with at most `shard_bytes` of tensors
    each. Returns the layout that was written.

    `layout`: "hf" writes config.json and the tensors of the released files, "zoo" writes spec.json and the parameters
    under their own names, and "auto" writes "hf" if a published config describes the model, else "zoo". A larger tensor
    gets a file of its own; for several files, an index is written. Every tensor keeps its dtype; a tied head is not
    stored. For a model from `weights.load`, its tokenizer, chat template and generation settings are also written.

    Raises SpecError for "hf" if no published config describes the model, and NotAvailable if the folder cannot be
    written. Raises UsageError for a folder that is not empty, for a model without weights or one that differs from its
    spec, and for an argument that is not a model.
    """
    if not isinstance(model, Model):
        raise UsageError(f"save(model, folder) expects a model of the zoo first, not a {type(model).__name__}")
    if shard_bytes < 1:
        raise UsageError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if layout not in get_args(Layout):
        raise unknown("layout", layout, get_args(Layout))
    made = _checkpoint(model, layout)
    shards = list(_shards(made.entries, shard_bytes))
    target = Path(folder)
    _require_room(target, sum(entry.nbytes for entry in made.entries))
    with new_folder(target) as fresh:
        (fresh / made.file).write_text(made.description, encoding="utf-8")
        _write_shards(fresh, shards, made.tensors)
        if settings := generation_fields(model.generation):
            (fresh / GENERATION).write_text(_json_text(settings), encoding="utf-8")
        if model.text is not None:
            model.text.save(fresh)
    return made.layout


def to_checkpoint(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config.json that `save` writes in Hugging Face layout, and the tensors by name. A tensor that is
    stored unchanged is the parameter itself, not a copy. Raises the errors of `save`."""
    made = _checkpoint(model, "hf")
    return json.loads(made.description), {e.name: tensor for e, tensor in zip(made.entries, made.tensors, strict=True)}


class _Checkpoint(NamedTuple):
    """The contents of a folder: the file that describes the model, and the tensors, each computed on demand."""

    layout: Literal["hf", "zoo"]
    file: str
    description: str
    entries: list[StoredTensor]
    tensors: Iterator[Tensor]


def _checkpoint(model: Model, layout: Layout) -> _Checkpoint:
    parameters = _parameters(model)
    chosen, file, description, rules = _described(model, layout)
    mappings = match(model.spec, parameters, rules, stored=())  # the first matching rules, as in released files
    meta = {name: parameter.to("meta") for name, parameter in parameters.items()}
    entries = [
        StoredTensor(name, shape, parameters[mapping.module_names[0]].dtype)
        for mapping in mappings
        for name, shape in mapping.expected(meta).items()
    ]
    tensors = chain.from_iterable(mapping.write(parameters) for mapping in mappings)
    return _Checkpoint(chosen, file, description, entries, tensors)


def _described(model: Model, layout: Layout) -> tuple[Literal["hf", "zoo"], str, str, Rules]:
    """Returns the layout, the name and content of the file that describes the model, and the rules for the tensors."""
    if layout != "zoo":
        try:
            config = to_hf(model.spec) | {"dtype": dtype_name(model.embed.weight.dtype)}
            return "hf", CONFIG, _json_text(config), hf_layout(catalog.family_of(config))
        except SpecError as error:
            if layout == "hf":
                raise
            log.info("%s; saved in the zoo's own layout", error)
    return "zoo", SPEC, spec_text(model.spec), own_layout(model.spec)


def _parameters(model: Model) -> dict[str, Tensor]:
    """Returns the parameters by name. Raises UsageError unless names, shapes and dtypes match the model's spec."""
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
    """Splits the tensors, in order, into lists of at most `max_bytes`. A larger tensor gets a list of its own."""
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
    """Writes one file for each shard and, for several shards, an index. `tensors` are in the order of the entries."""
    index, total = dict[str, str](), 0
    for i, shard in enumerate(shards):
        name = SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / name, shard, islice(tensors, len(shard)))
        nbytes = sum(entry.nbytes for entry in shard)
        log.info("%s: %d tensors, %.2f GB", name, len(shard), nbytes / 1e9)
        total += nbytes
        index |= {entry.name: name for entry in shard}
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX).write_text(_json_text(content), encoding="utf-8")


def _write_safetensors(path: Path, entries: Iterable[StoredTensor], tensors: Iterable[Tensor]) -> None:
    """Writes a safetensors file, one tensor at a time. (The library's own writer needs all tensors in memory.)"""
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


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _require_room(target: Path, nbytes: int) -> None:
    """Raises UsageError for a file or a folder that is not empty, NotAvailable if its disk lacks `nbytes`."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UsageError(f"{target} already exists and is not overwritten: give another name, or remove it")
    try:
        free = shutil.disk_usage(next(parent for parent in target.absolute().parents if parent.exists())).free
    except OSError as error:
        raise NotAvailable(f"{target} cannot be written: {error.strerror or error}") from error
    if free < nbytes:
        raise NotAvailable(f"{target} needs {nbytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there")
