"""Each machine keeps its decisions in a file of its own; models are made whatever happens to that file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

from tests.ranks import as_launched
from zoo.core import kernels
from zoo.core.kernels import PLAIN
from zoo.errors import NotAvailable
from zoo.kernel_choice import decide, deciding, kept

LINEAR, DECODE = ("linear prefill", torch.float32), ("linear decode", torch.float32)
BLOCKS = ("attention prefill", torch.bfloat16)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[kernels.Decision]]:
    """The decisions measured on a machine that has kept none; each finds the plain kernel faster."""
    found: list[kernels.Decision] = []

    def measure(decision: kernels.Decision, *_: Any) -> str:
        found.append(decision)
        return PLAIN

    monkeypatch.setattr(deciding, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with kernels.using(None):
        yield found


def test_the_file_names_its_machine_and_is_a_setting_too(measured: list[kernels.Decision], tmp_path: Path) -> None:
    kept.write({LINEAR: "onednn", BLOCKS: "blocks"})
    file = kept.path()
    assert file.parent == tmp_path / "cache" / "zoo" / "kernels"
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["kernels"] == {"attention prefill, bfloat16": "blocks", "linear prefill, float32": "onednn"}
    assert document["machine"] == kept.this_machine()
    assert {"cpu", "features", "torch", "threads"} <= document["machine"].keys()
    with kernels.using(file):
        assert kernels.choices() == document["kernels"]


def test_another_machine_has_another_file(measured: list[kernels.Decision], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine differs by its processor, its torch, its threads, or instructions that a variable disables."""
    kept.write({LINEAR: "onednn"})
    files = {kept.path()}
    threads, machine = torch.get_num_threads(), kept.machine()
    torch.set_num_threads(threads + 1)
    try:
        files.add(kept.path())
        assert kept.read() == {}
    finally:
        torch.set_num_threads(threads)
    for change in (
        lambda patch: patch.setenv(
            "ONEDNN_MAX_CPU_ISA", "AVX2" if os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41" else "SSE41"
        ),
        lambda patch: patch.setattr(kept, "cpu_flags", lambda: ["sse"]),
        lambda patch: patch.setattr(kept, "machine", lambda: machine | {"cpu": "another"}),
        lambda patch: patch.setattr(kept, "machine", lambda: machine | {"torch": "9.0"}),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1"),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            files.add(kept.path())
            assert kept.read() == {}
    assert len(files) == 7
    assert kept.read() == {LINEAR: "onednn"}


OLDER = {"schema_version": 1, "kernels": {"linear, float32, rows 1, weights 1048576, threads 2": "onednn"}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema_ver',
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        json.dumps(OLDER).encode(),
        json.dumps({"schema_version": 2, "kernels": {"linear prefill": "mkl"}, "machine": {}}).encode(),
        json.dumps({"schema_version": 2, "kernels": {"linear prefill": "onednn"}}).encode(),
        json.dumps({"schema_version": 2, "kernels": {"linear prefill": "onednn"}, "machine": {"cpu": "x"}}).encode(),
    ],
    ids=["empty", "cut off", "no text", "deep", "a list", "older", "unknown kernel", "no machine", "another machine"],
)
def test_a_file_that_is_damaged_or_anothers_is_put_aside_and_decided_again(
    measured: list[kernels.Decision], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = kept.path()
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    decide([LINEAR, DECODE])
    assert measured == [LINEAR, DECODE]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "\n" not in caplog.text.strip()
    assert "decided again" in caplog.text
    assert file.with_suffix(".unread").read_bytes() == content
    assert kept.read() == {LINEAR: PLAIN, DECODE: PLAIN}
    kernels.use(None)  # another process
    decide([LINEAR, DECODE])
    assert len(measured) == 2


def failing(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("the folder is a file", "cannot be written"),
        ("no home", "Could not determine home"),
        ("the file is a folder", "cannot be written"),
        ("the disk is full", "No space left on device"),
    ],
)
def test_where_nothing_can_be_kept_each_process_decides_and_says_so(
    measured: list[kernels.Decision],
    what: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if what == "the folder is a file":
        (tmp_path / "cache").write_text("", encoding="utf-8")
    elif what == "the file is a folder":
        monkeypatch.setattr(kept, "path", lambda: tmp_path)
        monkeypatch.setattr(Path, "replace", failing(OSError("not here")))
    elif what == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", failing(RuntimeError("Could not determine home")))
    else:
        monkeypatch.setattr(kernels, "write", failing(NotAvailable("No space left on device")))
    for _ in range(2):
        kernels.use(None)  # another process
        decide([LINEAR])
        assert kernels.choices() == {"linear prefill, float32": PLAIN}
    assert measured == [LINEAR, LINEAR]
    said = [record.getMessage() for record in caplog.records if "decided by each process" in record.getMessage()]
    assert len(said) == 2
    assert all(why in line and "\n" not in line for line in said)


def test_the_cache_folder_is_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    monkeypatch.setattr(Path, "home", lambda: home)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert kept.cache_folder(windows=False) == home / ".cache"
    assert kept.cache_folder(windows=True) == home / "AppData" / "Local"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert kept.cache_folder(windows=False) == tmp_path / "xdg"
    assert kept.cache_folder(windows=True) == tmp_path / "local"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert kept.cache_folder(windows=False) == home / ".cache"


def decided(folder: str) -> tuple[list[kernels.Decision], dict[str, str], str]:
    """Runs in one of several processes that would disagree. Returns its measurements, its kernels, and its stderr."""
    found: list[kernels.Decision] = []

    def measure(decision: kernels.Decision, *_: Any) -> str:
        found.append(decision)
        sleep(0.5)
        return (PLAIN, "onednn")[int(os.environ["RANK"]) % 2]

    os.environ["XDG_CACHE_HOME"] = folder
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as err, kernels.using(None):
        patch.setattr(deciding, "measure", measure)
        decide([LINEAR])
        return found, kernels.choices(), err.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="no flock")
def test_of_several_processes_at_once_one_decides_for_all(tmp_path: Path) -> None:
    """The others wait and read its file."""
    measured, chosen, said = zip(*as_launched(4, decided, str(tmp_path)), strict=True)
    assert said == ("",) * 4
    assert sorted(measured) == [[], [], [], [LINEAR]]
    assert all(each == chosen[0] for each in chosen)
    files = [file for file in (tmp_path / "zoo" / "kernels").iterdir() if file.suffix != ".lock"]
    assert len(files) == 1
    assert json.loads(files[0].read_text(encoding="utf-8"))["kernels"] == chosen[0]
    assert chosen[0].keys() == {"linear prefill, float32"}


@pytest.mark.skipif(os.name == "nt", reason="no flock")
def test_a_process_that_decides_for_too_long_is_not_waited_for(
    measured: list[kernels.Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MAX_WAIT_SECONDS", 0.0)
    with kept.one_at_a_time():
        decide([LINEAR])
    assert measured == [LINEAR]
    assert kept.read() == {LINEAR: PLAIN}
