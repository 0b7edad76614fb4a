"""torchrun -m benchmarks throughput --tp: processes in turns with one, and the parts of a pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zoo
from tests.torchrun import errors, start
from zoo.sharding import Rank

SECONDS = 240
SHORT = "--tiny -p 16 -n 4 -r 2".split()


@pytest.mark.slow
def test_two_processes_beside_one(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    args = *SHORT, "--tp", 2, "--peer", "one-process", "--json", "--out", out
    process = start("benchmarks", "throughput", "qwen3-30b-a3b", *args)
    printed, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert printed == ""
    told = json.loads(out.read_text(encoding="utf-8"))
    rows = {(row["implementation"], row["test"]): row for row in told["rows"] if row["table"] == "throughput"}
    assert rows.keys() == {(who, test) for who in ("zoo", "one process") for test in ("pp16", "tg4")}
    spec = zoo.spec("qwen3-30b-a3b", tiny=True)
    part = spec.shard(Rank(0, 2))
    for test in ("pp16", "tg4"):
        both, one = rows["zoo", test], rows["one process", test]
        assert both["ranks"] == one["ranks"] == 2
        assert both["ratio"] == pytest.approx(both["tokens_per_s"] / one["tokens_per_s"])
        assert one["ratio"] is None
        assert one["flops"] > 1.5 * both["flops"]
        terms = {name: both[f"{name}_seconds"] for name in ("step", "read", "compute", "exchange")}
        assert min(terms.values()) > 0
        sum_of_terms = max(terms["read"], terms["compute"]) + terms["exchange"]
        assert both["of_predicted"] == pytest.approx(terms["step"] / sum_of_terms)
        assert both["params"] == spec.params() > part.params()
    assert rows["zoo", "pp16"]["flops"] == part.flops(0, 16, logits=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--tp", 2, "--mode", "eager", "--mode", "compiled"], None),
        (["--tp", 2, "--ep", 2], None),
        (["--tp", 2, "--ep", 2, "--mode", "compiled"], "error: a model whose ranks hold whole experts is not compiled"),
    ],
)
def test_modes_and_whole_experts(args: list[object], says: str | None) -> None:
    process = start("benchmarks", "throughput", "qwen3-30b-a3b", *SHORT, *args)
    out, err = process.communicate(timeout=SECONDS)
    if says is None:
        assert process.returncode == 0, err
        assert out.count("Parts of a pass") == 1
        assert max(map(len, out.splitlines())) <= 80
    else:
        assert process.returncode != 0
        (line,) = errors(err)
        assert line.startswith(says)
