"""The verb oracle: formats, rows that add up to what other verbs print, wrong calls, and the programs on the page."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import app
from benchmarks.output.report import DOCS
from tests.benchmarks.schema import validate
from zoo.cli.runner import exit_code
from zoo.cli.tables import SCHEMA_VERSION

PAGE = (DOCS / "oracle.md").read_text(encoding="utf-8")


def run(call: str, capsys: pytest.CaptureFixture[str], expect: int = 0) -> tuple[str, str]:
    assert exit_code(app, "python -m benchmarks", call.split()) == expect
    captured = capsys.readouterr()
    return captured.out, captured.err


def rows(call: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    document = json.loads(run(f"{call} --format json", capsys)[0])
    validate(document)
    assert document["schema_version"] == SCHEMA_VERSION
    return list(document["rows"])


@pytest.mark.parametrize("call", ["qwen3-8b", "deepseek-v3 --tp 8 --ep 8 --batch 16", "gpt-oss --dtype released",
                                  "kimi-linear --cache-dtype fp8 --past 0 --new 512"])  # fmt: skip
def test_rows_add_up_to_what_flops_and_kv_print(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = call.replace(" --past 0 --new 512", "")
    context, phase = (512, "prefill") if "--new" in call else (4096, "decode")
    found = rows(f"oracle {call}", capsys)
    for name in dict.fromkeys(row["model"] for row in found):
        own = [row for row in found if row["model"] == name]
        flops = rows(f"flops {options} --context {context}", capsys)
        printed = next(row for row in flops if row["model"] == name and row["phase"] == phase)
        cache = next(row for row in rows(f"kv {options} --context {context}", capsys) if row["model"] == name)
        assert sum(row["flops"] for row in own) == printed["flops"]
        assert sum(row["cache_bytes"] for row in own) == printed["kv_bytes"] == cache["kv_bytes"]
        assert round(sum(row["weight_bytes"] for row in own)) == printed["weight_bytes_read"]
        assert round(sum(row["sent_bytes"] for row in own)) == printed["sent_bytes"]


@pytest.mark.parametrize("by", ["layer,op", "op,layer", "layer", "op", "total"])
def test_keys_and_formats(by: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = f"oracle gemma3-27b qwen3-next --by {by}"
    found = rows(call, capsys)
    assert {row["layer"] is None for row in found} == {"layer" not in by}
    assert {row["op"] is None for row in found} == {"op" not in by}
    text, _ = run(call, capsys)
    assert max(map(len, text.splitlines())) <= 80
    table = list(csv.DictReader(io.StringIO(run(f"{call} --format csv", capsys)[0])))
    assert [int(row["flops"]) for row in table] == [row["flops"] for row in found]


def test_without_names_every_best_known_size_has_rows_at_a_context_that_it_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_model = {row["model"]: row["past"] for row in rows("oracle --by total", capsys)}
    assert by_model["gpt2-small"] == 1023
    assert by_model["qwen3-8b"] == 4095


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("oracle qwen3-8b --by layr", 2, "unknown key of --by 'layr'; did you mean layer"),
        ("oracle qwen3-8b --past 1M", 2, "--past 1048576 and --new 1 are beyond qwen3-8b's context of 40960 tokens"),
        ("oracle qwen3-8b gpt2-small --past 2000", 2, "beyond gpt2-small's context of 1024"),
        ("oracle qwen3-8b --past -1", 2, "'-1' is not a number of tokens"),
        ("oracle qwen3-8b --new 0", 2, "'0' is not a number of tokens"),
        ("oracle qwen3-8b --batch -3", 2, "--batch"),
        ("oracle ./nowhere", 3, "there is no folder and no file ./nowhere"),
        ("oracle gpt2-small --tp 5", 2, "cannot be divided among 5 ranks"),
    ],
)
def test_wrong_calls_are_one_line_and_print_nothing(
    call: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(call, capsys, expect=code)
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def test_the_program_on_the_page_reads_the_document_that_the_page_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, file = re.findall(r"^    python -m benchmarks (oracle .*) --out (\S+)$", PAGE, re.MULTILINE)[0]
    run(f"{command} --out {file}", capsys)
    validate(json.loads(Path(file).read_text(encoding="utf-8")))
    program, shown = re.findall(r"```python\n(.*?)```\s+.*?```text\n(.*?)```", PAGE, re.DOTALL)[0]
    exec(compile(program, "page", "exec"), {})
    assert capsys.readouterr().out == shown


def test_the_function_on_the_page_returns_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    program, shown = re.findall(r"```python\n(.*?)```\s+.*?```text\n(.*?)```", PAGE, re.DOTALL)[1]
    exec(compile(program, "page", "exec"), {})
    assert capsys.readouterr().out == shown
