"""The reader of unknown kinds, against what is known: every published config under another model_type, types that the
zoo does not have, and configs that are wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.analytic.estimates import GROUPS
from tests.headers import released_shapes
from tests.presets import over, representatives
from tests.reference import published
from zoo.catalog import family_name, names, sizes
from zoo.errors import MalformedError
from zoo.hf.estimate import MAX_ANSWERS, Estimate, estimate
from zoo.hf.shared_fields import SharedFields, is_without_cost
from zoo.hf.stored_shapes import StoredShapes

CONTEXTS = (1, 4096, 32_768, 131_072)
# Family -> why its cache is not that of the estimate, and what the estimate says of it: a question or an unread field.
OTHER_CACHE = {
    "gemma2": ("windows in every second layer, which no field says", "which layers have sliding_window=4096"),
    "deepseek-v4": ("entries for several tokens", "compress_ratios"),
}
# Preset, or family -> the groups of parameters that no shared field or tensor explains, with stored tensors.
UNEXPLAINED = {
    "deepseek-v4": {"attention", "norms", "other"},  # compressors, low-rank outputs, residual streams
    "gemma4-e2b": {"embedding", "norms", "other"},  # inputs of every layer
    "gemma4-e4b": {"embedding", "norms", "other"},
    "gemma4-26b-a4b": {"feed-forward", "experts", "norms"},  # a dense feed-forward beside the experts
    "gemma4": {"norms"},  # a scalar for every layer
}
OUTSIDE = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((Path(__file__).parents[2] / "data" / "estimates").glob("*.json"))
}
SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, hidden_act="silu")


def forced(name: str, stored: StoredShapes | None = None) -> Estimate:
    """The estimate of a published config whose model_type is renamed."""
    return estimate(deepcopy(published()[name]["config"]) | {"model_type": "of-no-family"}, stored)


def groups(parts: Mapping[str, int]) -> dict[str, int]:
    """The parameters of each group."""
    return {group: sum(parts.get(part, 0) for part in within) for group, within in GROUPS.items()}


@over(names())
def test_the_cache_of_every_published_size_is_equal_or_its_difference_is_named(name: str) -> None:
    found, spec, family = forced(name), sizes()[name].spec, family_name(name)
    estimated, exact = ([each.kv_bytes(context) for context in CONTEXTS] for each in (found.spec, spec))
    if family not in OTHER_CACHE:
        assert estimated == exact
        assert found.spec.kv_growth() == spec.kv_growth()
        return
    assert estimated != exact
    for context, nbytes in zip(CONTEXTS, exact, strict=True):
        bounds = [each.kv_bytes(context) for each in found.specs]
        if family == "gemma2":
            assert min(bounds) <= nbytes <= max(bounds)
    assert OTHER_CACHE[family][1] in {question for question, _ in found.questions} | dict(found.unread).keys()


def few_tensors() -> list[str]:
    """Those representatives whose files hold few tensors: experts are stored one by one."""
    layers = {name: sizes()[name].spec.layers for name in representatives()}
    return [name for name, held in layers.items() if sum(each.mixture.experts for each in held if each.mixture) < 2500]


@over(names(), by_default=few_tensors())
def test_headers_make_parameters_exact_and_the_estimate_too_or_show_its_difference(name: str) -> None:
    spec, stored, family = sizes()[name].spec, released_shapes(name), family_name(name)
    parts, beside = stored.breakdown(len(spec.layers), spec.tied)
    assert dict(beside).keys() <= {"tables of integers"}
    assert sum(parts.values()) == spec.params()
    if family != "deepseek-v4":  # whose compressors are not told from its attention
        assert groups(parts) == groups(spec.param_breakdown())
    found = forced(name, stored)
    estimated = groups(found.spec.param_breakdown())
    differing = {group for group, count in groups(parts).items() if count != estimated[group]}
    assert differing == UNEXPLAINED.get(name, UNEXPLAINED.get(family, set()))
    if not differing:
        assert found.spec.active_params() == spec.active_params()
    if not differing and family not in OTHER_CACHE:
        for past, new in ((0, 4096), (4095, 1), (40_000, 3)):
            assert found.spec.flop_breakdown(past, new) == spec.flop_breakdown(past, new)


@over(names())
def test_every_field_is_used_or_without_a_cost_or_said_not_to_be_understood(name: str) -> None:
    config, found = published()[name]["config"], forced(name)
    for path, value in SharedFields(config).values.items():
        said = path in dict(found.used) or path in dict(found.unread) or is_without_cost(path)
        assert said or value in (None, False, [], {}) or path in ("partial_rotary_factor", "is_decoder"), path


@pytest.mark.parametrize("name", OUTSIDE)
def test_types_that_the_zoo_lacks_agree_with_arithmetic_by_hand(name: str) -> None:
    said = OUTSIDE[name]
    shapes = {
        pattern.replace("{i}", str(i)): tuple(held["shape"])
        for pattern, held in said["shapes"].items()
        for i in held["layers"]
    }
    stored = StoredShapes(shapes)
    for found in (estimate(said["config"]), estimate(said["config"], stored)):
        fixed, per_token = found.spec.kv_growth()
        assert per_token == said["kv_bytes_per_token"]
        assert fixed == said["kv_fixed_bytes"] + said["kv_fixed_bytes_more"]
        assert bool(found.notes) == bool(said["kv_fixed_bytes_more"])
        least, most = (function(each.params() for each in found.specs) for function in (min, max))
        if name not in ("jamba", "phimoe"):  # a mixer that the zoo lacks; biases of norms that no field says
            assert least <= said["params"] <= most or found.stored
    parts, _ = stored.breakdown(len(found.spec.layers), found.spec.tied)
    assert sum(parts.values()) == said["params"]
    estimated, files = groups(found.spec.param_breakdown()), groups(parts)
    assert {g: estimated[g] - files[g] for g in GROUPS if estimated[g] != files[g]} == said["differs"]


def test_a_question_has_bounds_and_an_answer_that_is_taken() -> None:
    found = estimate(SMALL | {"sliding_window": 8, "tie_word_embeddings": True})
    question, answers = found.questions[0]
    assert question == "which layers have sliding_window=8"
    assert answers == ("all", "every second, the first included", "none")
    per_token = 2 * 4 * 8 * 2  # bytes of one layer
    assert [each.kv_bytes(100) for each in found.specs] == [
        per_token * layers for layers in (4 * 8, 2 * 8 + 2 * 100, 4 * 100)
    ]
    assert len(found.specs) <= MAX_ANSWERS


def test_an_unknown_word_for_a_layer_costs_at_most_attention_and_at_least_nothing() -> None:
    found = estimate(SMALL | {"layer_types": ["full_attention", "lightning"] * 2, "tie_word_embeddings": True})
    assert "lightning" in found.questions[0][0]
    assert sorted(each.kv_bytes(10) for each in found.specs) == [2 * 10 * 128, 4 * 10 * 128]


def test_shapes_that_contradict_the_fields_correct_no_width_and_still_count() -> None:
    rows = {"q": 32, "k": 40, "v": 40}  # five key heads of 8 for four heads
    shapes = {f"model.layers.{i}.self_attn.{part}_proj.weight": (rows[part], 32) for i in range(4) for part in rows}
    found = estimate(SMALL, StoredShapes(shapes))
    assert found.spec == estimate(SMALL).spec
    assert "do not fit" in found.notes[0]
    assert sum(StoredShapes(shapes).breakdown(4)[0].values()) == 4 * (32 + 40 + 40) * 32


def test_many_questions_are_answered_one_at_a_time_and_all_at_once() -> None:
    words = [f"kind{i}" for i in range(12)]
    found = estimate(SMALL | {"num_hidden_layers": 12, "layer_types": words, "tie_word_embeddings": True})
    assert len(found.questions) == 12
    caches = sorted(each.kv_bytes(1) for each in found.specs)
    assert (caches[0], caches[-1]) == (0, 12 * 128)
    assert caches.count(11 * 128) >= 1
    assert len(found.specs) <= MAX_ANSWERS + 2


def test_a_config_of_many_unknown_fields_lists_the_first() -> None:
    found = estimate(SMALL | {f"tower{i}": i + 1 for i in range(5000)})
    assert (len(found.unread), found.unread[-1]) == (201, ("...", "4800 more fields"))


def test_a_list_of_widths_has_one_for_each_layer() -> None:
    found = estimate(SMALL | {"intermediate_size": [8, 16, 8, 24], "tie_word_embeddings": True})
    assert found.spec.param_breakdown()["ffn"] == 3 * 32 * (8 + 16 + 8 + 24)
    with pytest.raises(MalformedError, match=r"intermediate_size\[2\] must be an integer from 1 .*, got None"):
        estimate(SMALL | {"intermediate_size": [8, 16]})


def test_latent_attention_caches_its_latent_with_and_without_positions() -> None:
    latent = dict(kv_lora_rank=12, qk_nope_head_dim=8, v_head_dim=8, num_attention_heads=5)  # 5 heads, a width of 32
    for rope in (0, 4):
        found = estimate(SMALL | latent | {"qk_rope_head_dim": rope})
        assert found.spec.kv_bytes(10) == 10 * 4 * (12 + rope) * 2
        assert bool(found.notes) == (rope == 0)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no width": ({"hidden_size": None}, "hidden_size is missing (also looked for n_embd"),
    "no layers": ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    "too many layers": (
        {"num_hidden_layers": 10**12},
        "num_hidden_layers must be an integer from 1 to 1000, got 1000000",
    ),
    "a negative width": ({"hidden_size": -4}, "hidden_size must be an integer from 1 to 2147483647, got -4"),
    "a wide width": ({"hidden_size": 10**20}, "hidden_size must be an integer from 1 to 2147483647"),
    "a text": ({"vocab_size": "many"}, "vocab_size must be an integer from 1 to 2147483647, got 'many'"),
    "a truth value": ({"num_attention_heads": True}, "num_attention_heads must be an integer"),
    "an object": ({"intermediate_size": {"a": 1}}, ""),
    "indivisible heads": ({"num_key_value_heads": 3}, "kv_heads=3 must divide heads=4"),
    "an odd width": ({"num_attention_heads": 5}, "num_attention_heads=5 do not divide the width 32"),
    "a short list": ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 4 layers"),
    "a list of numbers": ({"layer_types": [1, 2, 3, 4]}, "layer_types holds 1, and must hold a word for each layer"),
    "no list": ({"layer_types": 7}, "layer_types must be a list, got 7"),
    "a layer beyond": ({"mlp_only_layers": [9], "num_experts": 4, "num_experts_per_tok": 1}, "mlp_only_layers holds 9"),
    "experts without k": ({"num_experts": 4}, "no field says how many experts a token has"),
    "k above experts": (
        {"num_experts": 4, "num_experts_per_tok": 9, "moe_intermediate_size": 8},
        "num_experts_per_tok must be an integer from 1 to 4, got 9",
    ),
    "a million experts": (
        {"num_experts": 10**6, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
        "num_experts must be an integer from 1 to 100000, got 1000000",
    ),
    "letters": ({"hybrid_override_pattern": "MM?*"}, "hybrid_override_pattern must have 4 letters"),
    "a negative window": ({"sliding_window": -1}, "sliding_window must be an integer from 1"),
    "an infinite eps": ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number, got inf"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configs_are_refused_by_field_and_value(case: str) -> None:
    changes, said = WRONG[case]
    config = SMALL | changes
    if not said:  # an object's fields have other paths: the width of the feed-forward is then not known
        assert ("intermediate_size.a", "1") in estimate(config).unread
        return
    with pytest.raises(MalformedError) as refused:
        estimate(config)
    assert f"config.json: {said}" in str(refused.value) or said in str(refused.value)


@pytest.mark.parametrize("config", [None, [], "text", 3])
def test_what_is_no_object_is_refused(config: Any) -> None:
    with pytest.raises(MalformedError, match=r"config\.json: must be an object"):
        estimate(config)
