"""Published facts, integers that were derived without this code (tests/data), parts that add up, and the Hub's totals,
derived part by part from the layouts of the checkpoints."""

from __future__ import annotations

import re
from math import ceil, prod
from typing import Any

import pytest

import zoo
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.analytic.params import LAYER_PARTS, PARTS, claims, cost_row, layer_rows, longest_context, param_row
from benchmarks.commands.params import reconciliation
from tests.presets import over
from tests.reference import kv_reference, published

KV = kv_reference()
PUBLISHED = published()
ROWS = {name: param_row(one(name)) for name in zoo.names()}
BESIDE = {name: {part["what"]: part["params"] for part in row["hub_beside"]} for name, row in ROWS.items()}


def costs(name: str) -> dict[str, Any]:
    return cost_row(one(name))


@over(KV)
def test_cache_bytes_are_the_derived_ones(name: str) -> None:
    expected, found = KV[name], costs(name)
    assert found["kv_fixed_bytes"] == expected["fixed_bytes"]
    assert found["kv_bytes_per_token"] == expected["bytes_per_token"]
    assert found["kv_bytes_32k"] == expected["bytes_32k"]
    assert found["longest_context"] == expected["longest_context"]
    assert found["kv_bytes_longest_context"] == expected["bytes_longest_context"]


@over(PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    expected, found = PUBLISHED[name], costs(name)
    assert found["params"] == expected["total_parameters"]
    assert found["hub"] == expected["repo_id"]
    if "active_parameters" in expected:
        published = found["publisher_active_params"]
        assert (found["active_params"] if published is None else published) == expected["active_parameters"]
    else:
        routed = any(part.role == "router" for part in zoo.spec(name).walk())
        assert (found["active_params"] < found["params"]) == routed
        assert found["publisher_active_params"] is None


def test_where_the_publisher_counts_otherwise_the_rule_explains_the_difference() -> None:
    found = costs("gpt-oss-20b")
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
    assert costs(name)["flops_per_token_4k"] == FLOPS[name]


@over(zoo.names())
def test_every_row_is_consistent(name: str) -> None:
    found = costs(name)
    assert 0 < found["active_params"] <= found["params"]
    assert found["longest_context"] == min(found["context"], 128 * 1024)
    assert found["kv_bytes_longest_context"] >= found["kv_bytes_per_token"] * found["longest_context"]
    assert sum(window["layers"] for window in found["windows"]) <= found["layers"]
    assert (found["kv_fixed_bytes"] > 0) == bool(found["windows"] or found["state_layers"])
    assert bool(found["state_bytes"]) == bool(found["state_layers"])


def test_a_model_without_a_context_is_shown_at_128k() -> None:
    assert longest_context(None) == 131_072
    assert longest_context(131_073) == 131_072
    assert longest_context(4096) == 4096


@over(zoo.names())
def test_parts_add_up_to_the_total(name: str) -> None:
    row = ROWS[name]
    parts = sum(row[f"{part}_params"] for part in PARTS)
    assert parts + row["other_params"] == row["params"] == zoo.spec(name).params()
    assert row["other_params"] == 0


@over(PUBLISHED)
def test_the_hubs_total_is_the_published_one_and_adds_up(name: str) -> None:
    row = ROWS[name]
    assert row["hub_params"] == PUBLISHED[name].get("hub_total_parameters", row["params"])
    assert row["params"] + sum(BESIDE[name].values()) == row["hub_params"]


def test_a_copied_head_is_the_embedding_again() -> None:
    for name in ("qwen3-0.6b", "qwen3-1.7b"):
        assert BESIDE[name] == {"stored copy of the tied head": 151_936 * PUBLISHED[name]["config"]["hidden_size"]}


def linear(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out + fan_out


def test_gemmas_vision_parts_are_those_of_siglip() -> None:
    """SigLIP so400m at 896 pixels: 27 layers of width 1152 with biases, patches of 14, 64 x 64 positions."""
    layer = 4 * linear(1152, 1152) + 2 * 2 * 1152 + linear(1152, 4304) + linear(4304, 1152)
    tower = linear(3 * 14 * 14, 1152) + 64 * 64 * 1152 + 27 * layer + 2 * 1152
    for name in ("gemma3-4b", "gemma3-12b", "gemma3-27b"):
        projector = 1152 + 1152 * PUBLISHED[name]["config"]["hidden_size"]  # a norm and a matrix
        assert BESIDE[name] == {"vision tower": tower, "vision projector": projector}


def test_mistrals_vision_parts_are_those_of_pixtral() -> None:
    """24 layers of width 1024, patches of 14; the projector merges 2 x 2 patches, then two matrices without biases."""
    tower = 3 * 14 * 14 * 1024 + 1024 + 24 * (4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024)
    projector = 1024 + 4 * 1024 * 1024 + 1024 * 5120 + 5120 * 5120
    assert BESIDE["mistral-small-3.1-24b"] == {"vision tower": tower, "vision projector": projector}


def test_deepseeks_extra_layer_its_copies_and_its_scales() -> None:
    """One more layer like the 58 sparse ones, a projection of two hidden states to one, three norms; every FP8 matrix
    has a scale for each block of 128 x 128."""
    dim, hidden, experts = 7168, 2048, 256
    attn = [(1536, dim), (128 * 192, 1536), (512 + 64, dim), (128 * 256, 512), (dim, 128 * 128)]
    expert = [(hidden, dim), (hidden, dim), (dim, hidden)]
    dense = [(18_432, dim), (18_432, dim), (dim, 18_432)]
    layer = sum(map(prod, attn)) + 1536 + 512 + 2 * dim + (experts + 1) * sum(map(prod, expert)) + experts * (dim + 1)

    def scales(matrices: list[tuple[int, int]]) -> int:
        return sum(ceil(rows / 128) * ceil(columns / 128) for rows, columns in matrices)

    assert BESIDE["deepseek-v3-671b"] == {
        "multi-token prediction layer": layer + 2 * dim * dim + 3 * dim,
        "its copies of embedding and head": 2 * 129_280 * dim,
        "FP8 scales": 62 * scales(attn) + 3 * scales(dense) + 59 * (experts + 1) * scales(expert),
    }


@pytest.mark.parametrize(("name", "layers", "experts"), [("gpt-oss-20b", 24, 32), ("gpt-oss-120b", 36, 128)])
def test_the_older_reading_of_gpt_oss_adds_a_scale_for_every_32_weights(name: str, layers: int, experts: int) -> None:
    scales = layers * experts * 3 * 2880 * 2880 // 32
    note = ROWS[name]["hub_note"]
    assert f"{scales:,}" in note
    assert f"{ROWS[name]['params'] + scales:,}" in note


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("qwen3-0.6b", (600_000_000, None)),
        ("qwen3-30b-a3b", (30 * 10**9, 3 * 10**9)),
        ("gemma3-270m", (270 * 10**6, None)),
        ("mistral-small-3.1-24b", (24 * 10**9, None)),
        ("mixtral-8x7b", (56 * 10**9, None)),
        ("wide-4x1.5b-a2b", (6 * 10**9, 2 * 10**9)),
        ("matrix-2x", (None, None)),
        ("nameless", (None, None)),
    ],
)
def test_what_a_name_claims(name: str, claimed: tuple[int | None, int | None]) -> None:
    assert claims(name) == claimed


