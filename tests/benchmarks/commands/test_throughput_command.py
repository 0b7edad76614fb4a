"""python -m benchmarks throughput and compare --measure, under a fake clock, and several real processes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import weights
import zoo
from benchmarks.__main__ import app
from benchmarks.measure import ceilings, environment, runners, throughput
from benchmarks.measure.timing import measure
from tests.benchmarks.fakes import Ticking
from tests.benchmarks.schema import validate
from tests.torchrun import errors, start
from zoo.cli.runner import exit_code
from zoo.core import kernels
from zoo.sharding import Rank

ROOT = Path(__file__).resolve().parents[3]
SHORT = ("--tiny", "-p", "20", "-n", "2")
SHORTER, SECONDS = "--tiny -p 16 -n 4 -r 2".split(), 240  # for processes that torchrun starts
TRAIN = ("--tiny", "--train", "--context", "16", "--batch", "2")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "clock", lambda device: Ticking())
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", 64 * 4 * ceilings.MATRIX_WIDTH)


def call(*args: str, verb: str = "throughput") -> int:
    return exit_code(app, "python -m benchmarks", [verb, *args])


def written(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document)
    return document


def test_json_has_rows_ceilings_and_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("qwen3", "gpt-oss", *SHORT, "-d", "0", "-d", "30", "--batch", "2", "--json") == 0
    document = written(capsys)
    assert document["complete"] is True
    assert {"isa", "blas", "commit", "last_cache_bytes"} <= document["machine"].keys()
    rows = [row for row in document["rows"] if row["table"] == "throughput"]
    tests = ("pp20", "tg2", "pp20 @ d30", "tg2 @ d30")
    assert [(row["model"], row["test"]) for row in rows] == [
        (name, test) for test in tests for name in ("qwen3", "gpt-oss")
    ]
    for row in rows:
        assert row["tokens_per_s"] == 2 * row["tokens"]  # each run takes a second
        assert row["overhead"] == 1.0  # as does one of a model that does nothing
        assert (row["experts_hit"] is None) == (row["model"] == "qwen3")
        assert (row["gemms_tokens_per_s"] is None) == (row["phase"] == "decode")
    kinds = [row["kind"] for row in document["rows"] if row["table"] == "ceilings"]
    assert set(kinds) == {"bandwidth", "matmul"}


@pytest.mark.parametrize("interrupted", [False, True])
def test_kernels_that_are_used_are_reported(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are reported in JSON and below the table, also after Ctrl-C."""

    def ending(tasks: Any, samples: Any, **rest: Any) -> None:
        measure(tasks, samples, **rest)
        if interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(throughput, "measure", ending)
    monkeypatch.setenv("ZOO_KERNELS", "choices.json")
    setting = {"linear prefill": "onednn", "linear decode": "plain"}
    with kernels.using(setting):
        assert call("qwen3", *SHORT, "--json") == (130 if interrupted else 0)
    machine = written(capsys)["machine"]
    assert machine["kernels"] == {"linear prefill, float32": "onednn", "linear decode, float32": "plain"}
    assert machine["kernels_set"] == "choices.json"
    with kernels.using(setting):
        assert call("qwen3", *SHORT) == (130 if interrupted else 0)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"^kernels \(ZOO_KERNELS=choices.json\): linear decode float32: plain, linear", out, re.MULTILINE)


def test_tables_on_stdout_and_nothing_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("qwen3", *SHORT, "--swap", "GQA(window=8)") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("qwen3* ") == 4  # two tests in two tables
    assert "*: after --swap GQA(window=8)." in out


