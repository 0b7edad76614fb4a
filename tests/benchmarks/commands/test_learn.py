"""The verb learn, end to end at toy sizes: every format, stored runs, and errors for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.__main__ import app
from benchmarks.commands import learn
from benchmarks.learning import comparison
from benchmarks.learning.intervals import NO_DIFFERENCE
from tests.benchmarks.schema import validate
from zoo.cli.runner import exit_code

pytestmark = pytest.mark.xdist_group("learn")  # the runs are made once
ROOT = Path(__file__).resolve().parents[3]
SWAPS = ["GQA(window=4)", "rope=NoPE; norm=olmo"]
SIZES = ["--params", "40k", "--context", "16", "--batch", "2", "--seeds", "2", "-j", "1"]
MODELS = ["llama3", "--swap", SWAPS[0], "--swap", SWAPS[1]]
BUDGET = ["--tokens", "96", "--quick", "--tasks", "text,length,recall"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text of a few files, and the runs that the tests of this module share."""
    folder = tmp_path_factory.mktemp("learn")
    (folder / "text").mkdir()
    for name in map(str, range(60)):
        (folder / "text" / name).write_text("".join(f"{name} times {i} is {int(name) * i}\n" for i in range(8)))
    return folder


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs learn with more arguments. Returns its output. Synthetic tasks get two steps."""
    short = {name: replace(task, steps=2) for name, task in comparison.TASKS.items()}
    monkeypatch.setattr(comparison, "TASKS", short)

    def run(*more: str, code: int = 0) -> str:
        text, runs = ["--text", str(folder / "text")], ["--runs", str(folder / "runs")]
        assert exit_code(app, "python -m benchmarks", ["learn", *MODELS, *SIZES, *BUDGET, *text, *runs, *more]) == code
        return capsys.readouterr().out

    return run


def test_json_follows_the_schema_and_holds_every_sample(call: Callable[..., str], folder: Path) -> None:
    document = json.loads(call("--json"))
    validate(document)
    assert document["complete"] is True
    tables: dict[str, list[Any]] = {}
    for row in document["rows"]:
        tables.setdefault(row["table"], []).append(row)
    models = tables["learn"]
    assert [row["swap"] for row in models] == [None, *SWAPS]
    assert len({row["data_hash"] for row in document["rows"] if row.get("data_hash")}) == 1
    for row in models:
        assert row["params"] == pytest.approx(40_000, rel=0.01)
        assert [(run["task"], run["seed"]) for run in row["runs"]] == [
            ("text", 0), ("text", 1), ("recall", 0), ("recall", 1)
        ]  # fmt: skip
        text = [run for run in row["runs"] if run["task"] == "text"]
        assert all(run["tokens"] == 96 == run["curve"][-1]["tokens"] for run in text)
        mean = sum(run["figures"]["bits_per_byte"] for run in text) / 2
        assert row["bits_per_byte"] == pytest.approx(mean)
        assert row["bits_per_byte_low"] < mean < row["bits_per_byte_high"]
        assert all((folder / "runs" / f"{run['name']}.json").is_file() for run in row["runs"])
    assert len(tables["learn_figures"]) == 3 * (3 + 3)
    assert len(tables["learn_differences"]) == 2 * (1 + 3 + 3)
    for row in tables["learn_differences"]:
        assert (row["words"] == NO_DIFFERENCE) == (row["low"] <= 0 <= row["high"])
        assert row["mean"] == pytest.approx(sum(sample["value"] for sample in row["samples"]) / 2)


def test_tables_fit_80_columns_and_say_what_they_are_of(call: Callable[..., str]) -> None:
    out = call()
    assert max(map(len, out.splitlines())) <= 80
    flat = " ".join(out.split())
    assert "This ranks how fast models learn" in flat
    assert "llama3 GQA(window=4)" in flat
    assert "Multi-query associative recall: accuracy in %" in flat
    assert flat.count("Text: text, ") >= 3  # name and hash stand under every table of text
    assert "Dropped: llama3 rope=NoPE; norm=olmo has no" in flat or "Dropped" not in flat
    assert "*: after" not in flat


def test_kept_runs_are_not_made_again(call: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads(call("--json"))["rows"]
    monkeypatch.setattr(comparison, "perform", None)  # what would make one
    assert json.loads(call("--json"))["rows"] == first


def test_a_missing_run_alone_is_made_again(
    call: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(call("--json"))["rows"]
    (folder / "runs" / f"{first[1]['runs'][0]['name']}.json").unlink()
    made = list[Any]()
    perform = comparison.perform
    monkeypatch.setattr(comparison, "perform", lambda run, tokens: made.append(run) or perform(run, tokens))
    again = json.loads(call("--json"))["rows"]
    assert len(made) == 1
    assert again[1]["runs"][0]["figures"] == first[1]["runs"][0]["figures"]  # equal to the bit: same seed, same data


def test_another_text_shares_no_run(call: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another text\n" * 400, encoding="utf-8")
    own, other = (json.loads(call("--json", *more))["rows"] for more in ([], ["--text", str(tmp_path / "other")]))
    assert own[0]["data_hash"] != other[0]["data_hash"]
    names = [{run["name"] for run in rows[0]["runs"] if run["task"] == "text"} for rows in (own, other)]
    assert not names[0] & names[1]


def test_a_failing_run_is_a_line_and_the_others_are_kept(
    call: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    perform = comparison.perform

    def fails(run: Any, tokens: Any) -> Any:
        if run.seed == 1 and run.task == "text":
            raise RuntimeError("no luck")
        return perform(run, tokens)

    monkeypatch.setattr(comparison, "perform", fails)
    args = ["learn", "llama3", *SIZES, *BUDGET, "--text", str(folder / "text"), "--learning-rate", "5e-3", "--json"]
    assert exit_code(app, "python -m benchmarks", [*args, "--runs", str(folder / "failing")]) == 1
    out, err = capsys.readouterr()
    assert "llama3, text, learning rate 0.005, seed 1 failed: RuntimeError: no luck" in err
    assert err.splitlines()[-1] == "error: 1 of the runs failed; the same command tries them again"
    document = json.loads(out)
    validate(document)
    assert document["complete"] is False
    assert document["rows"][0]["bits_per_byte_low"] is None  # of one seed there is no interval
    assert len(document["rows"][0]["runs"]) == 3


def test_a_sweep_is_shown_and_chooses_the_rate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["learn", "llama3", *SIZES, "--tokens", "96", "--tasks", "text", "--rates", "1e-5,2e-3,1e-1"]
    args += ["--text", str(folder / "text"), "--runs", str(folder / "runs")]
    assert exit_code(app, "python -m benchmarks", [*args, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    tried = {each["learning_rate"]: each["bits_per_byte"] for each in row["sweep"]}
    assert {1e-5, 2e-3, 1e-1} <= tried.keys()
    assert row["learning_rate"] == min(tried, key=lambda rate: tried[rate])
    assert exit_code(app, "python -m benchmarks", args) == 0
    out = capsys.readouterr().out
    assert "Learning rates tried" in out
    assert max(map(len, out.splitlines())) <= 80


def test_curves_are_written(call: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("altair")
    call("--curves", str(tmp_path / "curves"))
    files = sorted((tmp_path / "curves").iterdir())
    assert len(files) == 10
    assert all(file.read_bytes()[1:4] == b"PNG" for file in files if file.suffix == ".png")
    svg = (tmp_path / "curves" / "learning-by-cache.svg").read_text(encoding="utf-8")
    assert "llama3 GQA(window=4)" in svg
    assert "KV cache" in svg


def test_committed_rates_are_of_families() -> None:
    document = json.loads(learn.COMMITTED_RATES.read_text(encoding="utf-8"))
    assert document["rates"].keys() <= set(zoo.architectures.families())
    assert all(0 < rate < 1 for rate in [document["default"], *document["rates"].values()])


def is_left(group: int) -> bool:
    """Whether a process of the group is still there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    """The real signal is sent to the whole group of processes, as a terminal does."""
    args = ["llama3", *SIZES[:-2], "-j", "2", "--tokens", "2k", "--tasks", "text", "--seeds", "8"]
    args += ["--learning-rate", "4e-3", "--text", str(folder / "text"), "--runs", str(tmp_path / "runs"), "--json"]
    command = [sys.executable, "-m", "benchmarks", "learn", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    while process.poll() is None and not list((tmp_path / "runs").glob("*.json")):
        pass
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["complete"] is False
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert "the same command continues" in err
    deadline = time.monotonic() + 20  # multiprocessing's resource tracker ends after its parent
    while is_left(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_left(process.pid)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert 0 < len(kept) < 8
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    assert len(json.loads(done.stdout)["rows"][0]["runs"]) == 8
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
