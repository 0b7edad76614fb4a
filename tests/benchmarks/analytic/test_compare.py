"""Two models side by side: all differences are shown, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest

import zoo
from benchmarks.__main__ import app
from benchmarks.analytic import compare, roofline
from benchmarks.analytic.compare import PAIRS
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, one, swapped
from benchmarks.output.report import DOCS
from tests.presets import representatives
from zoo.cli.runner import exit_code
from zoo.swaps.grammar import apply_swap

H100 = roofline.device("h100")


def differences(first: NamedSpec, second: NamedSpec) -> dict[str, tuple[str | None, str | None]]:
    return {row["field"]: (row["value"], row["other"]) for row in compare.difference_rows(first, second)}


def figures(first: NamedSpec, second: NamedSpec, context: int = 4096) -> dict[str, dict[str, Any]]:
    rows = compare.figure_rows(first, second, context, InferenceConfig(), H100)
    return {row["figure"]: row for row in rows}


def test_a_model_does_not_differ_from_itself() -> None:
    for name in zoo.names():
        assert differences(one(name), one(name)) == {}
        assert figures(one(name), one(name)) == {}


def test_any_two_specs_that_differ_have_a_row_of_two_different_values() -> None:
    neighbours = pairwise(zoo.names())  # sizes of one family differ in little
    for a, b in (map(one, pair) for pair in {*combinations(representatives(), 2), *neighbours}):
        rows = differences(a, b)
        assert bool(rows) == (a.spec != b.spec), (a.name, b.name)
        assert all(value != other for value, other in rows.values()), (a.name, b.name)
        assert {field: values[::-1] for field, values in rows.items()} == differences(b, a)


SWAPS = {
    "GQA(window=64)": {"attn.window": ("none", "64")},
    "GQA(kv_heads=8)": {"attn": ("MHA", "GQA"), "attn.kv_heads": ("16", "8")},
    "GLU(hidden=4096)": {"ffn.hidden": ("8,192", "4,096")},
    "act=GeGLU": {"ffn.act": ("SwiGLU", "GeGLU")},
    "norm=pre": {"norm placement": ("olmo: x + norm(f(x))", "pre: x + f(norm(x))")},
    "rope=NoPE": {"attn.rope": ("RoPE 500k", "NoPE")},
}


@pytest.mark.parametrize("text", SWAPS)
def test_a_swap_shows_as_the_fields_it_changes(text: str) -> None:
    model = one("olmo2-1b")
    assert differences(model, swapped(model, [text])) == SWAPS[text]


def test_specs_with_equal_descriptions_are_shown_with_all_their_fields() -> None:
    model = one("gpt-oss-20b")
    other = swapped(model, ["YarnScaling(truncate=true)"])
    assert model.spec.layers[0].mixer.describe() == other.spec.layers[0].mixer.describe()
    ((field, (before, after)),) = differences(model, other).items()
    assert field == "attn.rope"
    assert "truncate=False" in str(before)
    assert "truncate=True" in str(after)


def test_layers_of_several_kinds_are_counted() -> None:
    rows = differences(one("llama3.1-8b"), one("gemma3-27b"))
    assert rows["attn.window"] == ("none", "1,024 in 52, none in 10")
    assert rows["attn.rope"][1] == "RoPE 10k in 52, RoPE 1M (linear x8) in 10"
    assert rows["layers"] == ("32", "62")
    assert "attn.heads" not in rows


def test_an_equal_share_of_layers_is_no_difference() -> None:
    spec = zoo.spec("gpt-oss-20b")
    shallow = NamedSpec("shallow", replace(spec, layers=spec.layers[:4]))
    assert differences(one("gpt-oss-20b"), shallow) == {"layers": ("24", "4")}
    uneven = NamedSpec("uneven", replace(spec, layers=spec.layers[:3]))
    assert differences(one("gpt-oss-20b"), uneven)["attn.window"] == ("128 in 12, none in 12", "128 in 2, none in 1")


def test_an_option_that_is_off_is_no_difference_to_a_block_without_it() -> None:
    rows = differences(one("deepseek-v3"), one("qwen3-235b-a22b"))
    assert rows["attn"] == ("MLA", "GQA")
    assert rows["attn.kv_rank"] == ("512", None)
    assert rows["attn.kv_heads"] == (None, "4")
    assert not {"attn.window", "attn.bias", "attn.sinks", "ffn.bias"} & rows.keys()


def test_figures_are_the_specs_own() -> None:
    a, b = zoo.spec("llama3.1-8b"), zoo.spec("gemma3-27b")
    found = figures(one("llama3.1-8b"), one("gemma3-27b"), context=1000)
    expected = {
        "parameters": (a.params(), b.params()),
        "KV cache, fixed": (0, 436_207_616),
        "KV cache per token": (131_072, 81_920),
        "KV cache at 128k": (a.kv_bytes(131_072), b.kv_bytes(131_072)),
        "decode, FLOPs per token": (a.flops(999, 1), b.flops(999, 1)),
        "prefill, FLOPs per token": (a.flops(0, 1000, logits=1) / 1000, b.flops(0, 1000, logits=1) / 1000),
    }
    for figure, (x, y) in expected.items():
        assert (found[figure]["value"], found[figure]["other"]) == (x, y)
        assert found[figure]["ratio"] == (y / x if x else None)
    ceiling = roofline.forward_pass(b, "decode", 1000, InferenceConfig()).tokens_per_s(H100)
    assert found["decode, ceiling"]["other"] == ceiling


def test_only_costs_that_differ_are_shown() -> None:
    model = one("qwen3-8b")
    spec, _ = apply_swap(model.spec, "GQA(window=4096)")
    found = figures(model, NamedSpec("windowed", spec), context=4096)
    assert "parameters" not in found
    assert "KV cache at 4k" not in found
    assert found["KV cache at 32k"]["ratio"] == 0.125


def call(*args: str) -> int:
    return exit_code(app, "python -m benchmarks", ["compare", *args])


def test_the_page_names_pairs_that_the_gallery_suggests() -> None:
    page = (DOCS / "comparisons.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (\S+), (\S+) \|", page, re.MULTILINE)
    assert shown
    assert set(shown) <= set(PAIRS)


def test_a_model_against_its_swapped_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("gpt-oss", "--swap", "GQA(window=4096)") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "gpt-oss-20b* is gpt-oss-20b after --swap GQA(window=4096)." in out
    assert "both equal up to 128; gpt-oss-20b 129 to 8,063; both equal at 8,064; gpt-oss-20b* from 8,065 on." in out


def test_the_same_model_twice_differs_in_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("qwen3", "qwen3-0.6b") == 0
    out = capsys.readouterr().out
    assert "No field differs." in out
    assert "both equal at every context." in out
    assert call("qwen3", "qwen3-0.6b", "--json") == 0
    assert [row["table"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["crossing"]


@pytest.mark.parametrize(
    "names", [[], ["qwen3"], ["qwen3", "llama3", "olmo2"], ["qwen3", "llama3", "--swap", "norm=olmo"]]
)
def test_compare_takes_two_or_one_with_a_swap(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*names) == 2
    assert "compare takes two models, or one with --swap" in capsys.readouterr().err
