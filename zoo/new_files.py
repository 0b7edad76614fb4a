"""Writes files and folders atomically: under a hidden name, flushed to disk, then renamed. Also locks files."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from zoo.errors import NotAvailable

POLL_SECONDS = 0.01  # between two attempts to lock


@contextmanager
def write_new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a binary file for writing. It gets its name when the block ends; if the block raises, nothing is left.

    If two processes write the same name, the last file stays: use it for content that the name determines. Raises
    NotAvailable if the disk fails or is full.
    """
    fresh = hidden(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with fresh.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        flush(path.parent)
    except OSError as error:
        raise NotAvailable(f"{path} cannot be written: {error.strerror or error}") from error


def write_file(path: Path, content: bytes) -> None:
    """Writes a whole file or nothing. Raises NotAvailable if it cannot be written."""
    with write_new_file(path) as file:
        file.write(content)


@contextmanager
def new_folder(target: Path, what: str = "") -> Iterator[Path]:
    """Makes a folder to write files into. It gets its name when the block ends; if the block raises, nothing is left.
    `what` names the folder in errors. Raises NotAvailable if the disk fails, or if the target was created meanwhile."""
    fresh = hidden(target.absolute())
    try:
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        try:
            yield fresh
            for path in (*fresh.iterdir(), fresh):
                flush(path)
            os.rename(fresh, target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        flush(fresh.parent)
    except OSError as error:
        raise NotAvailable(f"{what}{target} cannot be written: {error.strerror or error}") from error


def hidden(path: Path) -> Path:
    """Returns an unused path in the same folder: ".NAME." and eight hexadecimal digits."""
    return path.with_name(f".{path.name}.{token_hex(4)}")


def flush(path: Path) -> None:
    """Flushes a file's bytes, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, seconds: float = 0.0) -> bool:
    """Locks an open file against other processes. Waits up to `seconds` for a process that holds the lock, and returns
    False if the lock is still taken then. The system lifts the lock when the file is closed or the process ends.
    Systems without flock, and network file systems without locks, lock nothing."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - began >= seconds:
                return False
            time.sleep(POLL_SECONDS)
        except OSError:
            return True
        else:
            return True
