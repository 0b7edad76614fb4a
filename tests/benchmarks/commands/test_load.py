"""python -m benchmarks load: its output, and its error for a source that does not load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import app
from benchmarks.measure import loading
from tests.benchmarks.schema import validate
from tests.reference import toy_config, toy_reference
from zoo.cli.runner import exit_code
from zoo.core import kernels
from zoo.errors import MalformedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy checkpoint as transformers writes it."""
    path = tmp_path_factory.mktemp("toy")
    toy_reference(toy_config("qwen3-0.6b", 2)).save_pretrained(path)
    return path


def call(*args: str) -> int:
    return exit_code(app, "python -m benchmarks", ["load", *args])


@pytest.mark.slow
def test_both_loaders_in_turns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(folder), "--repeat", "1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    validate(document)
    zoo, peer = document["rows"]
    assert (zoo["loader"], peer["loader"]) == ("zoo", "transformers")
    assert zoo["model_bytes"] == peer["model_bytes"]
    assert zoo["file_bytes"] == (folder / "model.safetensors").stat().st_size
    assert 0 < zoo["load_s"] < zoo["ready_s"]
    assert {"isa", "kernels", "kernels_set"} <= document["machine"].keys()


def test_kernels_are_those_of_the_loads_own_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = iter([{"linear decode, float32": kernel} for kernel in ("gemv", "onednn", "plain")])
    monkeypatch.setattr(loading, "load_once", lambda *given: fake(*given) | {"kernels": next(chosen)})
    assert call(str(folder), "--alone", "--repeat", "2", "--json") == 0
    kernels = json.loads(capsys.readouterr().out)["machine"]["kernels"]
    assert kernels == {"linear decode, float32": "onednn or plain"}  # the first load does not count


def test_a_process_says_which_kernels_its_load_and_pass_used(folder: Path) -> None:
    with kernels.using({"linear decode": "onednn"}):
        assert loading.measure_load("zoo", str(folder), "auto")["kernels"] == kernels.choices() != {}


def fake(loader: str, path: Path, dtype: str) -> dict[str, Any]:
    """A fake load that took one second, or two seconds with a pass."""
    return {"load_s": 1.0, "ready_s": 2.0, "model_bytes": 2**20, "peak_bytes": 3 * 2**20, "anonymous_bytes": 2**19}


def test_the_table_fits_80_columns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load_once", fake)
    assert call(str(folder)) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert [line.split()[0] for line in out.splitlines() if "1.00" in line] == ["zoo", "transformers"]
    assert "Medians of 5, files in memory, dtype auto" in out


def test_the_first_load_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 1.0, 2.0, 6.0])
    monkeypatch.setattr(loading, "load_once", lambda *_: fake("", Path(), "") | {"load_s": next(seconds)})
    found: dict[str, Any] = {}
    assert loading.run(Path(), "auto", ["zoo"], 3, found) == {}
    assert [sample["load_s"] for sample in found["zoo"]] == [1.0, 2.0, 6.0]


def failing(who: str) -> Callable[[str, Path, str], dict[str, Any]]:
    return lambda loader, *_: {"error": "torn", "exit_code": 4} if loader == who else fake("", Path(), "")


def test_an_error_of_transformers_is_shown_and_the_rest_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load_once", failing("transformers"))
    assert call(str(folder), "--json") == 0
    out, err = capsys.readouterr()
    assert [row["loader"] for row in json.loads(out)["rows"]] == ["zoo"]
    assert err == "transformers cannot load it: torn\n"


def test_what_the_zoo_cannot_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_once", failing("zoo"))
    with pytest.raises(MalformedError, match="torn"):
        loading.run(Path(), "auto", ["zoo", "transformers"], 1, {})


def test_a_broken_tensor_ends_the_process_of_its_load_only(folder: Path, tmp_path: Path) -> None:
    """A real child process returns the error and the exit code."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"short")
    sample = loading.load_once("zoo", tmp_path, "auto")
    assert sample["exit_code"] == 4
    assert "model.safetensors" in sample["error"]
