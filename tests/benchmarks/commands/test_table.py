"""A table for a paper: chosen columns in every format, whose values are the spec's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import weights
import zoo
from benchmarks.__main__ import app
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import one
from benchmarks.analytic.roofline import device, forward_pass
from benchmarks.commands.table import QUANTITIES
from tests.benchmarks.schema import validate
from zoo.cli.runner import exit_code

EVERY = [f"{name}@32k" if each.at_context else name for name, each in QUANTITIES.items()]
Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*args: str, code: int = 0) -> str:
        assert exit_code(app, "python -m benchmarks", ["table", *args]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


def test_every_column_is_the_specs_own_figure(call: Call) -> None:
    document = json.loads(call("gemma3-27b", "--columns", ",".join(EVERY), "--batch", "3", "--json"))
    validate(document)
    values, spec = document["rows"][0]["values"], zoo.spec("gemma3-27b")
    decode, prefill = (forward_pass(spec, phase, 32768, InferenceConfig(batch=3)) for phase in ("decode", "prefill"))
    assert values == {
        "released": "2025-03",
        "layers": len(spec.layers),
        "dim": spec.dim,
        "vocab": spec.vocab,
        "context": spec.context,
        "params": spec.params(),
        "active": spec.active_params(),
        "weights": 2 * spec.params(),
        "kv-fixed": spec.kv_growth()[0],
        "kv/token": spec.kv_growth()[1],
        "kv@32k": spec.kv_bytes(32768, 3),
        "flops@32k": spec.flops(32767, 1),
        "prefill-flops@32k": spec.flops(0, 32768, logits=1),
        "tokens/s@32k": decode.tokens_per_s(device("h100")),
        "prefill-tokens/s@32k": prefill.tokens_per_s(device("h100")),
    }


def test_conditions_of_the_model_change_its_values(call: Call) -> None:
    def value(column: str, *args: str) -> float:
        document = json.loads(call("deepseek-v3-671b", "--columns", column, *args, "--json"))
        found: float = document["rows"][0]["values"][column]
        return found

    spec = zoo.spec("deepseek-v3-671b")
    assert value("kv@4k", "--cache-dtype", "fp8") == spec.kv_bytes(4096, dtype=torch.float8_e4m3fn)
    released = one("deepseek-v3-671b").released_form
    assert value("weights", "--dtype", "released") == released.model_bytes(spec)
    assert value("params", "--tp", "8", "--ep", "8") < spec.params() / 7
    assert value("tokens/s@4k", "--device-spec", "a100") < value("tokens/s@4k")


def test_csv_has_the_chosen_columns_alone_and_exact_values(call: Call, tmp_path: Path) -> None:
    args = ("qwen3-8b", "--swap", "GQA(window=4096)", "--columns", "active, KV@32k", "--format", "csv")
    rows = list(csv.reader(io.StringIO(call(*args))))
    assert rows[0] == ["model", "active", "kv@32k"]
    assert rows[1] == ["qwen3-8b", "8190735360", str(zoo.spec("qwen3-8b").kv_bytes(32768))]
    assert rows[2][0] == "qwen3-8b*"
    assert call(*args, "--out", str(tmp_path / "table.csv")) == ""
    assert list(csv.reader(io.StringIO((tmp_path / "table.csv").read_text()))) == rows


def test_latex_and_quiet_tables(call: Call) -> None:
    args = ("qwen3-8b", "--columns", "params,kv@128k", "--format")
    lines = call(*args, "latex").splitlines()
    assert lines[0] == "% Models"
    assert r"\begin{tabular}{lrr}" in lines
    assert any(line.split() == ["qwen3-8b", "&", "8.191", "&", "18.00", r"\\"] for line in lines)
    assert lines[-1].startswith("% one sequence; weights in bfloat16, cache in bfloat16; NVIDIA H100 SXM")
    assert [line for line in call(*args, "latex", "--quiet").splitlines() if line.startswith("%")] == []
    table = call(*args, "table", "--quiet").splitlines()
    assert [line.split() for line in table[-1:]] == [["qwen3-8b", "8.191", "18.00"]]
    assert len(table) == 4  # two lines of header and a rule


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("kv", "the column kv needs a context: kv@32k"),
        ("params@32k", "the column params has no context: write params"),
        ("kv/tokens", "unknown column 'kv/tokens'; did you mean kv/token"),
        ("kv@much", "'much' is not a number of tokens"),
        (" , ", "no column is named; known: released, layers"),
    ],
)
def test_a_wrong_column(columns: str, message: str, call: Call) -> None:
    assert message in call("qwen3-8b", "--columns", columns, code=2)


def test_small_values_have_three_digits(call: Call, tmp_path: Path) -> None:
    spec = zoo.spec("qwen3", tiny=True)
    weights.save(zoo.build(spec), tmp_path / "tiny")
    cells = (
        call(str(tmp_path / "tiny"), "--columns", "params,kv/token,kv@1k,flops@1k", "--quiet").splitlines()[-1].split()
    )
    exact = spec.params() / 1e9, spec.kv_growth()[1] / 2**10, spec.kv_bytes("1k") / 2**30, spec.flops(1023, 1) / 1e9
    assert [float(cell) for cell in cells[1:]] == pytest.approx(exact, rel=5e-3)


def test_models_of_one_name_stay_apart(call: Call, tmp_path: Path) -> None:
    for name, hidden in (("one", 96), ("two", 48)):
        spec = zoo.swap(zoo.spec("qwen3", tiny=True), zoo.GLU, zoo.GLU(hidden))
        weights.save(zoo.build(spec), tmp_path / name / "model", layout="zoo")
    words = [str(tmp_path / name / "model") for name in ("one", "two")]
    rows = list(csv.DictReader(io.StringIO(call(*words, "--columns", "params", "--format", "csv"))))
    assert [row["model"] for row in rows] == ["model", words[1]]
    assert rows[0]["params"] != rows[1]["params"]
