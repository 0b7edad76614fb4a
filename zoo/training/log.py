"""The log of a run: one JSON object per line, one line per step. On resume, lines after the checkpoint's step are
cut."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zoo.errors import NotAvailable
from zoo.new_files import write_file


class Log:
    """A log that is open for writing. An existing log keeps the lines before `step`: the others were written after the
    checkpoint of that step. Raises NotAvailable where the disk fails."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        try:
            if path.exists():
                self._cut(step)
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a line. Raises NotAvailable where the disk fails."""
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Flushes the written lines to disk: a checkpoint that follows is never ahead of the log."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _cut(self, step: int) -> None:
        kept = "".join(json.dumps(row) + "\n" for row in read_log(self.path) if row["step"] < step)
        write_file(self.path, kept.encode())

    def _failed(self, error: OSError) -> NotAvailable:
        return NotAvailable(f"the log {self.path} cannot be written: {error.strerror}")


class NoLog:
    """A log without a file, for the processes that train together with the one that writes."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a log, up to the first incomplete line. Raises NotAvailable where it cannot be read."""
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise NotAvailable(f"the log {path} cannot be read: {error.strerror}") from error
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows
