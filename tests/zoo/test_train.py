"""python -m zoo.train: from text to a saved model, refused, interrupted and resumed."""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import weights
from tests.exact import assert_equal, in_float64
from zoo.cli.runner import exit_code
from zoo.core import kernels
from zoo.training import checkpoints as stored
from zoo.training.checkpoints import checkpoints, read_log, read_state
from zoo.training.loop import Trainer
from zoo.training.options import Options
from zoo.training.text.tokenizers import read_tokenizer

PROG = "python -m zoo.train"
APP = runpy.run_module("zoo.train")["app"]
ROOT = Path(__file__).parents[2]
SMALL = "--tiny --context 16 --batch 2 --tokens 200 --eval-every 3".split()  # 7 steps


@pytest.fixture(autouse=True)
def _kernels():
    with kernels.using("plain"):
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    for i in range(8):
        (folder / f"{i}.txt").write_text("".join(f"line {i} of {j}\n" for j in range(12)))
    return str(folder)


def run(capsys: pytest.CaptureFixture[str], *args: str | Path, code: int = 0) -> tuple[str, str]:
    """Its stdout and stderr; it must exit with `code`."""
    found = exit_code(APP, PROG, list(map(str, args)))
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def figures(out: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{key: row[key] for key in row if "second" not in key} for row in read_log(out / "log.jsonl")]


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    with kernels.using("plain"):
        assert exit_code(APP, PROG, ["qwen3", *SMALL, "--text", text, "--out", str(out)]) == 0
    return out


def test_a_run_logs_each_step_and_keeps_checkpoints(finished) -> None:
    rows = figures(finished)
    assert [row["step"] for row in rows] == list(range(8))
    assert [row["step"] for row in rows if "bits_per_byte" in row] == [0, 3, 6, 7]
    assert all(row["tokens"] == 32 * row["step"] for row in rows)
    assert rows[7]["bits_per_byte"] < rows[0]["bits_per_byte"]
    assert "sample" not in rows[0]  # random weights write noise
    assert "line" in rows[7]["sample"]  # the prompt is held-out text
    kept = [read_state(path)["step"] for path in checkpoints(finished / "checkpoints")]
    assert kept[-2:] == [6, 7]
    assert sorted(path.name for path in finished.iterdir() if not path.name.startswith((".", "tokens-"))) == [
        "checkpoints",
        "log.jsonl",
        "model",
        "tokenizer.json",
    ]


def test_the_saved_model_is_the_trained_one_here_and_in_the_reference(finished) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer = weights.load(finished / "model"), read_tokenizer(finished / "model")
    held, _ = stored.read_tensors(checkpoints(finished / "checkpoints")[-1])
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())
    tokens = torch.tensor([tokenizer.encode("line 3 of").tolist()])
    with torch.no_grad(), in_float64():
        reference = transformers.AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float64)
        expected = reference(tokens).logits
    with torch.no_grad():
        assert_equal(weights.load(finished / "model", dtype=torch.float64)(tokens), expected)


def test_a_run_that_is_cut_off_goes_on_to_the_bit(capsys, monkeypatch, text, finished, tmp_path) -> None:
    out, train_step = tmp_path / "cut", Trainer.train_step

    def interrupted(self, batch):
        if self.step == 4:
            raise KeyboardInterrupt
        return train_step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    _, err = run(capsys, "qwen3", *SMALL, "--text", text, "--out", out, code=130)
    assert "the last checkpoint is" in err
    assert f"python -m zoo.train --out {out} --resume" in err
    assert [row["step"] for row in figures(out)] == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    printed, err = run(capsys, "--out", out, "--resume")
    assert "resumed after step 3 of 7" in err
    assert figures(out) == figures(finished)
    assert "bits per byte" in printed
    printed, err = run(capsys, "--out", out, "--resume")  # a finished run has nothing left to do
    assert figures(out) == figures(finished)


