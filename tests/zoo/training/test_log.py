"""The log of a run: cut to a checkpoint on resume, up to its first line that is not whole."""

import json

import pytest

from zoo.errors import NotAvailable
from zoo.training.log import Log, read_log


def rows(*steps: int) -> list[dict]:
    return [{"step": step, "loss": step / 3} for step in steps]


def test_lines_are_kept_until_the_step_of_the_checkpoint(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path, 0) as log:
        for row in rows(0, 1, 2, 3):
            log.write(row)
    assert read_log(path) == rows(0, 1, 2, 3)
    with Log(path, 2) as log:
        log.write(rows(2)[0])
        log.flush()
        assert read_log(path) == rows(0, 1, 2)
    assert [each.name for each in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', "\n", "[1]\n", "{}\n", "\x00\x00"])
def test_what_a_killed_process_left_is_dropped(tmp_path, rest) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(0, 1)) + rest)
    assert read_log(path) == rows(0, 1)
    with Log(path, 2) as log:
        log.write(rows(2)[0])
    assert read_log(path) == rows(0, 1, 2)


def test_a_log_that_cannot_be_written_is_named(tmp_path) -> None:
    with pytest.raises(NotAvailable, match=r"log\.jsonl cannot be written"):
        Log(tmp_path / "none" / "log.jsonl", 0)
    with pytest.raises(NotAvailable, match="cannot be read"):
        read_log(tmp_path / "log.jsonl")
