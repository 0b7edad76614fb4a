"""Rows about estimated models: bounds, the stored parameters by group, and what the estimate rests on."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.analytic.compare import unknown_rows
from benchmarks.analytic.estimates import bound_rows, ground_rows, nearest, stored_rows
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, stored_params, swapped
from benchmarks.analytic.params import param_row
from tests.headers import released_shapes
from tests.presets import over
from tests.reference import published
from zoo.architectures import families
from zoo.catalog import best_known, family_name, sizes
from zoo.hf.estimate import estimate
from zoo.hf.stored_shapes import StoredShapes

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, hidden_act="silu")


def model(stored: StoredShapes | None = None, **fields: object) -> NamedSpec:
    guess = estimate(SMALL | fields, stored)
    return NamedSpec("new", guess.spec, estimate=guess)


def test_bounds_are_the_least_and_the_greatest_of_all_answers() -> None:
    windowed = model(sliding_window=8, tie_word_embeddings=True)
    rows = {row["figure"]: row for row in bound_rows(windowed, InferenceConfig())}
    at_32k = rows["KV cache at 32k"]
    layer = 2 * 32 * 2  # bytes of a token
    assert (at_32k["value"], at_32k["low"], at_32k["high"]) == (4 * 8 * layer, 4 * 8 * layer, 4 * 32_768 * layer)
    assert rows["parameters"]["low"] == rows["parameters"]["high"] == windowed.spec.params()


def test_bounds_are_of_one_card_and_leave_out_answers_that_cannot_be_divided() -> None:
    asked = model(multi_query=True, num_key_value_heads=4, tie_word_embeddings=True)
    whole, half = (bound_rows(asked, InferenceConfig(tp=tp, ep=1)) for tp in (1, 2))
    for one, other in zip(whole, half, strict=True):
        assert other["value"] <= one["value"]


def test_exact_parameters_by_group_are_those_of_the_headers() -> None:
    preset = "qwen3-0.6b"
    guess = estimate(published()[preset]["config"] | {"model_type": "new"}, released_shapes(preset))
    found, spec = NamedSpec("new", guess.spec, estimate=guess), sizes()[preset].spec
    row = param_row(found)
    assert (row["params"], row["active_params"], row["estimated"]) == (spec.params(), spec.params(), True)
    assert row["attn_params"] == spec.param_breakdown()["attn"]
    assert [each["off_by"] for each in stored_rows(found)] == [0] * 6
    bounds = {each["figure"]: each for each in bound_rows(found, InferenceConfig())}["parameters"]
    assert bounds["low"] == bounds["value"] == bounds["high"] == spec.params()


def test_active_parameters_leave_out_the_stored_experts_that_are_not_chosen() -> None:
    experts = {f"model.layers.{i}.mlp.experts.{e}.{name}_proj.weight": shape for i in range(4) for e in range(8)
               for name, shape in {"gate": (16, 32), "up": (16, 32), "down": (32, 16)}.items()}  # fmt: skip
    fields = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
    found = model(StoredShapes(experts), **fields)
    one = 3 * 16 * 32
    assert stored_params(found) == (4 * 8 * one, 4 * 2 * one)


def test_a_swapped_estimate_has_no_stored_parameters_and_stays_marked() -> None:
    changed = swapped(model(), ["attn=GQA(kv_heads=1)"])
    assert param_row(changed)["params"] == changed.spec.params()
    assert (param_row(changed)["estimated"], changed.label) == (True, "~new*")


@over(families())
def test_the_nearest_model_of_a_renamed_config_is_of_its_family_or_has_no_more_differences(family: str) -> None:
    preset = best_known(family)
    guess = estimate(published()[preset]["config"] | {"model_type": "new"})
    found = nearest(guess)
    if guess.spec == sizes()[preset].spec:
        assert family_name(found) == family
    assert found in sizes()


def test_grounds_name_every_field_question_note_and_unread_field() -> None:
    found = model(sliding_window=8, tower="big", mamba_expand=None)
    rows = list(ground_rows(found))
    by_ground = {ground: [row["field"] for row in rows if row["ground"] == ground] for ground in
                 ("used", "question", "not understood", "nearest", "source")}  # fmt: skip
    assert {*SMALL, "sliding_window"} <= {*by_ground["used"]}
    assert by_ground["not understood"] == ["tower"]
    assert len(by_ground["question"]) == 2
    assert len(by_ground["nearest"]) == len(by_ground["source"]) == 1


def test_unknown_fields_stand_side_by_side() -> None:
    first, second = model(tower="big", gates=3), replace(model(tower="small"), name="other")
    rows = {row["field"]: (row["value"], row["other"]) for row in unknown_rows(first, second)}
    assert rows == {"tower": ("'big'", "'small'"), "gates": ("3", None)}