@pytest.mark.parametrize(
    ("told", "recorded", "used", "note"),
    [
        (None, {}, {}, False),  # plain ones, without being told
        (
            {"linear decode": "onednn"},
            {"linear decode, float32": "onednn"},
            {"linear decode, float32": "onednn"},
            False,
        ),
        # As older runs recorded them, by classes of sizes: plain ones take their place.
        ("plain", {"linear, float32, rows 1, weights 1048576, threads 2": "onednn"}, {}, True),
    ],
    ids=["untold", "told", "older"],
)
def test_a_resumed_run_has_the_kernels_of_its_checkpoint(
    capsys, monkeypatch, text, tmp_path, told, recorded, used, note
) -> None:
    out, train_step = tmp_path / "cut", Trainer.train_step

    def interrupted(self, batch):
        if self.step == 4:
            raise KeyboardInterrupt
        return train_step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with kernels.using(told):
        run(capsys, "qwen3", *SMALL, "--text", text, "--out", out, code=130)
        assert kernels.active().is_set
    monkeypatch.undo()
    file = checkpoints(out / "checkpoints")[-1] / stored.STATE
    state = json.loads(file.read_text(encoding="utf-8"))
    if not note:
        assert state["kernels"] == recorded
    file.write_text(json.dumps(state | {"kernels": recorded}), encoding="utf-8")
    with kernels.using("plain"):
        _, err = run(capsys, "--out", out, "--resume")
        assert kernels.choices() == used
    assert ("note: threads, processes or kernels differ from before" in err) is note
    assert read_state(checkpoints(out / "checkpoints")[-1])["kernels"] == used


def test_a_full_disk_keeps_the_last_checkpoint(capsys, monkeypatch, text, finished, tmp_path) -> None:
    out, save = tmp_path / "full", stored.safetensors.torch.save_file

    def full(tensors, path) -> None:
        if "step-00000006" in str(path):
            raise stored.SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path)

    monkeypatch.setattr(stored.safetensors.torch, "save_file", full)
    _, err = run(capsys, "qwen3", *SMALL, "--text", text, "--out", out, code=3)
    last = err.splitlines()[-1]
    assert "No space left on device" in last
    assert last.endswith("the last checkpoint is " + str(out / "checkpoints" / "step-00000003"))
    monkeypatch.undo()
    run(capsys, "--out", out, "--resume")
    assert figures(out) == figures(finished)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("qwen3 --tokens 0", 2, "--tokens: '0' is not a count above 0"),
        ("qwen3 --minutes 0", 2, "--minutes must be above 0, got 0"),
        ("qwen3 --minutes nan", 2, "--minutes must be above 0, got nan"),
        ("qwen3 --tokens 1k --minutes 1", 2, "give one budget"),
        ("qwen3 --params 1M --tiny", 2, "leave --params out"),
        ("qwen3 --params 0", 2, "--params: '0' is not a count above 0"),
        ("qwen3 --params 2k --tokens 1k", 2, "too few for 6 layers"),
        ("--tokens 1k", 2, "which model?"),
        ("nonesuch --tokens 1k", 2, "unknown model 'nonesuch'"),
        ("qwen3 --tiny --tokens 1k --text /nonexistent", 3, "/nonexistent cannot be read"),
        ("--from /nonexistent --tokens 1k", 3, "/nonexistent"),
        ("--from /nonexistent --vocab 300", 2, "leave --vocab out"),
        ("--resume", 2, "there is no folder"),
        ("mine.py:model --from run3", 2, "--from already names the model: leave MODEL or --from out"),
        ("qwen3 --tokens 1k --lr -1", 2, "--lr must be above 0, got -1"),
        ("qwen3 --tokens 1k --clip -1", 2, "--clip must be at least 0 (0: no limit), got -1"),
        ("qwen3 --tokens 1k --clip nan", 2, "--clip must be at least 0 (0: no limit), got nan"),
        ("qwen3 --tiny --tokens 1k --vocab 9999", 2, "vocab"),
        ("qwen3 --tiny --tokens 1k --swap Nosuch(k=1)", 2, "unknown"),
        ("qwen3 --tiny --tokens 1k --batch 2 --accumulate 3", 2, "cannot be computed in 3 micro-batches"),
    ],
)
def test_what_cannot_be_trained_is_one_line(capsys, tmp_path, text, args, code, says) -> None:
    words = args.split()
    words += [] if "--text" in words else ["--text", text]
    _, err = run(capsys, *words, "--out", tmp_path / "run", code=code)
    assert says in next(line for line in err.splitlines() if line.startswith("error: "))
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_folder_without_a_checkpoint_is_not_resumed_and_not_changed(capsys, finished, tmp_path) -> None:
    folder = shutil.copytree(checkpoints(finished / "checkpoints")[-1], tmp_path / "step-00000007")
    before = sorted(folder.iterdir())
    assert "holds no checkpoint to resume" in run(capsys, "--out", folder, "--resume", code=2)[1]
    assert sorted(folder.iterdir()) == before


