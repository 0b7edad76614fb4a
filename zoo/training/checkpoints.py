"""The files of a run: checkpoints, the log and the lock. A checkpoint is written completely or not at all, and contains
no code.

`step-00000100/` holds model.safetensors (the module's state dict), optimizer.safetensors (AdamW's state by parameter
name) and state.json (everything else). If the process is killed or the disk is full, earlier checkpoints remain. Each
tensor is stored as a whole in one file, whatever the number of training processes.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from zoo.core.processes import rank
from zoo.errors import MalformedError, NotAvailable, UsageError, accessing
from zoo.new_files import hidden, lock, new_folder, write_file

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CHECKPOINTS = "checkpoints"  # their folder in that of a run
SCHEMA_VERSION = 1
KEPT = 2  # number of latest checkpoints to keep, in addition to the best one
NAME = re.compile(r"step-(\d{8,})")
LOCK = ".lock"


def write_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Writes the checkpoint of a `step` into the folder of a run's checkpoints, and removes older checkpoints.

    The last two checkpoints are kept, and the one with the lowest "bits_per_byte" in its state. Raises NotAvailable if
    the disk fails or is full; earlier checkpoints then remain. Raises UsageError if the step already has a checkpoint.
    """
    target = folder / f"step-{step:08}"
    if target.exists():
        raise UsageError(f"{target} already exists, and nothing is overwritten")
    text = json.dumps({"schema_version": SCHEMA_VERSION, "step": step, **state}, indent=2)
    with new_folder(target, "the checkpoint ") as fresh:
        _save(model, fresh / MODEL)
        _save(optimizer, fresh / OPTIMIZER)
        (fresh / STATE).write_text(text + "\n", encoding="utf-8")
    _remove_others(folder)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, ordered by step. A missing folder has none."""
    if not folder.exists():
        return []
    with accessing(folder):
        found = {int(match[1]): path for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    return [path for _, path in sorted(found.items())]


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the last checkpoint of the run in a folder; None if there is no run."""
    found = checkpoints(folder / CHECKPOINTS)
    return found[-1] if found else None


def best_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint with the best evaluation (the first of equally good ones), or None if there is none."""
    scores = {path: read_state(path).get("bits_per_byte") for path in checkpoints(folder)}
    evaluated = {path: float(score) for path, score in scores.items() if score is not None}
    return min(evaluated, key=lambda path: evaluated[path], default=None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint's state.json. Raises NotAvailable if the file cannot be read, MalformedError
    if it has other content or another version."""
    path = checkpoint / STATE
    try:
        with accessing(path):
            state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{path}: not JSON: {error}") from error
    version = state.get("schema_version") if isinstance(state, dict) else None
    if version != SCHEMA_VERSION:
        raise MalformedError(f"{path}: must have schema_version {SCHEMA_VERSION}, got {str(version)[:80]}")
    if not isinstance(state.get("step"), int):
        raise MalformedError(f"{path}: must have a step")
    return state


def read_tensors(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the tensors of the model and those of the optimiser, on the CPU. Raises NotAvailable if a file cannot be
    read, MalformedError if it is not a safetensors file."""
    return _load(checkpoint / MODEL), _load(checkpoint / OPTIMIZER)


def remove_leftovers(folder: Path, name: str = "step-*") -> None:
    """Removes temporary folders that a killed process left while it wrote or removed a folder `name`. No other process
    may write in `folder` at this time."""
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(path, ignore_errors=True)


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
    except SafetensorError as error:  # raised for a full disk
        raise NotAvailable(f"the checkpoint {path} cannot be written: {error}") from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        with accessing(path):
            return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise MalformedError(f"{path}: not a safetensors file: {error}") from error


def _remove_others(folder: Path) -> None:
    """Removes the checkpoints that are not kept. Each is renamed first, since a partly removed folder must not look
    like a checkpoint."""
    best = best_checkpoint(folder)
    for path in checkpoints(folder)[:-KEPT]:
        if path != best:
            gone = hidden(path)
            with accessing(f"the checkpoint {path}", "removed"):
                os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates the folder of a run, and locks it against other processes. The system removes the lock when the process
    ends.

    If the block raises before the run has a checkpoint, everything that was created is removed. Raises UsageError if
    another process has the lock, NotAvailable if the folder cannot be created. On systems without flock, nothing is
    locked.
    """
    with accessing(folder, "written"):
        created = [each for each in (folder, *folder.parents) if not each.exists()]
        earlier = set() if created else set(folder.iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    try:
        if not lock(descriptor) or not _is_open(folder / LOCK, descriptor):
            raise UsageError(f"another process is training in {folder}")
        try:
            yield
        except BaseException:
            if not checkpoints(folder / CHECKPOINTS):
                _remove_new(folder, earlier, created)
            raise
    finally:
        os.close(descriptor)


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to the open file: a process that fails removes its lock."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_new(folder: Path, earlier: Collection[Path], created: Iterable[Path]) -> None:
    """Removes everything in a folder except the `earlier` paths; the lock is removed last. Then removes the `created`
    folders, innermost first, until one is not empty."""
    new = set(folder.iterdir()) - set(earlier)
    for path in sorted(new, key=lambda each: each.name == LOCK):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        for path in created:
            path.rmdir()


class Log:
    """The log of a run, open for writing, with one JSON object per line and one line per step.

    An existing log keeps the lines before `step`. Later lines were written after the checkpoint from which the run
    continues. With several processes, only the first one writes. Every method raises NotAvailable if the disk fails.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._file, self._writing = None, partial(accessing, f"the log {path}", "written")
        if rank():
            return
        with self._writing():
            if path.exists():
                kept = "".join(json.dumps(row) + "\n" for row in read_log(path) if row["step"] < step)
                write_file(path, kept.encode())
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a line."""
        if self._file:
            with self._writing():
                self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Flushes the written lines to disk, so that the log is never behind a checkpoint that is written next."""
        if self._file:
            with self._writing():
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a log, up to the first incomplete line. Raises NotAvailable if the log cannot be read."""
    rows: list[dict[str, Any]] = []
    with accessing(f"the log {path}"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows
