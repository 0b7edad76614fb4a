"""A new file appears whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from zoo.errors import NotAvailable
from zoo.new_files import write_new_file


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with write_new_file(path) as file:
        file.write(b"content")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(NotAvailable, match=f"^{path} cannot be written: No space left on device$"),
        write_new_file(path),
    ):
        pass
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_breaks_off_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def break_off() -> None:
        with write_new_file(tmp_path / "a.bin") as file:
            file.write(b"part")
            raise error

    with pytest.raises(error):
        break_off()
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotAvailable, match="cannot be written"), write_new_file(tmp_path / "file" / "a.bin"):
        pass
