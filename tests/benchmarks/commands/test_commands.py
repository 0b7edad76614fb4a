"""Every verb: its tables fit 80 columns, all its formats parse, and its JSON follows the schema."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
from benchmarks.__main__ import app
from benchmarks.commands import verbs
from benchmarks.commands.gallery import read_measured
from benchmarks.measure import blocks, variants
from tests.benchmarks.fakes import time_alike
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
    "oracle": ["oracle", "--batch", "2"],
    "serve": ["serve", "--context", "1k", "--batch", "1,64"],
    "params": ["params"],
    "table": ["table"],
}


@pytest.fixture(params=CALLS, ids=str)
def call(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs one verb on all families, with more arguments. Returns its output."""

    def run(*more: str) -> str:
        assert exit_code(app, "python -m benchmarks", [*CALLS[request.param], *more]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def test_a_swapped_model_is_a_row_like_any_other(call: Callable[..., str]) -> None:
    """Models must be named: without a name there is nothing to swap."""
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
    """The other verbs have their own tests: compare needs two models, blocks and throughput a fake clock, and load
    needs files."""
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
    args = ["--with", "moe", "--with=QK-norm", "--since", "2025-01"]
    assert models(call("--json", *args)) == ["qwen3-30b-a3b"]
    assert models(call("--json", *args, "--all-sizes")) == ["qwen3-30b-a3b", "qwen3-235b-a22b"]


def test_named_models_are_shown_whatever_they_are(call: Callable[..., str]) -> None:
    assert models(call("--json", "smollm3", "llama3-8b")) == ["smollm3-3b", "llama3-8b"]
    assert models(call("--json", "gpt-oss")) == ["gpt-oss-20b", "gpt-oss-120b"]


def test_every_format_holds_the_same_rows(call: Callable[..., str], tmp_path: Path) -> None:
    """CSV has their scalars, Markdown has equal lines, and a file has the output that the terminal would show."""
    shown = call("--json", *SOME)
    document = json.loads(shown)
    validate(document)
    assert call("--json", *SOME, "--out", str(tmp_path / "out.json")) == ""
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == shown
    _, *lines = map(json.loads, call("--format", "jsonl", *SOME).splitlines())
    assert lines == document["rows"] != []
    written = list(csv.DictReader(io.StringIO(call("--format", "csv", *SOME))))
    for found, row in zip(written, document["rows"], strict=True):
        row = {"model": row["model"]} | row["values"] if "values" in row else row  # the chosen columns of `table` alone
        scalars = {key: str(value) for key, value in row.items() if value is not None and not isinstance(value, list)}
        assert {key: value for key, value in found.items() if value} == scalars
    tables = [block for block in call("--format", "md", *SOME).split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") for line in block.splitlines()}) == 1 for block in tables)


MLA = "--variants mla --tiny"
MEASURED = [
    f"{MLA} --context 1k --context 5 --repeat 5",
    f"{MLA} --context 40 --dtype bf16 --swap MLA(q_rank=none)",
    "--variants sparse --tiny --context 40 --prefill --repeat 1",
    "--dim 256 --tokens 8 --context 600 --repeat 1",
]


@pytest.mark.parametrize("args", MEASURED)
def test_measured_blocks_fit_and_follow_the_schema(
    args: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    time_alike(monkeypatch, variants, blocks)
    assert exit_code(app, "python -m benchmarks", ["blocks", *args.split()]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"Medians of .* tak(e|ing) turns.*\nkernels\b.*: ", out.replace("\n  ", " "), re.DOTALL)
    assert exit_code(app, "python -m benchmarks", ["blocks", *args.split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document)
    assert document["complete"] is True
    assert {"isa", "kernels", "kernels_set"} <= document["machine"].keys()
    assert all((row.get("decode_s") or row["attention_s"]) == 1.0 for row in document["rows"])


@pytest.mark.parametrize(("version", "age"), [(SCHEMA_VERSION - 1, "an older"), (SCHEMA_VERSION + 1, "another")])
def test_a_measured_file_of_another_schema_version_is_refused_by_name(version: int, age: str, tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(json.dumps({"schema_version": version, "machine": {}, "rows": []}), encoding="utf-8")
    message = rf"written by {age} version \(schema_version {version}\); this version reads {SCHEMA_VERSION}"
    with pytest.raises(MalformedError, match=message):
        read_measured(path)
