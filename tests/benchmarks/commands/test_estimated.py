"""params, kv, flops and compare of a source that no family reads: marked, with bounds, in every format."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import app
from tests.benchmarks.schema import validate
from tests.reference import published
from zoo.cli.runner import exit_code

CALLS = ("params SOURCE", "kv SOURCE", "flops SOURCE", "compare SOURCE llama3.1-8b", "compare qwen3-8b SOURCE")
CALLS += ("compare SOURCE --swap attn=GQA(kv_heads=1)", "kv llama3 --against SOURCE", "flops SOURCE --tp 2 --batch 3")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with Gemma 2's config under another model_type, and a field that nobody knows."""
    config = published()["gemma2-9b"]["config"] | {"model_type": "new_kind", "tower_size": 7}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path / "new"


def run(call: str, capsys: pytest.CaptureFixture[str], expect: int = 0) -> tuple[str, str]:
    assert exit_code(app, "python -m benchmarks", call.split()) == expect
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("call", CALLS)
def test_estimates_are_marked_fit_80_columns_and_follow_the_schema(
    call: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = call.replace("SOURCE", str(source))
    text, _ = run(call, capsys)
    assert "~new" in text
    assert max(map(len, text.splitlines())) <= 80
    document = json.loads(run(f"{call} --json", capsys)[0])
    validate(document)
    if "--against" not in call:
        assert any(row.get("estimated") for row in document["rows"] if row["table"] not in ("crossing", "figures"))
    assert list(csv.reader(io.StringIO(run(f"{call} --format csv", capsys)[0])))


def test_bounds_and_unknown_fields_are_printed(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = run(f"kv {source}", capsys)
    row = next(line.split() for line in text.splitlines() if line.startswith("KV cache at 32k"))
    assert row[4:] == ["1.31", "GiB", "1.31", "GiB", "10.5", "GiB"]  # all layers with windows, or none
    assert re.search(r"^not +tower_size +7$", text, re.MULTILINE)
    compared, _ = run(f"compare {source} {source.parent / 'new' / 'config.json'}", capsys)
    assert "Fields that are not understood" in compared
    assert "tower_size" in compared


@pytest.mark.parametrize("call", ["table SOURCE", "throughput SOURCE --tiny", "SOURCE --static", "blocks SOURCE"])
def test_other_verbs_say_which_do_estimate(call: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if call.startswith("blocks"):
        call += " --variants mla"
    out, err = run(call.replace("SOURCE", str(source)), capsys, expect=4)
    assert out == ""
    assert "`python -m benchmarks params|kv|flops|compare SOURCE` estimates its costs" in err


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("kv SOURCE --batch -1", 2, "--batch"),
        ("kv SOURCE --context -5", 2, "--context"),
        ("params SOURCE/absent", 3, "there is no folder"),
        ("flops SOURCE --tp 3", 2, "cannot be divided among 3 ranks"),
    ],
)
def test_wrong_calls_name_what_is_wrong(
    call: str, code: int, said: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(call.replace("SOURCE", str(source)), capsys, expect=code)
    assert (out, said in err) == ("", True), err
