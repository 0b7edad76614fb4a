"""Checkpoints of a run: folders that appear whole or not at all, and that hold no code.

`step-00000100/` holds model.safetensors, the module's own state dict; optimizer.safetensors, AdamW's state by parameter
name; and state.json, everything else. A checkpoint is written beside, flushed to disk, and renamed. A process that is
killed, or a full disk, leaves the earlier checkpoints. Each tensor is whole, in one file, whatever the number of
training processes.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.new_files import hidden, new_folder

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
SCHEMA_VERSION = 1
MAX_STATE_BYTES = 64 * 2**20
KEPT = 2  # last checkpoints that are kept, beside the best by evaluation
NAME = re.compile(r"step-(\d{8,})")


def write_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Writes the checkpoint of a `step` into the folder of a run's checkpoints, and removes the checkpoints that are
    not kept.

    The last two are kept, and the one whose state's "bits_per_byte" is the lowest. Raises NotAvailable where the disk
    fails or is full: the earlier checkpoints stay. Raises UsageError if the step's checkpoint exists.
    """
    target = folder / f"step-{step:08}"
    if target.exists():
        raise UsageError(f"{target} is there already, and nothing is overwritten")
    text = json.dumps({"schema_version": SCHEMA_VERSION, "step": step, **state}, indent=2)
    with new_folder(target, "the checkpoint ") as fresh:
        _save(model, fresh / MODEL)
        _save(optimizer, fresh / OPTIMIZER)
        (fresh / STATE).write_text(text + "\n", encoding="utf-8")
    _remove_others(folder)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, by step; none where the folder does not exist."""
    try:
        found = {int(match[1]): path for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NotAvailable(f"{folder} cannot be read: {error.strerror}") from error
    return [path for _, path in sorted(found.items())]


def best_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint with the best evaluation, the first of equal ones; None where none was evaluated."""
    scores = {path: read_state(path).get("bits_per_byte") for path in checkpoints(folder)}
    evaluated = {path: float(score) for path, score in scores.items() if score is not None}
    return min(evaluated, key=lambda path: evaluated[path], default=None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Returns the state.json of a checkpoint. Raises NotAvailable if it cannot be read, MalformedError if it is not a
    state, or of another version."""
    path = checkpoint / STATE
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise MalformedError(f"{path}: larger than {MAX_STATE_BYTES} bytes")
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotAvailable(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{path}: not JSON: {error}") from error
    version = state.get("schema_version") if isinstance(state, dict) else None
    if version != SCHEMA_VERSION:
        raise MalformedError(f"{path}: must have schema_version {SCHEMA_VERSION}, got {str(version)[:80]}")
    if not isinstance(state.get("step"), int):
        raise MalformedError(f"{path}: must have a step")
    return state


def read_tensors(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the model's and the optimiser's tensors in a checkpoint, on the CPU. Raises NotAvailable for an
    unreadable file, MalformedError for one with other content."""
    return _load(checkpoint / MODEL), _load(checkpoint / OPTIMIZER)


def remove_leftovers(folder: Path, name: str = "step-*") -> None:
    """Removes folders of this name that a killed process was writing or removing. No other process may be writing
    there."""
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(path, ignore_errors=True)


def as_json(value: Any) -> Any:
    """Converts a spec or another dataclass to JSON: an object with its "kind" and its fields; tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {f.name: as_json(getattr(value, f.name)) for f in fields(value)}
    return [as_json(item) for item in value] if isinstance(value, tuple | list) else value


def json_differences(then: Any, now: Any, path: str) -> Iterator[str]:
    """Yields a line of text for each place where two JSON values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from json_differences(then.get(key), now.get(key), f"{path}.{key}")
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, pair in enumerate(zip(then, now, strict=True)):
            yield from json_differences(*pair, f"{path}[{i}]")
    elif then != now or type(then) is not type(now):
        yield f"{path} is {_shown(then)} in the run, {_shown(now)} here"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return str(value.get("kind", "an object")) if isinstance(value, dict) else json.dumps(value)[:200]


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(dict(tensors), path)
    except SafetensorError as error:  # the library's own type for a full disk
        raise NotAvailable(f"the checkpoint {path} cannot be written: {error}") from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise NotAvailable(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise MalformedError(f"{path}: not a safetensors file: {error}") from error


def _remove_others(folder: Path) -> None:
    """Removes the checkpoints that are not kept. Each is renamed first, so that a half-removed one is not taken for a
    checkpoint."""
    best = best_checkpoint(folder)
    for path in checkpoints(folder)[:-KEPT]:
        if path != best:
            gone = hidden(path)
            try:
                os.rename(path, gone)
            except OSError as error:
                raise NotAvailable(f"the checkpoint {path} cannot be removed: {error.strerror}") from error
            shutil.rmtree(gone, ignore_errors=True)
