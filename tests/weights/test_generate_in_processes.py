"""python -m weights.generate --tp: two processes write what one writes, and report an error once."""

from __future__ import annotations

import os
import runpy
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks import as_launched, command
from tests.torchrun import errors, start, start_nodes
from weights.generate import app
from zoo.cli.runner import exit_code

SECONDS = 120
Saved = Callable[[str], Path]


@pytest.mark.parametrize("ep", [1, 2])
def test_two_processes_write_what_one_writes(ep: int, saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = "--temperature", "2", "--seed", "3", "--max-new-tokens", "8"
    args = [str(saved("gpt-oss-20b")), "--tokens", "5,6,7", *sampled]
    assert exit_code(app, "python -m weights.generate", args) == 0
    divided = "--tp", "2", "--ep", str(ep)
    (code, out, err), other = as_launched(2, command, "weights.generate", *args, *divided)
    assert (code, other[:2]) == (0, (0, "")), err
    assert out == capsys.readouterr().out
    assert (err + other[2]).count("parameters, float32 on 2 x cpu") == (err + other[2]).count("tokens/s)") / 2 == 1


@pytest.mark.slow
def test_torchrun_starts_the_processes(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    args = saved("gpt-oss-20b"), "--tokens", "5,6,7", "--max-new-tokens", 8
    assert exit_code(app, "python -m weights.generate", list(map(str, args))) == 0
    process = start("weights.generate", *args, "--tp", 2)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out == capsys.readouterr().out


@pytest.mark.slow
def test_two_nodes_write_what_one_process_writes(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the first node's process writes."""
    args = saved("qwen3-0.6b"), "--tokens", "5,6,7", "--max-new-tokens", 8
    assert exit_code(app, "python -m weights.generate", list(map(str, args))) == 0
    nodes = start_nodes(2, "weights.generate", *args, "--tp", 2)
    outs = [node.communicate(timeout=SECONDS) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outs
    assert [out for out, _ in outs] == [capsys.readouterr().out, ""]


@pytest.mark.slow
def test_an_error_of_two_nodes_is_reported_once(saved: Saved) -> None:
    """One node reports it, and both end."""
    nodes = start_nodes(2, "weights.generate", saved("qwen3-0.6b"), "--tokens", "5,6")
    outs = [node.communicate(timeout=SECONDS) for node in nodes]
    assert all(node.returncode != 0 for node in nodes)
    (line,) = [line for _, err in outs for line in errors(err)]
    assert line.startswith("error: --tp 1 with 2 processes: give --tp 2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("qwen3-0.6b", [], "error: --tp 1 with 2 processes: give --tp 2"),
        ("qwen3-0.6b", ["--tp", 3], "error: --tp 3 with 2 processes: torchrun --nproc-per-node 3 -m weights.generate"),
        ("qwen3-0.6b", ["--tp", 2, "--ep", 3], "error: --ep 3 with --tp 2"),
        ("qwen3-0.6b", ["--tp", 2, "--tokens", "9999"], "error: token ids must be below 512, got 9999"),
    ],
)
def test_an_error_is_reported_once(name: str, args: list[object], says: str, saved: Saved) -> None:
    given = args if "--tokens" in args else ["--tokens", "5,6", *args]
    process = start("weights.generate", saved(name), *given)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert out == ""
    (line,) = errors(err)
    assert line.startswith(says)


@pytest.mark.parametrize("module", ["weights.generate", "weights.parity"])
def test_one_process_says_how_to_start_several(module: str, saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(saved("qwen3-0.6b")), "--tokens", "5", "--tp", "2"]
    started = app if module == "weights.generate" else runpy.run_module(module)["app"]
    assert exit_code(started, f"python -m {module}", args) == 2
    starts = f"--tp 2 with 1 process: torchrun --nproc-per-node 2 -m {module} ... --tp 2 starts 2"
    assert starts in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["killed", "interrupted"])
def test_a_process_that_ends_ends_the_other(ends: str, saved: Saved) -> None:
    process = start("weights.generate", saved("qwen3-0.6b"), "--tokens", "5,6,7", "--max-new-tokens", 10**6, "--tp", 2)
    assert process.stdout
    assert process.stdout.read(1)  # it writes
    if ends == "interrupted":
        os.killpg(process.pid, signal.SIGINT)
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.is_file():
            process.kill()
            pytest.skip("the system does not list child processes")
        os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert time.monotonic() - began < SECONDS / 2
    assert len(errors(err)) <= 1  # torchrun may be faster than the process that is left
    assert "Traceback" not in err.partition("torch.distributed.elastic")[0] or "zoo/" not in err
