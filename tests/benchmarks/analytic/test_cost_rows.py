"""The static rows hold published facts and integers that were derived without this code (tests/data)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.analytic import costs
from benchmarks.analytic.models import chosen

DATA = Path(__file__).resolve().parents[2] / "data"
KV = json.loads((DATA / "kv_reference.json").read_text(encoding="utf-8"))
PUBLISHED = json.loads((DATA / "published.json").read_text(encoding="utf-8"))


def row(name: str) -> dict[str, Any]:
    (only,) = costs.rows(chosen([name]))
    return only


@pytest.mark.parametrize("name", KV)
def test_cache_bytes_are_the_derived_ones(name: str) -> None:
    expected, found = KV[name], row(name)
    assert found["kv_fixed_bytes"] == expected["fixed_bytes"]
    assert found["kv_bytes_per_token"] == expected["bytes_per_token"]
    assert found["kv_bytes_32k"] == expected["bytes_32k"]
    assert found["longest_context"] == expected["longest_context"]
    assert found["kv_bytes_longest_context"] == expected["bytes_longest_context"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    expected, found = PUBLISHED[name], row(name)
    assert found["params"] == expected["total_parameters"]
    assert found["hub"] == expected["repo_id"]
    if "active_parameters" in expected:
        theirs = found["publisher_active_params"]
        assert (found["active_params"] if theirs is None else theirs) == expected["active_parameters"]
    else:
        routed = any(part.role == "router" for part in zoo.spec(name).walk())
        assert (found["active_params"] < found["params"]) == routed
        assert found["publisher_active_params"] is None


def test_where_the_publisher_counts_otherwise_the_rule_explains_the_difference() -> None:
    found = row("gpt-oss-20b")
    assert found["publisher_active_rule"] == "without the input embedding"
    assert found["active_params"] - found["publisher_active_params"] == 201_088 * 2880


# One token that sees 4,096, by hand: 2 x every matrix entry it meets, and 2 x 2 x width x keys in attention.
FLOPS = {
    "llama3.1-8b": 2 * 128_256 * 4096
    + 32 * 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    + 32 * 4 * (32 * 128) * 4096,
    "gemma3-270m": 2 * 262_144 * 640
    + 18 * 2 * (2 * 640 * 1024 + 2 * 640 * 256 + 3 * 640 * 2048)
    + 4 * (4 * 256) * (3 * 4096 + 15 * 512),
    "gpt-oss-20b": 2 * 201_088 * 2880
    + 24 * 2 * (2 * 2880 * 4096 + 2 * 2880 * 512 + 2880 * 32 + 4 * 3 * 2880 * 2880)
    + 4 * (64 * 64) * (12 * 4096 + 12 * 128),
    "deepseek-v3-671b": 2 * 129_280 * 7168
    + 61 * 2 * (7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168)
    + 61 * 2 * 128 * (576 + 512) * 4096
    + 3 * 2 * 3 * 7168 * 18_432
    + 58 * 2 * (7168 * 256 + 9 * 3 * 7168 * 2048),
}


@pytest.mark.parametrize("name", FLOPS)
def test_flops_are_those_counted_by_hand(name: str) -> None:
    assert row(name)["flops_per_token_4k"] == FLOPS[name]


@pytest.mark.parametrize("name", zoo.names())
def test_every_row_is_consistent(name: str) -> None:
    found = row(name)
    assert 0 < found["active_params"] <= found["params"]
    assert found["longest_context"] == min(found["context"], 128 * 1024)
    assert found["kv_bytes_longest_context"] >= found["kv_bytes_per_token"] * found["longest_context"]
    assert sum(window["layers"] for window in found["windows"]) <= found["layers"]
    assert (found["kv_fixed_bytes"] > 0) == bool(found["windows"])


def test_a_model_that_names_no_context_is_taken_to_the_longest() -> None:
    assert costs.longest_context(None) == 131_072
    assert costs.longest_context(131_073) == 131_072
    assert costs.longest_context(4096) == 4096