@over(PUBLISHED)
def test_every_published_name_claims_its_size_to_within_a_half(name: str) -> None:
    row = ROWS[name]
    assert reconciliation(row).startswith(f"{name}: {row['params']:,}")
    if row["name_params"] is None:  # a name without a size
        assert "named" not in reconciliation(row)
        return
    least = 0.5 if re.search(r"\dx\d", name) else 0.9  # "8x7b": experts share all but the feed-forward
    assert least < row["params"] / row["name_params"] < 1.5


def test_an_unpublished_model_has_no_hub_total_and_no_claim() -> None:
    row = param_row(NamedSpec("my-7b", zoo.spec("qwen3-8b")))
    assert (row["hub"], row["hub_params"], row["hub_beside"], row["name_params"]) == (None, None, [], None)
    assert reconciliation(row) == "my-7b: 8,190,735,360."


@over(zoo.names())
def test_kinds_of_layers_and_what_is_outside_add_up_to_the_total(name: str) -> None:
    kinds = list(layer_rows(one(name)))
    inside = sum(row["layers"] * row["params"] for row in kinds)
    spec = zoo.spec(name)
    outside = spec.embedding_params() + spec.norm.params(spec.dim)
    if spec.per_layer:
        outside += spec.dim * len(spec.layers) * spec.per_layer.width + spec.per_layer.width  # a projection, its norm
    if spec.streams:  # added up before the head, by a weight of each from all of them, and a scale
        outside += spec.streams.count * (spec.streams.count * spec.dim + 1) + 1
    assert inside == ROWS[name]["params"] - outside
    assert sum(row["layers"] for row in kinds) == len(spec.layers)
    for row in kinds:
        assert sum(row[f"{part}_params"] for part in LAYER_PARTS) == row["params"]
    assert len({row["kind"] for row in kinds}) == len(set(spec.layers))
