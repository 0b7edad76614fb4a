"""python -m zoo.build: cards, runs, swaps, the list, errors and interrupts."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.presets import over, representatives, screen_of_families, split
from zoo import build, names, spec
from zoo.architectures import families
from zoo.catalog import resolve, sizes
from zoo.cli import self_check
from zoo.cli.runner import exit_code
from zoo.swaps.grammar import SUMMARY
from zoo.swaps.scaled import scaled

NAME = "deepseek-v3-671b"
PROG = "python -m zoo.build"
APP = runpy.run_module("zoo.build")["app"]  # an import would put the module in the place of the function zoo.build
ROOT = Path(__file__).parents[3]
FEW = ("qwen3", "deepseek-v3", "gpt-oss")  # families, where the words on the screen depend on their kind alone


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    """Returns the stdout and stderr of the command, which must exit with `code`."""
    assert exit_code(APP, PROG, args) == code
    out, err = capsys.readouterr()
    return out, err


@over(names(), representatives())
def test_every_size_has_a_card(name, capsys) -> None:
    out, err = run(capsys, name)
    assert out.startswith(f"{name}  ({sizes()[name].hub})")
    assert out.splitlines()[1].startswith(f"released {sizes()[name].released}")
    assert f"{sizes()[name].params:,} parameters, as the formula says" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert err.startswith("not run: ")


@pytest.mark.parametrize("name", split(names(), (NAME, "kimi-k2-1t")))  # the second with a note
def test_a_card_as_json(capsys, name) -> None:
    report = json.loads(run(capsys, name, "--json")[0])
    assert (report["released"], report["note"]) == (sizes()[name].released, sizes()[name].note)
    assert report["card"]["params"] == report["built"]["parameters"] == sizes()[name].params
    assert report["built"]["device"] == "meta"
    assert report["built"]["seconds"] > 0
    assert report["decoded"] is None


@pytest.mark.parametrize("family", screen_of_families())
def test_tiny_runs(capsys, family) -> None:
    out, err = run(capsys, family, "--tiny", "--seed", "3")
    assert err == ""
    words = " ".join(out.split())
    assert f"{resolve(family)} at toy widths" in words
    assert words.count("as the formula says") == 2
    assert "seed 3" in words
    report = json.loads(run(capsys, sizes()[resolve(family)].hub, "--tiny", "--seed", "3", "--json")[0])
    decoded = report["decoded"]
    assert decoded["largest_difference"] <= decoded["bound"]
    assert f"{decoded['largest_difference']:.0e}" in out
    assert decoded["cache_bytes"] == decoded["cache_formula"]
    assert report["card"]["params"] == spec(family, tiny=True).params()
    assert report["failures"] == []
    assert {"schema_version", "machine"} <= report.keys()


@pytest.mark.parametrize("family", split(families(), FEW))
def test_a_scaled_form_runs(capsys, family) -> None:
    out, err = run(capsys, family, "--params", "100k")
    assert err == ""
    words = " ".join(out.split())
    assert words.startswith(f"{resolve(family)}, scaled: ")
    assert " of 100,000 " in words
    assert words.count("as the formula says") == 2
    assert max(map(len, out.splitlines())) <= 80
    report = json.loads(run(capsys, family, "--params", "100k", "--device", "meta", "--json")[0])
    assert report["card"]["params"] == report["built"]["parameters"] == scaled(spec(family), 100_000).spec.params()
    assert report["budget"].startswith(f"{report['card']['params']:,} parameters, ")


def test_a_swapped_scaled_form_has_the_same_number_of_parameters(capsys) -> None:
    args = ["olmo2", "--params", "0.1M", "--device", "meta", "--swap", "attn=MQA", "--json"]
    report = json.loads(run(capsys, *args)[0])
    assert abs(report["original"]["params"] - 100_000) <= 1000
    assert abs(report["card"]["params"] - 100_000) <= 1000
    assert report["original"]["kinds"] != report["card"]["kinds"]


@pytest.mark.parametrize("family", split(families(), FEW))
def test_a_swap_is_built_and_run_beside_the_original(capsys, family) -> None:
    swaps = ["attn=MQA(head_dim=16)", "norm=post", "ffn=GLU(hidden=40)"]
    args = [family, "--tiny", *(word for swap in swaps for word in ("--swap", swap))]
    report = json.loads(run(capsys, *args, "--json")[0])
    assert report["swaps"] == swaps
    assert report["original"]["params"] == spec(family, tiny=True).params()
    assert report["card"]["params"] == report["built"]["parameters"]
    assert {kind["norms"].partition(",")[0] for kind in report["card"]["kinds"]} == {"post"}
    out, _ = run(capsys, *args)
    assert "original" in out
    assert "swapped" in out
    assert "dropped" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_dropped_feature_is_named(capsys) -> None:
    sunk = next(name for name in names() if any(getattr(layer.mixer, "sinks", False) for layer in spec(name).layers))
    swap = "attn=MLA(q_rank=none, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8)"
    report = json.loads(run(capsys, sunk, "--swap", swap, "--json")[0])
    assert {"sinks", "biases"} <= set(report["dropped"])


def test_the_cache_is_counted_in_the_dtype(capsys) -> None:
    by_dtype = {}
    for args in ((), ("--dtype", "float32"), ("--dtype", "bfloat16")):
        report = json.loads(run(capsys, NAME, *args, "--json")[0])
        by_dtype[args[-1:]] = report["card"]["kv_bytes_32k"]
    assert by_dtype[()] == by_dtype["bfloat16",] == by_dtype["float32",] / 2


def test_a_list_of_everything(capsys) -> None:
    out, err = run(capsys, "--list")
    assert err == ""
    assert all(name in out for name in (*names(), *families(), "post", "GroupedSigmoidTopK"))
    report = json.loads(run(capsys, "--list", "--json")[0])
    assert set(report["sizes"]) == set(families())
    assert {"role", "block", "option", "architectures"} == report["blocks"][0].keys()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "error: which model? For example: python -m zoo.build qwen3 --tiny; --list names them all"),
        (["no-such-model"], 2, "error: unknown model 'no-such-model'"),
        ([NAME + "x"], 2, f"did you mean {NAME}"),
        ([NAME, "--device", "tpu"], 2, "error: unknown device 'tpu'"),
        ([NAME, "--dtype", "int4"], 2, "'--dtype'"),
        ([NAME, "--seed", "-1"], 2, "'--seed'"),
        ([NAME, "--params", "10"], 2, "error: 10 parameters are too few for 6 layers"),
        ([NAME, "--params", "many"], 2, "'many' is not a count above 0; write 200k, 1M or 4096"),
        ([NAME, "--params", "1M", "--tiny"], 2, "leave one of them out"),
        ([NAME, "--params", "1M", "--swap", "attn=MQA(head_dim=7)"], 2, "(at the widths of --params)"),
        ([NAME, "--tiny", "--swap", "attn=MQA(head_dim=7)"], 2, "must be even"),
        ([NAME, "--tiny", "--swap", "attn=MQA(head_dim=7)"], 2, "(at the toy widths of --tiny)"),
    ],
)
def test_a_wrong_call_is_a_one_line_error(capsys, args, code, says) -> None:
    out, err = run(capsys, *args, code=code)
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_an_invalid_swap_is_a_line_and_the_grammar(capsys) -> None:
    out, err = run(capsys, NAME, "--swap", "GQQ(window=3)", code=2)
    assert out == ""
    assert err == f"error: swap 'GQQ(window=3)': unknown block 'GQQ'; did you mean GQA?\n{SUMMARY}\n"


def test_full_sizes_at_toy_widths_are_warned_of(capsys) -> None:
    _, err = run(capsys, "qwen3", "--tiny", "--swap", "GQA(window=4k, kv_heads=4)", "--swap", "ffn=GLU(hidden=3072)")
    sizes = "warning: window=4096, hidden=3072 beside the toy width of 64"
    assert err == f"{sizes}; dim/4 or context/8 fits any model\n"
    for swap in ("GQA(window=context/64, kv_heads=4)", "attn=MLA", "ffn=MoE from deepseek-v3", "attn=GQA(window=24)"):
        assert run(capsys, "qwen3", "--tiny", "--swap", swap)[1] == ""


def test_a_size_that_does_not_fit_is_refused_before_it_is_built(capsys, monkeypatch) -> None:
    monkeypatch.setattr(self_check, "free_memory", lambda device: 2**20)
    monkeypatch.setattr(self_check, "check_build", pytest.fail)
    out, err = run(capsys, NAME, "--device", "cpu", code=3)
    assert out == ""
    assert "1 MiB is free" in err
    assert "--tiny" in err


def test_a_difference_beyond_the_bound_fails_and_is_shown(capsys, monkeypatch) -> None:
    monkeypatch.setattr(self_check, "BOUND", -1.0)
    out, err = run(capsys, NAME, "--tiny", code=1)
    assert "the bound is" in " ".join(out.split())
    assert err.startswith("error: decoding over the cache differs from the forward by ")
    report = json.loads(run(capsys, NAME, "--tiny", "--json", code=1)[0])
    assert len(report["failures"]) == 1


def command(*args: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "zoo.build", *args]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def test_the_command_in_a_process_of_its_own() -> None:
    """There is no warning, since nothing has imported the module, and the function is not hidden."""
    out, err = command(NAME, "--tiny").communicate(timeout=60)
    assert out.startswith(NAME)
    assert err == ""
    assert callable(build)


@pytest.fixture
def _default_interrupt_handler() -> Iterator[None]:
    """A shell's background processes ignore interrupts, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_interrupt_handler")
def test_an_interrupt_is_one_line() -> None:
    """The command is interrupted while it builds a large size, after it has printed that."""
    smallest = min(names(), key=lambda name: sizes()[name].params)
    with command(smallest, "--device", "cpu") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("building ")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "error: interrupted\n"
    assert process.returncode == 130