def test_bad_rates_are_refused_before_the_text_is_read(capsys, tmp_path) -> None:
    for option in ("--lr", "--clip"):
        args = ["qwen3", *SMALL, option, "-1", "--text", "/nonexistent", "--out", tmp_path / "run"]
        assert f"error: {option} must be" in run(capsys, *args, code=2)[1]


def test_a_budget_of_less_than_a_step_is_noted(capsys, text, tmp_path) -> None:
    args = "qwen3 --tiny --context 16 --batch 2 --clip 0 --text".split()
    out, err = run(capsys, *args, text, "--tokens", "20", "--out", tmp_path / "run")
    assert ": 1 step of 32 tokens, about" in err
    assert "note: the budget of 20 tokens is less than one step, which is trained" in err
    assert "1 step, 32 tokens in" in out
    assert read_state(checkpoints(tmp_path / "run" / "checkpoints")[-1])["config"]["clip"] is None
    run(capsys, "--out", tmp_path / "run", "--resume", "--clip", "0")
    _, err = run(capsys, *args, text, "--tokens", "32", "--out", tmp_path / "exact")
    assert "less than one step" not in err


def test_full_sizes_at_toy_widths_are_warned_of(capsys, text, tmp_path) -> None:
    swaps = ["--swap", "GQA(window=4k)", "--text", text, "--out", tmp_path / "run"]
    _, err = run(capsys, "qwen3", *SMALL, *swaps)
    assert "warning: window=4096 beside the toy width of 64; dim/4 or context/8 fits any model" in err
    assert "warning" not in run(capsys, "--out", tmp_path / "run", "--resume")[1]


def test_a_small_model_of_a_file_has_the_high_learning_rate(capsys, text, tmp_path) -> None:
    (tmp_path / "little.py").write_text('import zoo\n\nmodel = zoo.spec("qwen3", tiny=True)\n')
    args = "--params published --context 16 --batch 2 --tokens 32 --text".split()
    out, err = run(capsys, f"{tmp_path}/little.py:model", *args, text, "--out", tmp_path / "run")
    assert "learning rate: 0.004 at its peak" in err.splitlines()
    assert "0.004 at its peak" in out


def test_the_default_learning_rate_follows_from_the_size() -> None:
    published = Options(name="x", params="published")
    assert published.with_rate(19_999_999).lr == 4e-3
    assert published.with_rate(20_000_000).lr == 3e-4
    assert Options(name="x").with_rate(20_000_000).lr == 4e-3
    assert Options(source="x").with_rate(1_000).lr == 1e-4
    assert Options(name="x", lr=0.5).with_rate(1_000).lr == 0.5


BLOCK = """from dataclasses import dataclass

from zoo.blocks.feed_forward import GLU


@dataclass(frozen=True, kw_only=True)
class Bilin2(GLU):
    pass
"""


def test_a_run_resumed_without_its_module_names_the_option(text, tmp_path) -> None:
    (tmp_path / "bilin2.py").write_text(BLOCK)

    def train(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zoo.train", *args, "--out", "run"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    begun = train("qwen3", *SMALL, "--text", text, "--import", "bilin2", "--swap", "ffn=Bilin2(hidden=32)")
    assert begun.returncode == 0, begun.stderr
    error = train("--resume")
    assert error.returncode == 3
    assert error.stderr.endswith("no block 'Bilin2' is defined; import bilin2 first, or --import it\n")
    assert error.stderr.count("\n") == 1
    assert train("--resume", "--import", "bilin2").returncode == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["qwen3", *SMALL], "holds a run, and nothing is overwritten"),
        (["--resume", "--lr", "0.1"], "--lr is 0.004 in the run that is resumed, and 0.1 was given"),
        (["--resume", "gemma3"], "MODEL is qwen3 in the run that is resumed, and gemma3 was given"),
        (["--resume", "--tokens", "300"], "--tokens is 200 in the run"),
        (["--resume", "--text", str(ROOT / "zoo" / "core")], "the text is not that of the run"),
    ],
)
def test_a_folder_with_a_run_takes_no_other(capsys, finished, args, says) -> None:
    before = figures(finished)
    assert says in run(capsys, *args, "--out", finished, code=2)[1]
    assert figures(finished) == before