@pytest.mark.parametrize(("runs", "counted"), [(0, False), (1, False), (3, True)])
def test_an_interruption_leaves_what_there_is_and_valid_json(
    runs: int, counted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interruption comes after `runs` runs of the warm-up or of the first measured round."""

    def interrupted(tasks: Any, samples: Any, *, warmups: Any, tick: Any, **rest: Any) -> None:
        if not runs:
            raise KeyboardInterrupt

        def ticking() -> None:
            if len(samples if counted else warmups) == runs:
                raise KeyboardInterrupt
            tick()

        measure(tasks, samples, warmups=warmups, tick=ticking, **rest)

    monkeypatch.setattr(throughput, "measure", interrupted)
    assert call("qwen3", "llama3", *SHORT, "--json") == 130
    document = written(capsys)
    rows = [row for row in document["rows"] if row["table"] == "throughput"]
    assert document["complete"] is False
    assert {tuple(row["seconds"]) for row in rows if "warming_up" not in row["marks"]} == (
        {(1.0,)} if counted else set()
    )
    assert [row["warmups"] for row in rows] == ([4, 4, 4, 0] if counted else [0] * runs)
    assert call("qwen3", "llama3", *SHORT) == 130
    out, err = capsys.readouterr()
    assert err == "error: interrupted\n"
    assert ("repetition" in out) == bool(runs)
    assert ("those of the warm-up" in out) == counted


def test_a_router_of_another_dtype_is_among_the_gemms(capsys: pytest.CaptureFixture[str]) -> None:
    """DeepSeek's router multiplies in float32, even in a bfloat16 model."""
    assert call("deepseek-v3", *SHORT, "-n", "0", "--dtype", "bfloat16", "--json") == 0
    row = next(row for row in written(capsys)["rows"] if row["table"] == "throughput")
    assert row["gemms_tokens_per_s"] == 20.0


def test_a_baseline_has_the_same_weights_and_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("gemma3", "gpt-oss", *SHORT, "-d", "30", "--peer", "transformers", "--json") == 0
    rows = [row for row in written(capsys)["rows"] if row["table"] == "throughput"]
    assert {(row["implementation"], row["mode"]) for row in rows if row["model"] == "gpt-oss"} == {
        ("zoo", "eager"),
        ("transformers", "eager"),
    }
    assert {row["mode"] for row in rows if row["model"] == "gemma3"} == {"eager", "sdpa"}
    assert {row["ratio"] for row in rows} == {None, 1.0}


def test_a_baseline_that_computes_something_else_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.measure import baseline

    build = baseline.build_baseline

    def broken(*args: Any) -> Any:
        reference = build(*args)
        with torch.no_grad():  # not in place: the tensor is the zoo's too
            reference.model.norm.weight = torch.nn.Parameter(reference.model.norm.weight * 1.001)
        return reference

    monkeypatch.setattr(baseline, "build_baseline", broken)
    assert call("llama3", *SHORT, "--peer", "transformers") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "llama3: in transformers, the logits differ by" in err
    assert "nothing was measured" in err


def test_a_model_that_transformers_does_not_have_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("llama3", *SHORT, "--swap", "norm=sandwich", "--peer", "transformers") == 2
    assert "no published config describes this model" in capsys.readouterr().err


def test_a_baseline_that_does_not_compile_is_reported_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        def run(**___: Any) -> Any:
            raise RuntimeError("no such luck")

        return run

    monkeypatch.setattr(torch, "compile", refuse)
    assert call("llama3", *SHORT, "--peer", "transformers", "--peer-compiled", "--json") == 0
    out, err = capsys.readouterr()
    assert err == "transformers does not run llama3 compiled: RuntimeError: no such luck\n"
    assert {row.get("mode") for row in json.loads(out)["rows"]} == {"eager", "sdpa", None}


def test_training_steps_beside_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("qwen3", "gpt-oss", *TRAIN, "--peer", "transformers", "--json") == 0
    rows = [row for row in written(capsys)["rows"] if row["table"] == "throughput"]
    assert [(row["model"], row["implementation"], row["test"]) for row in rows] == [
        (name, by, "train 2x16") for name in ("qwen3", "gpt-oss") for by in ("zoo", "transformers")
    ]
    for row in rows:
        assert row["tokens_per_s"] == 2 * 16  # each step takes a second
        assert row["peak_bytes"] is None or row["peak_bytes"] > 4 * row["params"]
        assert row["ratio"] == (1.0 if row["implementation"] == "zoo" else None)
    assert {row["mfu"] for row in rows} != {None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.parametrize("family", ["llama3", "gemma3", "gpt-oss", "deepseek-v3"])
def test_compiled_training_steps(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their loss and gradients equal those of the eager mode; otherwise nothing would be measured."""
    assert call(family, *TRAIN, "--mode", "eager", "--mode", "compiled", "--json") == 0
    rows = [row for row in written(capsys)["rows"] if row["table"] == "throughput"]
    assert [row["mode"] for row in rows] == ["eager", "compiled"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's, about what it was given of transformers
def test_both_modes_of_both_implementations(capsys: pytest.CaptureFixture[str]) -> None:
    """Compilation takes a minute or two."""
    options = ("--mode", "eager", "--mode", "compiled", "--peer", "transformers", "--peer-compiled", "--json")
    assert call("llama3", *SHORT, *options) == 0
    rows = [row for row in written(capsys)["rows"] if row["table"] == "throughput"]
    assert [(row["implementation"], row["mode"]) for row in rows if row["phase"] == "decode"] == [
        ("zoo", "eager"),
        ("zoo", "compiled"),
        ("transformers", "sdpa"),
        ("transformers", "compiled"),
    ]


def test_compiled_models_share_their_weights() -> None:
    model = zoo.build("deepseek-v3", tiny=True)
    twin = runners.compiled_twin(model)
    held = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in twin.parameters()} == held
    assert twin.spec == model.spec
    assert not twin.training


def test_weights_of_a_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights.save(zoo.build("qwen3", tiny=True), tmp_path / "mine")
    assert call(str(tmp_path / "mine"), "-p", "20", "-n", "2", "--json") == 0
    row = written(capsys)["rows"][0]
    assert (row["model"], row["weights"], row["tiny"], row["hub"]) == ("mine", "mine", False, None)


@pytest.mark.parametrize("models", [("qwen3-0.6b", "llama3.2-1b"), ("qwen3-0.6b", "qwen3-0.6b")])
def test_compare_measures_each_model_once(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*models, "--measure", "--tiny", "--json", verb="compare") == 0
    rows = [row for row in written(capsys)["rows"] if row["table"] == "throughput"]
    assert [(row["model"], row["test"], row["dtype"]) for row in rows] == [
        (name, test, "bfloat16") for test in ("pp512", "tg128") for name in dict.fromkeys(models)
    ]


def test_commands_on_the_pages_have_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pages = [file.read_text(encoding="utf-8").replace("\\\n", "") for file in files]
    commands = [
        command
        for page in pages
        for command in re.findall(
            r"^(?:    |\$ )(?:python -m benchmarks|zoo bench) ((?:throughput|compare) .*?)(?: +#.*)?$", page, re.M
        )
    ]
    assert len(commands) > 8
    for command in commands:
        assert exit_code(app, "python -m benchmarks", [*shlex.split(command), "--help"]) == 0, command
        assert "Usage:" in capsys.readouterr().out
    assert call("--no-such-option", "--help") == 2  # which would have been told


@pytest.mark.gpu
def test_on_a_gpu_time_and_memory_are_the_devices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "clock", environment.clock)
    assert call("gpt-oss", *SHORT, "-d", "30", "--device", "cuda", "--peer", "transformers", "--json") == 0
    document = written(capsys)
    assert document["machine"]["gpu"]
    assert {row["device"] for row in document["rows"]} == {"cuda"}
    rows = [row for row in document["rows"] if row["table"] == "throughput"]
    assert all(row["dtype"] == "bfloat16" for row in rows)
    assert all(row["peak_bytes"] > 2 * row["params"] for row in rows)


@pytest.mark.parametrize(
    ("args", "free", "told"),
    [
        (["deepseek-v3-671b"], 1, "what would fit: --tiny"),
        # Weights that would fit for inference, without the room for gradients and moments.
        (["qwen3-0.6b", "--train", "--batch", "1", "--peer", "transformers"], 8, "(596M parameters) in float32 needs"),
    ],
)
def test_where_it_does_not_fit_nothing_is_built(
    args: list[str], free: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "build", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr("benchmarks.measure.environment.free_memory", lambda device: free * 2**30)
    assert call(*args) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err


@pytest.mark.slow
def test_two_processes_beside_one(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    args = *SHORTER, "--tp", 2, "--peer", "one-process", "--json", "--out", out
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
    process = start("benchmarks", "throughput", "qwen3-30b-a3b", *SHORTER, *args)
    out, err = process.communicate(timeout=SECONDS)
    if says is None:
        assert process.returncode == 0, err
        assert out.count("Parts of a pass") == 1
        assert max(map(len, out.splitlines())) <= 80
    else:
        assert process.returncode != 0
        (line,) = errors(err)
        assert line.startswith(says)
