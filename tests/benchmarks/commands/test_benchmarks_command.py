"""python -m benchmarks, as its users call it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import app
from benchmarks.measure import throughput
from benchmarks.measure.runners import Results
from zoo.architectures import families
from zoo.cli.runner import exit_code

ROOT = Path(__file__).resolve().parents[3]


def call(*args: str) -> int:
    return exit_code(app, "python -m benchmarks", args)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None, int], None]:
    """Replaces the measurement: the first models get one sample each, then an exception may follow."""

    def replace(end: BaseException | None, models: int = 99) -> None:
        def measure(results: Results) -> None:
            for candidate in results.candidates[:models]:
                for work in results.config.workloads:
                    results.samples[candidate.key(work)] = [0.5]
            if end is not None:
                raise end

        monkeypatch.setattr(throughput, "run", measure)

    return replace


def test_the_main_job_prints_three_tables(measured, capsys) -> None:
    measured(None)
    assert call() == 0
    out, err = capsys.readouterr()
    assert (
        out.index("Parameters and arithmetic") < out.index("KV cache of one sequence") < out.index("Tokens per second")
    )
    assert all(f"\n{family} " in out for family in families())
    assert err == ""


def test_static_measures_nothing(measured, capsys) -> None:
    measured(AssertionError("measured"))
    assert call("--static", "olmo2") == call("--no-run", "olmo2") == 0
    assert "Tokens per second" not in capsys.readouterr().out


@pytest.mark.usefixtures("_eight_families")
@pytest.mark.parametrize(
    ("args", "costs", "measured_models"),
    [
        (["smollm3", "llama3-8b"], ["smollm3-3b", "llama3-8b"], ["smollm3", "llama3-8b"]),
        # What is measured has the block: the smallest size of Qwen3 has no experts.
        (
            ["--with", "MoE"],
            ["deepseek-v3-671b", "qwen3-30b-a3b", "gpt-oss-20b"],
            ["deepseek-v3", "qwen3-30b-a3b", "gpt-oss"],
        ),
        (["olmo2-1b", "--swap", "GQA(window=64)"], ["olmo2-1b"] * 2, ["olmo2-1b"] * 2),
    ],
)
def test_names_filters_and_swaps_choose_in_both_parts(args, costs, measured_models, measured, capsys) -> None:
    measured(None)
    assert call("--json", *args) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] is True
    found = [(row["table"], row["model"], row.get("test")) for row in document["rows"]]
    assert found == [
        *(("costs", name, None) for name in costs),
        *(("throughput", name, test) for name in measured_models for test in ("pp256", "tg32")),
    ]
    swaps = [row["swap"] for row in document["rows"]]
    assert swaps == ([None, args[-1], None, None, args[-1], args[-1]] if "--swap" in args else [None] * len(swaps))


@pytest.mark.parametrize("models", [0, 2])
def test_an_interruption_leaves_what_there_is_and_valid_json(measured, models, capsys, tmp_path) -> None:
    measured(KeyboardInterrupt(), models)
    out = tmp_path / "out.json"
    assert call("--json", "--out", str(out)) == 130
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["complete"] is False
    assert [row["table"] for row in document["rows"]].count("throughput") == 2 * models
    assert call() == 130
    assert ("Tokens per second" in capsys.readouterr().out) == bool(models)


def test_in_a_pipe_there_is_data_and_nothing_else() -> None:
    """The real command with its measurement: there is no progress bar if stderr is not a terminal."""
    command = [sys.executable, "-m", "benchmarks", "mistral3", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    *_, row = json.loads(done.stdout)["rows"]
    assert row["table"] == "throughput"
    assert row["tokens_per_s_min"] <= row["tokens_per_s"] <= row["tokens_per_s_max"]
