"""The section on fitting models, in a real browser: every cell equals Python's, and the card follows the memory."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.__main__ import app
from benchmarks.analytic.kv import fit_row
from benchmarks.analytic.roofline import devices
from benchmarks.analytic.weight_forms import FOUR_BIT, PLAIN
from benchmarks.gallery.cost_terms import card_part
from benchmarks.gallery.files import DTYPES
from benchmarks.output.show import format_decimal_bytes
from tests.benchmarks.gallery.conftest import SHOWN
from zoo.arguments import find_dtype
from zoo.cli.runner import exit_code

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]
SETTINGS = (
    (131_072, 1, 24, "released", "bfloat16", 1),
    (8192, 16, 141, "float8", "bfloat16", 8),
    (1_048_576, 4, 80, "float32", "float8", 2),
    (4096, 1, 80, "released", "bfloat16", 16),
    (131_072, 1, 48, "4-bit", "bfloat16", 1),
)


def choose(page: Any, context: int, batch: int, memory: int, weights: str, cache: str, cards: int) -> None:
    values = page.evaluate("[CONTEXTS, DATA.batches, MEMORIES]")
    for name, chosen, held in zip(("context", "batch", "memory"), (context, batch, memory), values, strict=True):
        page.locator(f"#fit-{name}").fill(str(held.index(chosen)))
    page.locator("#fit-weights").select_option(weights)
    page.locator("#fit-cache").select_option(cache)
    page.locator("#fit-cards").select_option(str(cards))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_cells_and_the_command_equal_python(
    page: Any, setting: tuple[int, int, int, str, str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    context, batch, memory, weights, cache, cards = setting
    choose(page, *setting)
    assert page.locator("#fit-memory-shown").inner_text() == f"{memory} GB"
    command = shlex.split(page.locator("#fit-code").inner_text())
    assert command[:4] == ["python", "-m", "benchmarks", "kv"]
    assert exit_code(app, "python -m benchmarks", [*command[3:], "--json"]) == 0
    printed = {row["model"]: row for row in json.loads(capsys.readouterr().out)["rows"] if row["table"] == "fit"}
    assert len(printed) > 3
    forms, fitting = {FOUR_BIT.name: FOUR_BIT} | {name: PLAIN[find_dtype(name)] for name in DTYPES}, 0
    able = [model for model in SHOWN if model.spec.context is None or model.spec.context >= context]
    for row, model in zip(page.locator("#fit-table tbody tr").all(), SHOWN, strict=True):
        cells = [cell.split("\n")[0] for cell in row.locator("td").all_inner_texts()]
        assert row.locator("th").inner_text() == model.name
        config, spec = card_part(model.spec, cards)
        if spec is None:
            assert cells == [f"{cards} cards cannot divide it"]
            continue
        form = forms.get(weights, model.released_form)
        weight_bytes, cache_bytes = form.model_bytes(spec), spec.kv_bytes(context, batch, find_dtype(cache))
        fits = weight_bytes + cache_bytes <= memory * 1e9
        fitting += fits and model in able
        sizes = (weight_bytes, cache_bytes, weight_bytes + cache_bytes)
        assert cells[1:4] == [format_decimal_bytes(each) for each in sizes]
        assert cells[4] == "yes" if fits else cells[4].startswith("no")
        assert row.locator("td.yes" if fits else "td.no").count() == 1
        told = fit_row(model, memory * 10**9, replace(config, batch=batch, weights=form, cache=find_dtype(cache)))
        longest = told["context_that_fits"] if told["limit"] == "cache" else model.spec.context
        longest = page.evaluate("formatTokens", longest or 0)
        assert cells[5] == {"weights": "none", "context": f"all of its {longest}", "cache": longest}[told["limit"]]
        if model.name in printed:
            assert cells[1] == format_decimal_bytes(printed[model.name]["weight_bytes"])
        beyond = model.spec.context is not None and model.spec.context < context
        assert row.get_by_text("beyond its").count() == beyond
        assert (cells[6] == "–") is (not fits or not any(each.memory == memory * 1e9 for each in devices().values()))
    assert page.locator("#fit-summary strong").inner_text() == f"{fitting} of {len(able)}"
    words = "as released" if weights == "released" else f"in {weights}"
    assert page.locator("#fit-summary").inner_text().endswith(f"; weights {words}, cache in {cache}.")


def test_a_packed_form_is_named(page: Any) -> None:
    choose(page, 131_072, 1, 24, "released", "bfloat16", 1)
    row = page.locator("#fit-table tbody tr", has_text="gpt-oss-20b")
    assert row.locator("td").nth(1).inner_text().split("\n") == ["13.8 GB", "MXFP4"]


def test_card_and_memory_follow_each_other(page: Any) -> None:
    """A memory that no card has is a card without a name, and without ceilings."""
    page.locator("#fit-device").select_option("rtx4090")
    assert page.locator("#fit-memory-shown").inner_text() == "24 GB"
    memories = page.evaluate("MEMORIES")
    page.locator("#fit-memory").fill(str(memories.index(48)))
    assert page.locator("#fit-device option:checked").inner_text() == "custom, 48 GB"
    assert set(page.locator("#fit-table td:nth-child(8)").all_inner_texts()) == {"–"}
    page.locator("#fit-memory").fill(str(memories.index(141)))
    assert page.locator("#fit-device option:checked").inner_text() == "NVIDIA H200 SXM, 141 GB"
    page.locator("#fit-memory").fill(str(memories.index(80)))
    assert "H100" in page.locator("#fit-cards-known").inner_text()
    page.locator("#fit-device").select_option("h100")


def test_bars_are_on_one_scale(page: Any) -> None:
    """The ends of the bars are in the order of the totals, and the line of the memory is in one place."""
    choose(page, 32_768, 1, 80, "released", "bfloat16", 1)
    ends = page.evaluate(
        """() => [...document.querySelectorAll('#fit-table tbody tr')].map(row => {
          const [cache, limit] = ['.cache', '.limit'].map(each => row.querySelector(each).getBoundingClientRect());
          return [cache.right, limit.left];
        })"""
    )
    totals = [each.released_form.model_bytes(each.spec) + each.spec.kv_bytes(32_768) for each in SHOWN]
    ordered = [end for _, (end, _) in sorted(zip(totals, ends, strict=True))]
    assert all(b >= a - 3 for a, b in pairwise(ordered))  # a cache has at least a few pixels
    assert len({round(limit) for _, limit in ends}) == 1
