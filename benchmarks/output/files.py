"""Files that are written whole or not at all."""

from pathlib import Path

from zoo.errors import NotAvailable


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file or none of it. Raises NotAvailable if it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotAvailable(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise NotAvailable(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
