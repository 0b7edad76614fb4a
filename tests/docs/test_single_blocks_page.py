"""docs/single-blocks.md: apart from times, the committed samples equal what today's code computes."""

from __future__ import annotations

from typing import Any

from benchmarks.analytic.models import about, one
from benchmarks.commands.blocks import of_model
from benchmarks.measure import blocks
from benchmarks.measure.blocks import BlockConfig, block_list
from benchmarks.measure.mla import MLAVariants
from benchmarks.measure.sparse import SparseVariants
from benchmarks.measure.variants import Comparison, VariantsConfig
from benchmarks.output.report import kept, read
from docs.tools.pages import BLOCKS, block_section

DOCUMENTS = {name: read(file) for name, file in kept(BLOCKS).items()}
TIMES = ("_s", "_s_min", "_s_max", "_seconds")
MEASURED = ("threads", "difference", "against_absorbed", "allocated_bytes", "gain", "reached")


def exact(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without measured figures."""
    return [
        {key: value for key, value in row.items() if not key.endswith(TIMES) and key not in MEASURED} for row in rows
    ]


def of_variants(kind: type[Comparison]) -> list[dict[str, Any]]:
    model, config = one(kind.MODEL), VariantsConfig(kind.CONTEXTS)
    comparison = of_model(kind, model, False, config)
    rows = [comparison.row(variant, "decode", at) for at in kind.CONTEXTS for variant in kind.VARIANTS]
    return [{**about(model), "tiny": False, **row} for row in rows]


def of_blocks() -> list[dict[str, Any]]:
    listed = block_list(1024)
    samples = {(entry.label, phase): [1.0] for entry in listed for phase in ("prefill", "decode")}
    return blocks.rows(listed, BlockConfig(1024, 512, 4096), samples)


def test_all_but_the_times_is_todays() -> None:
    todays = {"mla": of_variants(MLAVariants), "sparse": of_variants(SparseVariants), "blocks": of_blocks()}
    assert todays.keys() == DOCUMENTS.keys()
    for name, rows in todays.items():
        assert exact(DOCUMENTS[name]["rows"]) == exact(rows), name


def test_a_section_names_the_machine_of_its_samples_and_not_this_one() -> None:
    for name, document in DOCUMENTS.items():
        text = block_section(name, document | {"machine": document["machine"] | {"cpu": "A processor"}})
        assert text.count("A processor") == 1
        assert "kernels" not in text
