"""torchrun -m zoo.train: two processes write what one writes, end together, and report an error once."""

from __future__ import annotations

import json
import os
import runpy
import signal
import time
from pathlib import Path

import pytest
import torch

import weights
from tests.torchrun import errors, start
from zoo.cli.runner import exit_code
from zoo.core import kernels
from zoo.training.checkpoints import checkpoints, read_log, read_tensors

SMALL = "--tiny --context 16 --batch 2 --tokens 640 --eval-every 8".split()  # 20 steps
CLOSE = 1e-5
SECONDS = 240


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    for i in range(8):
        (folder / f"{i}.txt").write_text("".join(f"line {i} of {j}\n" for j in range(12)))
    return str(folder)


def in_one_process(*args: str | Path) -> None:
    with kernels.using("plain"):
        app = runpy.run_module("zoo.train")["app"]
        assert exit_code(app, "python -m zoo.train", list(map(str, args))) == 0


def wait_for_checkpoints(out: Path, count: int) -> None:
    deadline = time.monotonic() + SECONDS
    while len(checkpoints(out / "checkpoints")) < count and time.monotonic() < deadline:
        time.sleep(0.1)


def assert_same_log(one: Path, other: Path) -> None:
    expected, found = (read_log(out / "log.jsonl") for out in (one, other))
    assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(21))
    for row, expected_row in zip(found, expected, strict=True):
        assert row.keys() == expected_row.keys()
        for name in ("loss", "balance_loss", "bits_per_byte", "accuracy", "learning_rate", "tokens"):
            if name in row:
                assert row[name] == pytest.approx(expected_row[name], abs=CLOSE), (row["step"], name)
        assert row.get("sample") == expected_row.get("sample")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama3", "gpt-oss", "deepseek-v3"])
def test_two_processes_write_the_run_of_one(family, text, tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    in_one_process(family, *SMALL, "--accumulate", "2", "--text", text, "--out", one)
    process = start("zoo.train", family, *SMALL, "--text", text, "--out", two)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out.count("bits per byte") == 1
    assert err.count("step 20 of 20") == 1
    assert_same_log(one, two)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    for path in two.rglob("*.*"):
        assert path.suffix in {".json", ".jsonl", ".safetensors", ".bin"} or path.name.startswith(".")
    held, _ = read_tensors(checkpoints(two / "checkpoints")[-1])
    saved = weights.load(two / "model")
    assert all(torch.equal(value, held[name]) for name, value in saved.state_dict().items())
    trained = weights.load(one / "model")
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(saved(tokens), trained(tokens), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_ctrl_c_ends_all_and_one_process_goes_on(text, tmp_path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    long = "--tiny --context 16 --batch 2 --tokens 3200 --eval-every 10".split()  # 100 steps
    process = start("zoo.train", "qwen3", *long, "--text", text, "--out", cut)
    wait_for_checkpoints(cut, 2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert out == ""
    assert errors(err) == ["error: interrupted"]
    assert err.count("the last checkpoint is") == 1
    assert len(read_log(cut / "log.jsonl")) < 100
    in_one_process("--out", cut, "--resume")
    in_one_process("qwen3", *long, "--text", text, "--out", whole)
    expected, found = (read_log(out / "log.jsonl") for out in (whole, cut))
    assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(101))
    for row, expected_row in zip(found[:21], expected[:21], strict=True):
        assert row.get("loss") == pytest.approx(expected_row.get("loss"), abs=CLOSE)


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one(text, tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        in_one_process("qwen3", *SMALL, "--text", text, "--out", out)
    # As if it had been killed after step 16.
    (last,) = (path for path in checkpoints(two / "checkpoints") if path.name.endswith("20"))
    last.rename(tmp_path / "last")
    (two / "model").rename(tmp_path / "model")
    process = start("zoo.train", "--out", two, "--resume")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert "resumed after step 16 of 20" in err
    assert "note: threads, processes or kernels differ from before" in err
    assert_same_log(one, two)
    state = json.loads((two / "checkpoints" / "step-00000020" / "state.json").read_text())
    assert state["machine"]["processes"] == 2
    assert (two / "model" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--tiny", "--batch", "3"], "error: a batch of 3 sequences cannot be divided among 2 processes"),
        (["--tims", "2"], "error: no such option: --tims"),
        (["--compile"], "error: --compile is for one process"),
        (["--device", "mps"], "error: several processes work on --device cpu or cuda, not on mps"),
    ],
)
def test_an_error_is_reported_once(text, tmp_path, args, says) -> None:
    process = start("zoo.train", "qwen3", *args, "--text", text, "--out", tmp_path / "run")
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert out == ""
    (line,) = errors(err)
    assert line.startswith(says)
    assert "exitcode  : 2" in err


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other(text, tmp_path) -> None:
    out = tmp_path / "run"
    long = "--tiny --context 16 --batch 2 --tokens 1M --eval-every 5".split()
    process = start("zoo.train", "qwen3", *long, "--text", text, "--out", out)
    wait_for_checkpoints(out, 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        process.kill()
        pytest.skip("the system does not list child processes")
    os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert [line for line in errors(err) if "another process of this run has ended" not in line] == []
    assert len(errors(err)) <= 1  # torchrun may be faster than the process that is left
    assert checkpoints(out / "checkpoints")
