"""The files of a run: checkpoints that are whole or not there, the log that is cut to one, and the lock."""

import errno
import json
import os
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

import zoo
from tests.presets import over
from zoo import new_files
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.spec_files import as_json
from zoo.training import checkpoints as stored
from zoo.training.checkpoints import (
    Log,
    best_checkpoint,
    checkpoints,
    json_differences,
    locked,
    read_log,
    read_state,
    write_checkpoint,
)


def write(folder: Path, step: int, bits: float | None = None) -> Path:
    tensors = {"weight": torch.full((3, 2), float(step)), "half": torch.ones(2, dtype=torch.bfloat16)}
    moments = {"weight.step": torch.tensor(float(step)), "weight.exp_avg": torch.ones(3, 2)}
    return write_checkpoint(folder, step, tensors, moments, {"bits_per_byte": bits, "note": "é"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read_again(tmp_path) -> None:
    path = write(tmp_path / "checkpoints", 12, 3.5)
    assert read_state(path) == {"schema_version": 1, "step": 12, "bits_per_byte": 3.5, "note": "é"}
    model, optimizer = stored.read_tensors(path)
    assert torch.equal(model["weight"], torch.full((3, 2), 12.0))
    assert model["half"].dtype == torch.bfloat16
    assert optimizer["weight.step"] == 12
    assert names(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_the_last_two_and_the_best_are_kept(tmp_path) -> None:
    for step, bits in [(0, 8.0), (5, 3.0), (10, 2.0), (15, None), (20, 2.5), (25, 2.0), (30, 4.0)]:
        write(tmp_path, step, bits)
    assert names(tmp_path) == ["step-00000010", "step-00000025", "step-00000030"]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000010"  # the first of equal ones
    assert checkpoints(tmp_path)[-1] == tmp_path / "step-00000030"


def test_checkpoints_are_ordered_by_number_and_nothing_else_counts(tmp_path) -> None:
    for name in ("step-100000000", "step-00000002", ".step-00000003.0a1b2c3d", "step-x", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-100000000"]
    stored.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["other", "step-00000002", "step-100000000", "step-x"]
    assert checkpoints(tmp_path / "none") == []


def test_nothing_is_overwritten(tmp_path) -> None:
    write(tmp_path, 1)
    with pytest.raises(UsageError, match="nothing is overwritten"):
        write(tmp_path, 1)


@pytest.mark.parametrize(("name", "at"), [("fsync", 1), ("fsync", 3), ("fsync", 4), ("rename", 1), ("mkdir", 2)])
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch, name, at) -> None:
    """The disk is full at one system call: the `at`-th of this name."""
    owner, calls = Path if name == "mkdir" else os, count(1)
    call = getattr(owner, name)

    def full(*args, **kwargs):
        if next(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args, **kwargs)

    write(tmp_path, 1, 2.0)
    write(tmp_path, 2, 3.0)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, full)
        with pytest.raises(NotAvailable, match=r"step-00000003 cannot be written: No space left on device"):
            write(tmp_path, 3, 1.0)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert read_state(tmp_path / "step-00000002")["step"] == 2
    write(tmp_path, 3, 1.0)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_every_file_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    flush, rename = new_files.flush, os.rename
    monkeypatch.setattr(
        new_files, "flush", lambda path: (done.append(path.name.partition(".")[0] or "new"), flush(path))
    )
    monkeypatch.setattr(os, "rename", lambda *paths: (done.append("rename"), rename(*paths)))
    write(tmp_path / "all", 1)
    assert sorted(done[:3]) == ["model", "optimizer", "state"]
    assert done[3:] == ["new", "rename", "all"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "schema_version 1, got None"),
        ('{"schema_version": 2, "step": 1}', "schema_version 1, got 2"),
        ('{"schema_version": 1}', "must have a step"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_state_that_is_none_is_refused(tmp_path, text, says) -> None:
    path = write(tmp_path, 1)
    (path / "state.json").write_text(text)
    with pytest.raises(MalformedError, match=says):
        read_state(path)


def test_files_that_are_broken_or_missing_are_named(tmp_path) -> None:
    path = write(tmp_path, 1)
    (path / "optimizer.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")  # a pickle is only bytes here
    with pytest.raises(MalformedError, match=r"optimizer\.safetensors: not a safetensors file"):
        stored.read_tensors(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(NotAvailable, match=r"model\.safetensors cannot be read"):
        stored.read_tensors(path)
    (path / "state.json").unlink()
    with pytest.raises(NotAvailable, match=r"state\.json cannot be read"):
        read_state(path)


@over(zoo.names())
def test_a_spec_as_json_tells_specs_apart(name) -> None:
    spec = zoo.spec(name)
    then = json.loads(json.dumps(as_json(spec)))
    assert list(json_differences(then, as_json(spec), "spec")) == []
    other = replace(spec, dim=spec.dim + 1, tied=not spec.tied)
    assert list(json_differences(then, as_json(other), "spec")) == [
        f"spec.dim is {spec.dim} in the run, {spec.dim + 1} here",
        f"spec.tied is {str(spec.tied).lower()} in the run, {str(not spec.tied).lower()} here",
    ]
    fewer = replace(spec, layers=spec.layers[:-1])
    layers = len(spec.layers)
    assert list(json_differences(then, as_json(fewer), "spec")) == [
        f"spec.layers is a list of {layers} in the run, a list of {layers - 1} here"
    ]


def rows(*steps: int) -> list[dict]:
    return [{"step": step, "loss": step / 3} for step in steps]


def test_lines_are_kept_until_the_step_of_the_checkpoint(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    with closing(Log(path, 0)) as log:
        for row in rows(0, 1, 2, 3):
            log.write(row)
    assert read_log(path) == rows(0, 1, 2, 3)
    with closing(Log(path, 2)) as log:
        log.write(rows(2)[0])
        log.flush()
        assert read_log(path) == rows(0, 1, 2)
    assert names(tmp_path) == ["log.jsonl"]


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', "\n", "[1]\n", "{}\n", "\x00\x00"])
def test_what_a_killed_process_left_is_dropped(tmp_path, rest) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(0, 1)) + rest)
    with closing(Log(path, 2)) as log:
        log.write(rows(2)[0])
    assert read_log(path) == rows(0, 1, 2)


def test_a_log_that_cannot_be_written_is_named(tmp_path) -> None:
    with pytest.raises(NotAvailable, match=r"log\.jsonl cannot be written"):
        Log(tmp_path / "none" / "log.jsonl", 0)
    with pytest.raises(NotAvailable, match="cannot be read"):
        read_log(tmp_path / "log.jsonl")


def test_a_start_that_fails_leaves_nothing_behind(tmp_path) -> None:
    folder = tmp_path / "new" / "run"

    def fail(path: str) -> None:
        with locked(folder):
            write(folder / path, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail("others")
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "notes").write_text("")
    with pytest.raises(ZeroDivisionError):
        fail("others")
    assert [path.name for path in folder.iterdir()] == ["notes"]
    with pytest.raises(ZeroDivisionError):
        fail("checkpoints")
    assert (folder / "checkpoints" / "step-00000001").is_dir()


def test_a_folder_is_locked_while_it_is_used(tmp_path) -> None:
    folder = tmp_path / "new" / "run"
    with locked(folder), pytest.raises(UsageError, match="another process is training"), locked(folder):
        pytest.fail("two processes hold one lock")
    with locked(folder):
        assert folder.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAvailable, match="cannot be written"), locked(tmp_path / "file"):
        pass
