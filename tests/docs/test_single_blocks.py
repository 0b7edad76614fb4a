"""docs/single-blocks.md: its tables are those of the committed samples, and all but the times is what today's code
computes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from benchmarks.analytic.models import about, one
from benchmarks.commands import mla, sparse
from benchmarks.measure import blocks as blocks_module
from benchmarks.measure import mla as mla_module
from benchmarks.measure import sparse as sparse_module
from benchmarks.measure.blocks import BlockConfig, block_list
from benchmarks.measure.mla import MLAConfig, Outcome, variants
from benchmarks.measure.sparse import VARIANTS, SparseConfig
from benchmarks.single_blocks import PAGE, documents, page, section

DOCUMENTS = documents()
TIMES = ("_s", "_s_min", "_s_max", "_seconds")
MEASURED = ("threads", "difference", "against_absorbed", "allocated_bytes", "gain", "reached")


def exact(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what is measured."""
    return [
        {key: value for key, value in row.items() if not key.endswith(TIMES) and key not in MEASURED} for row in rows
    ]


def mla_rows() -> list[dict[str, Any]]:
    spec, dim = mla.latent_attention(one("deepseek-v3"), tiny=False)
    config = MLAConfig(mla.CONTEXTS)
    each = [(variant, context) for context in config.contexts for variant in variants(spec)]
    samples = {(variant, str(context)): [1.0] for variant, context in each}
    rows = mla_module.rows(spec, dim, config, [Outcome(*pair) for pair in each], samples)
    return [{**about(one("deepseek-v3")), "tiny": False, **row} for row in rows]


def sparse_rows() -> list[dict[str, Any]]:
    spec, dim = sparse.sparse_attention(one("deepseek-v3.2"), tiny=False)
    config = SparseConfig(sparse.CONTEXTS)
    samples = {(*key.split(), variant): [1.0] for key in ("decode 8192", "decode 32768") for variant in VARIANTS}
    rows = sparse_module.rows(spec, dim, config, {}, samples)
    return [{**about(one("deepseek-v3.2")), "tiny": False, **row} for row in rows]


def block_rows() -> list[dict[str, Any]]:
    listed, config = block_list(1024), BlockConfig(1024, 512, 4096)
    samples = {(entry.label, phase): [1.0] for entry in listed for phase in ("prefill", "decode")}
    return blocks_module.rows(listed, config, samples)


def test_the_page_shows_the_committed_samples() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, DOCUMENTS) == text, "run python -m benchmarks.single_blocks"
    assert all(f"<!-- measured: {verb} -->\n### " in text for verb in DOCUMENTS)


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_the_samples_follow_the_schema(verb: str) -> None:
    schema = json.loads((PAGE.parent / "benchmarks.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(DOCUMENTS[verb])
    assert DOCUMENTS[verb]["complete"]


ROWS = {"mla": mla_rows, "sparse": sparse_rows, "blocks": block_rows}


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_all_but_the_times_is_todays(verb: str) -> None:
    assert exact(DOCUMENTS[verb]["rows"]) == exact(ROWS[verb]())


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_a_section_names_the_machine_of_its_samples_and_not_this_one(verb: str) -> None:
    text = section(verb, DOCUMENTS[verb] | {"machine": DOCUMENTS[verb]["machine"] | {"cpu": "A processor"}})
    assert text.count("A processor") == 1
    assert "kernels" not in text
