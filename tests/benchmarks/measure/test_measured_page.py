"""docs/measured.md shows what today's code would print: all but the times, which belong to the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.analytic.models import about, one
from benchmarks.commands import blocks, mla
from benchmarks.measure import blocks as blocks_module
from benchmarks.measure import mla as mla_module
from benchmarks.measure.blocks import BlockConfig, block_list
from benchmarks.measure.mla import MLAConfig, Outcome, variants
from benchmarks.output.report import Table
from zoo.cli.tables import Format

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "measured.md").read_text(encoding="utf-8")
SHOWN = {
    command.partition("benchmarks ")[2]: output
    for command, output in re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, re.DOTALL)
}


def cells(text: str, columns: int) -> list[list[str]]:
    """The first columns of the table in a text, which stands between its title and its legend."""
    return [re.split(r"\s{2,}", line.strip())[:columns] for line in text.split("\n\n")[1].splitlines()]


def test_every_command_is_shown_once() -> None:
    assert list(SHOWN) == ["mla", "blocks"]


def of_variants() -> list[Table]:
    spec, dim = mla.attention(one("deepseek-v3"), tiny=False)
    config = MLAConfig(mla.CONTEXTS)
    each = [(variant, context) for context in config.contexts for variant in variants(spec)]
    samples = {(variant, str(context)): [1.0] for variant, context in each}
    rows = mla_module.rows(spec, dim, config, [Outcome(*pair) for pair in each], samples)
    return list(mla.tables([{**about(one("deepseek-v3")), "tiny": False, **row} for row in rows]))


def of_blocks() -> list[Table]:
    listed, config = block_list(1024), BlockConfig(1024, 512, 4096)
    samples = {(entry.label, phase): [1.0] for entry in listed for phase in ("prefill", "decode")}
    return list(blocks.tables(blocks_module.rows(listed, config, samples)))


@pytest.mark.parametrize(
    ("verb", "tables", "untimed"), [("mla", of_variants(), 4), ("blocks", of_blocks(), 1)], ids=["mla", "blocks"]
)
def test_the_tables_are_up_to_date_except_for_their_times(verb: str, tables: Sequence[Table], untimed: int) -> None:
    static, timed = (table.text(Format.table) for table in tables)
    title = timed.splitlines()[0]
    shown, _, times = SHOWN[verb].partition(title)
    assert shown.split() == static.split()
    assert cells(title + times, untimed)[2:] == cells(timed, untimed)[2:]
