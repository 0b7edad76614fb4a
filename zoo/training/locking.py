"""One process at a time in the folder of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import NotAvailable, UsageError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it; the system lifts the lock when the process ends, however it
    ends. Raises UsageError if another process is at work there, NotAvailable for a folder that cannot be made. Systems
    without flock lock nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise NotAvailable(f"{folder} cannot be written: {error.strerror}") from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another process is training in {folder}") from None
    except OSError:  # a network file system without locks
        return