def test_a_checkpoint_of_another_spec_is_refused_by_its_difference(capsys, finished, tmp_path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.json"
    state = json.loads(path.read_text())
    state["spec"]["dim"] += 1
    path.write_text(json.dumps(state))
    _, err = run(capsys, "--out", tmp_path / "run", "--resume", code=2)
    assert "holds another run: spec.dim is 65 in the run, 64 here" in err


def test_a_finished_run_is_trained_on(capsys, finished, text, tmp_path) -> None:
    out = tmp_path / "on"
    args = "--context 16 --batch 2 --tokens 64 --text".split()
    run(capsys, "qwen3", "--from", finished, *args, text, "--out", out)
    assert figures(out)[0]["bits_per_byte"] == pytest.approx(figures(finished)[-1]["bits_per_byte"], rel=1e-6)
    assert (out / "model" / "tokenizer.json").is_file()
    _, err = run(capsys, "gemma3", "--from", finished, *args, text, "--out", tmp_path / "x", code=2)
    assert "is not a gemma3" in err


SWAP = "attn=GatedDeltaNet(key_heads=2, value_heads=4, key_dim=8, value_dim=8, conv=4) except every 2"


def test_a_swapped_model_is_saved_loaded_and_trained_on(capsys, text, tmp_path) -> None:
    out, on = tmp_path / "run", tmp_path / "on"
    _, err = run(capsys, "qwen3", *SMALL, "--swap", SWAP, "--text", text, "--out", out)
    note = "note: saved in the zoo's own layout: no published config describes this model"
    assert note in err.splitlines()
    assert len(note) <= 80
    assert "own layout" not in run(capsys, "--out", out, "--resume")[1]  # the model is saved
    held, _ = stored.read_tensors(checkpoints(out / "checkpoints")[-1])
    model = weights.load(out)
    assert {layer.attn.block.role: type(layer.attn.block).__name__ for layer in model.spec.layers[:1]} == {
        "attn": "GatedDeltaNet"
    }
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())
    args = "--context 16 --batch 2 --tokens 64 --text".split()
    run(capsys, "--from", out, *args, text, "--out", on)
    assert figures(on)[0]["bits_per_byte"] == pytest.approx(figures(out)[-1]["bits_per_byte"], rel=1e-6)
    # A run without a saved model (killed, or of an older version) is read from its last checkpoint.
    shutil.rmtree(out / "model")
    earlier = weights.load(out)
    assert earlier.spec == model.spec
    assert all(torch.equal(value, held[name]) for name, value in earlier.state_dict().items())
    run(capsys, "--from", out, *args, text, "--out", tmp_path / "again")
    assert figures(tmp_path / "again") == figures(on)
    _, err = run(capsys, "qwen3", "--from", out, *args, text, "--out", tmp_path / "x", code=2)
    assert "is not a qwen3" in err


def test_a_model_of_a_file_is_trained_and_resumed_from_any_folder(capsys, monkeypatch, text, tmp_path) -> None:
    (tmp_path / "mine.py").write_text('import zoo\n\nsmall = zoo.spec("qwen3", tiny=True)\n')
    monkeypatch.chdir(tmp_path)
    run(capsys, "mine.py:small", *SMALL, "--text", text, "--out", tmp_path / "run")
    monkeypatch.chdir(tmp_path.parent)
    run(capsys, "--out", tmp_path / "run", "--resume")
    weights.save(weights.load(tmp_path / "run"), tmp_path / "own", layout="zoo")
    run(capsys, tmp_path / "own" / "spec.json", *SMALL, "--text", text, "--out", tmp_path / "third")


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_bit(text, tmp_path) -> None:
    command = [sys.executable, "-m", "zoo.train", "qwen3", "--tiny", "--context", "64", "--batch", "4", "--text", text]
    command += ["--tokens", "60k", "--eval-every", "5"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, "--out", whole], check=True, cwd=ROOT, capture_output=True)
    chance, log = random.Random(0), cut / "log.jsonl"
    for target in (0, *sorted(chance.sample(range(1, 200), 5))):
        process = subprocess.Popen([*command, "--out", cut, "--resume"], cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and target and not (log.exists() and len(read_log(log)) >= target):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1) if target else 3)  # in a step, an evaluation, a checkpoint; or in the start
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--out", cut, "--resume"], check=True, cwd=ROOT, capture_output=True)
    assert figures(cut) == figures(whole)
    held = [stored.read_tensors(checkpoints(out / "checkpoints")[-1]) for out in (whole, cut)]
    for one, other in zip(*held, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
