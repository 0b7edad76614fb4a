"""torchrun -m weights.parity --tp: the zoo's model is divided, and the report is that of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import weights
from tests.presets import split
from tests.ranks import as_launched, command
from tests.torchrun import errors, start
from tests.weights.checkpoints import read, write

SECONDS = 240
Saved = Callable[[str], Path]
# Experts of one width, with whole experts too; an indexer; states; several streams.
NAMES = ["gpt-oss-20b", "deepseek-v3-671b", "glm5.2-744b", "qwen3-next-80b-a3b", "deepseek-v4-flash-284b"]


@pytest.mark.parametrize("ep", [1, 2])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", split(NAMES, []))
def test_two_processes_report_what_one_does(name: str, streaming: bool, ep: int, saved: Saved, tmp_path: Path) -> None:
    out, args = tmp_path / "report.json", ["--streaming"] * streaming
    process = start("weights.parity", saved(name), "--tokens", 80, "--tp", 2, "--ep", ep, "--json", "--out", out, *args)
    written, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert written == ""
    told, alone = json.loads(out.read_text(encoding="utf-8")), weights.parity(saved(name), tokens=80)
    assert told["ranks"] == 2
    assert told["passed"]
    assert told["exact"]["scale"] == pytest.approx(alone.exact.scale, rel=1e-12)
    assert [part["name"] for part in told["parts"]] == [part.name for part in alone.parts]


def test_damage_is_found_by_two_processes(saved: Saved, tmp_path: Path) -> None:
    """Only the second process's heads are damaged; one process reports it, once."""
    config, tensors = read(saved("llama3-8b"))
    name = "model.layers.1.self_attn.q_proj.weight"
    changed = tensors[name].clone()
    changed[len(changed) // 2 :] *= 1.05
    copy = write(tmp_path / "copy", config, tensors | {name: changed})
    args = str(copy), "--reference", str(saved("llama3-8b")), "--tokens", "80", "--dtype", "float64", "--tp", "2"
    (code, out, err), other = as_launched(2, command, "weights.parity", *args)
    assert (code, other) == (1, (1, "", "")), err
    assert out.count("FAIL: largest difference in float64") == 1
    assert "first in layer 1's attention" in " ".join(out.split())
    assert "divided among 2 processes" in " ".join(out.split())
    assert errors(err) == []
