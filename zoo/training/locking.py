"""Admits one process at a time to the folder of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import NotAvailable, UsageError
from zoo.new_files import lock

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes out of it. The system lifts the lock when the process ends.

    Raises UsageError if another process works there, NotAvailable for a folder that cannot be made. Systems without
    flock lock nothing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise NotAvailable(f"{folder} cannot be written: {error.strerror}") from error
    try:
        if not lock(descriptor):
            raise UsageError(f"another process is training in {folder}")
        yield
    finally:
        os.close(descriptor)
