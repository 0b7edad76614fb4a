"""Files and folders that appear whole: written beside under a hidden name, flushed to disk, then renamed. And a lock
for one process at a time."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from zoo.errors import NotAvailable

POLL_SECONDS = 0.01  # between two looks at a lock


@contextmanager
def write_new_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write. It gets its name when the block ends; if the block raises, nothing is left.

    Of two processes that write one name, the last one's file stays: give it to content that follows from the name.
    Raises NotAvailable where the disk fails or is full.
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
    """Write a whole file or none of it. Raises NotAvailable if it cannot be written."""
    with write_new_file(path) as file:
        file.write(content)


@contextmanager
def new_folder(target: Path, what: str = "") -> Iterator[Path]:
    """A folder to write files into. It gets its name when the block ends; if the block raises, nothing is left. `what`
    names it in an error. Raises NotAvailable where the disk fails, or where something is there meanwhile."""
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
    """Another name beside a path, which no one else uses: ".NAME." and eight digits."""
    return path.with_name(f".{path.name}.{token_hex(4)}")


def flush(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, seconds: float = 0.0) -> bool:
    """Lock an open file against other processes, and wait up to so many seconds for one that holds it; False if it
    still does. The system lifts the lock when the file is closed or the process ends, however it ends. Systems without
    flock, and network file systems without locks, lock nothing."""
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
