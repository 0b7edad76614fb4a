"""One process at a time in a folder."""

import pytest

from zoo.errors import NotAvailable, UsageError
from zoo.training.locking import locked


def test_a_folder_is_locked_while_it_is_used(tmp_path) -> None:
    folder = tmp_path / "new" / "run"
    with locked(folder), pytest.raises(UsageError, match="another process is training"), locked(folder):
        pytest.fail("two processes hold one lock")
    with locked(folder):
        assert folder.is_dir()


def test_a_file_in_the_way_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAvailable, match="cannot be written"), locked(tmp_path / "file"):
        pass
