"""Files that appear whole: written beside under a hidden name, flushed to disk, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from zoo.errors import NotAvailable


@contextmanager
def write_new_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write. It gets its name when the block ends; if the block raises, nothing is left.

    Of two processes that write one name, the last one's file stays: give it to content that follows from the name.
    Raises NotAvailable where the disk fails or is full.
    """
    fresh = path.parent / f".{path.name}.{token_hex(4)}"
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
        sync_folder(path.parent)
    except OSError as error:
        raise NotAvailable(f"{path} cannot be written: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, so that a renamed file is found after a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
