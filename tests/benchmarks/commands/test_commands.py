"""What holds for every verb: its tables fit 80 columns, all its formats parse, and its JSON follows the schema."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
from benchmarks.__main__ import app
from benchmarks.commands import verbs
from benchmarks.commands.gallery import read_measured
from tests.benchmarks.schema import validate
from tests.presets import representatives
from zoo.architectures import families
from zoo.catalog import best_known, sizes
from zoo.cli.runner import exit_code
from zoo.cli.tables import SCHEMA_VERSION
from zoo.errors import MalformedError

SOME = representatives()  # for what depends on the kinds of rows, not on how many there are
CALLS = {
    "all": ["all"],
    "costs": ["costs", "--static"],
    "flops": ["flops", "--context", "1k", "--context", "32k", "--batch", "16"],
    "kv": ["kv", "--context", "4k", "--context", "128k", "--batch", "4"],
    "params": ["params"],
    "table": ["table"],
}


@pytest.fixture(params=CALLS, ids=str)
def call(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run one verb on all families, with more arguments -> what it prints."""

    def run(*more: str) -> str:
        assert exit_code(app, "python -m benchmarks", [*CALLS[request.param], *more]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def test_a_swapped_model_is_a_row_like_any_other(call: Callable[..., str]) -> None:
    """Named models first: without a name there is nothing to swap."""
    mla = "attn=MLA(q_rank=none, kv_rank=256, nope_dim=64, rope_dim=32, v_dim=64)"
    args = ("gpt-oss-20b", "mistral-small-3.1-24b", "--swap", mla)
    rows = json.loads(call("--json", *args))["rows"]
    validate({**json.loads(call("--json", *SOME)), "rows": rows})
    assert {(row["model"], row["dropped"]) for row in rows if row["swap"]} == {
        ("gpt-oss-20b", "window 128, biases, sinks"),
        ("mistral-small-3.1-24b", None),
    }
    out = call(*args)
    assert "gpt-oss-20b* has no window 128, biases, sinks" in " ".join(out.split())
    assert f"*: after --swap {mla}." in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_every_verb_is_tested_here() -> None:
    """compare needs two models, so that what follows is called for it below; load needs files: test_load.py; gallery
    writes them; learn trains: test_learn.py. What is measured needs a fake clock: test_throughput_command.py, of blocks
    test_measured_commands.py."""
    assert verbs().keys() - CALLS.keys() == {"compare", "load", "throughput", "blocks", "gallery", "learn"}


@pytest.mark.parametrize(
    "names", [pytest.param(SOME, id="representatives"), pytest.param(zoo.names(), id="all", marks=pytest.mark.slow)]
)
def test_compare_fits_and_follows_the_schema_for_any_two(capsys: pytest.CaptureFixture[str], names: list[str]) -> None:
    mla = "attn=MLA(q_rank=none, kv_rank=256, nope_dim=64, rope_dim=32, v_dim=64)"
    first, *others = names
    for args in [*([first, other] for other in others), ["gpt-oss", "--swap", mla]]:
        assert exit_code(app, "python -m benchmarks", ["compare", *args]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80, args
        assert exit_code(app, "python -m benchmarks", ["compare", *args, "--json"]) == 0
        validate(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("more", [(), ("--all-sizes",)])
def test_tables_fit_80_columns(call: Callable[..., str], more: tuple[str, ...]) -> None:
    out = call(*more)
    assert out.count("\n\n") > 1
    assert max(map(len, out.splitlines())) <= 80


def test_markdown_tables_have_equal_rows(call: Callable[..., str]) -> None:
    for block in call("--format", "md", *SOME).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_json_follows_the_schema(call: Callable[..., str]) -> None:
    document = json.loads(call("--json", *SOME))
    validate(document)
    assert document["rows"]


def models(text: str) -> list[str]:
    """The models of a document's rows, each once."""
    return list(dict.fromkeys(row["model"] for row in json.loads(text)["rows"]))


def test_every_family_is_shown_by_its_best_known_size_in_order_of_release(call: Callable[..., str]) -> None:
    shown = models(call("--json"))
    assert sorted(shown) == sorted(map(best_known, families()))
    assert shown == sorted(shown, key=lambda name: sizes()[name].released)
    assert models(call("--json", "--all-sizes")) == zoo.names()


@pytest.mark.usefixtures("_eight_families")
def test_rows_are_chosen_by_month_and_by_block(call: Callable[..., str]) -> None:
    assert models(call("--json", "--since", "2025-06")) == ["smollm3-3b", "gemma3-270m", "gpt-oss-20b"]
    assert models(call("--json", "--with", "mla")) == ["deepseek-v3-671b"]
    assert models(call("--json", "--with=MoE", "--with", "QK-norm")) == ["qwen3-30b-a3b"]
    args = ["--with", "moe", "--since", "2025-01", "--all-sizes"]
    assert models(call("--json", *args)) == ["qwen3-30b-a3b", "qwen3-235b-a22b", "gpt-oss-20b", "gpt-oss-120b"]
    out = call("--with", "moe")
    assert all(f"\n{name} " in out for name in ("deepseek-v3-671b", "qwen3-30b-a3b", "gpt-oss-20b"))
    assert "smollm3" not in out


def test_named_models_are_shown_whatever_they_are(call: Callable[..., str]) -> None:
    assert models(call("--json", "smollm3", "llama3-8b")) == ["smollm3-3b", "llama3-8b"]
    assert models(call("--json", "gpt-oss")) == ["gpt-oss-20b", "gpt-oss-120b"]


def test_jsonl_is_the_same_document_line_by_line(call: Callable[..., str]) -> None:
    head, *rows = map(json.loads, call("--format", "jsonl", *SOME).splitlines())
    assert rows == json.loads(call("--json", *SOME))["rows"]
    validate({**head, "rows": rows})


def test_csv_has_the_scalars_of_every_row(call: Callable[..., str]) -> None:
    rows = list(csv.DictReader(io.StringIO(call("--format", "csv", *SOME))))
    document = json.loads(call("--json", *SOME))["rows"]
    assert len(rows) == len(document)
    for written, row in zip(rows, document, strict=True):
        chosen = {"model": row["model"]} | row.get("values", {})  # `table` has the chosen columns alone
        expected = (
            chosen if "values" in row else {key: value for key, value in row.items() if not isinstance(value, list)}
        )
        assert {key: value for key, value in written.items() if value} == {
            key: str(value) for key, value in expected.items() if value is not None
        }


def test_out_writes_what_the_terminal_would_show(call: Callable[..., str], tmp_path: Path) -> None:
    shown = call("--json", "qwen3-8b")
    assert call("--json", "qwen3-8b", "--out", str(tmp_path / "out.json")) == ""
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == shown


@pytest.mark.parametrize(("version", "age"), [(SCHEMA_VERSION - 1, "an older"), (SCHEMA_VERSION + 1, "another")])
def test_a_measured_file_of_another_schema_version_is_refused_by_name(version: int, age: str, tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(json.dumps({"schema_version": version, "machine": {}, "rows": []}), encoding="utf-8")
    message = rf"written by {age} version \(schema_version {version}\); this version reads {SCHEMA_VERSION}"
    with pytest.raises(MalformedError, match=message):
        read_measured(path)
