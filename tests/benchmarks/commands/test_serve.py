"""The verb serve: its tables, its rows, and wrong calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.__main__ import app
from benchmarks.commands.serve import parse_batches
from tests.benchmarks.schema import validate
from zoo.cli.runner import exit_code
from zoo.errors import UsageError


def run(call: str, capsys: pytest.CaptureFixture[str], expect: int = 0) -> tuple[str, str]:
    assert exit_code(app, "python -m benchmarks", call.split()) == expect
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_each_cache_dtype_batch_and_context_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    call = "serve qwen3-8b gpt-oss --context 4k --context 32k --batch 1,8"
    document: dict[str, Any] = json.loads(run(f"{call} --json", capsys)[0])
    validate(document)
    rows = document["rows"]
    assert len(rows) == 3 * 2 * 2 * 2
    assert {row["cache_dtype"] for row in rows} == {"bfloat16", "float8_e4m3fn"}
    assert {row["weights_dtype"] for row in rows} == {"bfloat16", "mxfp4"}
    text, _ = run(call, capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert "Serving at 32k, cache in float8_e4m3fn" in text


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("serve qwen3-8b --batch 0", "--batch: '0' is not a count above 0"),
        ("serve qwen3-8b --batch 8,-1", "--batch: '-1' is not a count above 0"),
        ("serve qwen3-8b --batch ,", "--batch ',' names no number of sequences"),
        ("serve qwen3-8b gpt2-small --context 4k", "--context 4096 is beyond gpt2-small's context of 1024 tokens"),
        ("serve qwen3-8b --device h10", "unknown device 'h10'; did you mean h100"),
        ("serve gpt2-small --context 1k --tp 5", "cannot be divided among 5 ranks"),
        ("serve qwen3-8b --cache-dtype int3", "unknown dtype 'int3'"),
    ],
)
def test_wrong_calls_are_one_line_and_print_nothing(call: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(call, capsys, expect=2)
    assert (out, said in err, len(err.splitlines())) == ("", True, 1), err


def test_batches_are_counted_once_in_the_order_given() -> None:
    assert parse_batches("8, 1,8,2k") == [8, 1, 2000]
    with pytest.raises(UsageError):
        parse_batches("")
