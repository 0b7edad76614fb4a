"""A config.json is read strictly: every field is read, or refused by an error of one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zoo
from tests import toys
from tests.configs import newer, older, older_rotary, own, partly_rotary, rotary, smallest, wrapped, wrapped_names
from tests.presets import over
from zoo.architectures import families
from zoo.catalog import family_of
from zoo.errors import MalformedError
from zoo.hf.config import COMMON, EPS


def refusal(config: Any, **options: Any) -> str:
    """The error for a config that is refused."""
    with pytest.raises(MalformedError) as caught:
        zoo.from_hf(config, **options)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert message.isprintable()
    assert caught.value.exit_code == 4
    return message


@over(smallest())
def test_an_unread_field_is_named_with_its_value_and_can_be_ignored(name: str) -> None:
    config = older(name, surprise=3, another="x")
    assert "not understood: surprise=3, another='x'; pass --ignore-field NAME" in refusal(config)
    assert "surprise" not in refusal(config, ignore_fields=["surprise"])
    assert zoo.from_hf(config, ignore_fields=["surprise", "another"]) == zoo.spec(name)


@over(rotary())
def test_an_unread_entry_of_the_rope_fields_is_refused(name: str) -> None:
    config = newer(name)
    config["rope_parameters"]["surprise"] = 0.5
    assert "rope_parameters.surprise=0.5" in refusal(config)
    assert zoo.from_hf(config, ignore_fields=["rope_parameters.surprise"]) == zoo.spec(name)


def with_rope(name: str, **changes: Any) -> dict[str, Any]:
    """An older config whose rope_scaling, "linear" if it had none, has some fields set."""
    scaling = older(name).get("rope_scaling") or {"type": "linear", "factor": 2.0}
    return older(name, rope_scaling=scaling | changes)


@over(older_rotary())
def test_an_unknown_rope_type_is_refused(name: str) -> None:
    known = "known: default, linear, llama3, yarn"
    assert f"rope_type='dynamic' is unknown; {known}" in refusal(with_rope(name, rope_type="dynamic"))
    assert "rope_scaling.type='dynamic' is not supported, only" in refusal(
        with_rope(name, rope_type="linear", type="dynamic")
    )
    config = newer(name)
    for rope in _by_kind(config["rope_parameters"]):
        rope["rope_type"] = ["yarn"]
    assert f"rope_type=['yarn'] is unknown; {known}" in refusal(config)


def _by_kind(rope: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in rope.values() if isinstance(entry, dict)] or [rope]


@pytest.mark.parametrize("name", partly_rotary())
def test_the_rotated_share_of_a_head_is_read_in_both_spellings(name: str) -> None:
    for share in (0.25, 1.0):
        unstated = dict(rotary_dim=None, partial_rotary_factor=None)
        config, before = newer(name, **unstated), older(name, partial_rotary_factor=share, rotary_dim=None)
        config["rope_parameters"]["partial_rotary_factor"] = share
        for scaling in filter(None, (config["rope_parameters"], before.get("rope_scaling"))):
            pairs = int(config["hidden_size"] // config["num_attention_heads"] * share) // 2
            scaling |= {field: [1.5] * pairs for field in ("short_factor", "long_factor") if field in scaling}
        specs = {zoo.from_hf(config), zoo.from_hf(before)}
        assert {part.fraction for spec in specs for part in spec.walk() if isinstance(part, zoo.RoPE)} == {share}
        assert len(specs) == 1
        assert zoo.from_hf(config | {"partial_rotary_factor": share}) in specs
        assert "not understood: partial_rotary_factor=0.7" in refusal(config | {"partial_rotary_factor": 0.7})
    assert "fraction=2 is above 1" in refusal(older(name, partial_rotary_factor=2, rotary_dim=None))


def test_rotated_elements_agree_with_their_share() -> None:
    name = "minimax-m2-230b"
    spec = zoo.from_hf(older(name, rotary_dim=32))
    assert {part.fraction for part in spec.walk() if isinstance(part, zoo.RoPE)} == {0.25}
    told = refusal(older(name, partial_rotary_factor=0.25))
    assert "rotary_dim=64 is not supported, only 32" in told
    assert "attn_type_list[3]=0 is not supported" in refusal(older(name, attn_type_list=[1, 1, 1, 0, *[1] * 58]))


@over(rotary())
def test_two_spellings_that_differ_are_refused(name: str) -> None:
    linear = {"type": "linear", "factor": 2.0}
    assert "not understood: rope_scaling={'factor': 2.0, 'type'" in refusal(newer(name, rope_scaling=linear))
    assert "not understood: rope_theta=123.0" in refusal(newer(name, rope_theta=123.0))
    assert zoo.from_hf(newer(name, rope_scaling=None, rope_theta=None)) == zoo.spec(name)


@pytest.mark.parametrize("field", COMMON.values())
@pytest.mark.parametrize("name", smallest())
def test_a_dimension_is_a_positive_integer_of_sane_size(name: str, field: str) -> None:
    field = own(name, field)
    for value in (True, False, 0, -1, 4.0, float("nan"), 2**31, 10**400, "8", [8], {"value": 8}, None):
        assert f"{field} must be an integer from 1 to " in refusal(older(name, **{field: value}))


@over(smallest())
def test_a_number_is_positive_and_finite(name: str) -> None:
    for value in (True, 0, -1e-6, "1e-6", [1e-6], float("nan"), float("inf"), 10**400, None):
        eps = own(name, EPS)
        assert f"{eps} must be a positive number, got " in refusal(older(name, **{eps: value}))
        optional = "long_factor" in (older(name).get("rope_scaling") or {})  # LongRoPE's follows from the contexts
        if name in older_rotary() and not (optional and value is None):
            assert "rope_scaling.factor must be a positive number, got " in refusal(with_rope(name, factor=value))


@over(smallest())
def test_a_field_without_a_default_must_be_there(name: str) -> None:
    config, field = older(name), own(name, "hidden_size")
    del config[field]
    assert f"{field} is missing" in refusal(config)


PER_LAYER = "per_layer_config must name only layers of full_attention, with the same values for all"


@pytest.mark.parametrize("name", [name for name in smallest() if "per_layer_config" in newer(name)])
def test_what_differs_by_layer_is_one_form_of_its_layers(name: str) -> None:
    given = newer(name)["per_layer_config"]
    first = next(iter(given))
    other = {field: value + 2 for field, value in given[first].items()}
    for wrong in ({"0": given[first]}, given | {"0": given[first]}, given | {first: other}, given | {"x": other}):
        assert PER_LAYER in refusal(newer(name, per_layer_config=wrong))
    widths = {layer.mixer.head_dim for layer in zoo.from_hf(newer(name, per_layer_config={})).layers}
    assert widths == {newer(name)["head_dim"]}  # none differs
    unread = given | {first: given[first] | {"hidden_size": 8}}
    assert f"per_layer_config.{first}.hidden_size=8" in refusal(newer(name, per_layer_config=unread))


@pytest.mark.parametrize("field", ["layer_types", "no_rope_layers"])
@pytest.mark.parametrize("name", smallest())
def test_a_published_list_of_layers_must_agree_or_is_followed(name: str, field: str) -> None:
    given = newer(name).get(field)
    if given is None:  # not understood, or refused for having an entry too few
        assert field in refusal(newer(name, **{field: []}))
        return
    other = {0: 1, 1: 0, "sliding_attention": "full_attention"}.get(given[3], "sliding_attention")
    changed = newer(name, **{field: [*given[:3], other, *given[4:]]})
    if older(name)["model_type"] in ("afmoe", "deepseek_v4"):  # any list is followed
        assert zoo.from_hf(changed).layers[3] != zoo.spec(name).layers[3]
    elif "per_layer_config" in changed:  # another list of layers, which speaks first
        assert PER_LAYER in refusal(changed)
    else:
        assert f"{field}[3]={other!r}" in refusal(changed)
    assert f"{field} has {len(given) - 1} entries for" in refusal(newer(name, **{field: given[:-1]}))
    assert f"{field} must be a list, got 7" in refusal(newer(name, **{field: 7}))


@pytest.mark.parametrize("name", [name for name in smallest() if "first_k_dense_replace" in older(name)])
def test_no_more_dense_layers_than_layers(name: str) -> None:
    layers = older(name)["num_hidden_layers"]
    message = f"first_k_dense_replace must be an integer from 0 to {layers}, got {layers + 1}"
    assert message in refusal(older(name, first_k_dense_replace=layers + 1))


@over(smallest())
def test_dimensions_that_contradict_each_other_are_refused(name: str) -> None:
    """The error is the spec's own, or names the one value that the architecture supports."""
    field = "num_key_value_heads" if "num_key_value_heads" in older(name) else own(name, "num_attention_heads")
    message = refusal(older(name, **{field: 11}))
    ends = "kv_heads=11 must divide heads=", f"{field}=11 is not supported, only", f"must be a multiple of {field}=11"
    assert any(end in message for end in ends)


def test_gpt2_heads_share_the_width() -> None:
    assert "n_embd=768 must be a multiple of n_head=7" in refusal(older("gpt2-small", n_head=7))
    assert zoo.from_hf(older("gpt2-small", n_inner=3072)) == zoo.spec("gpt2-small")
    wide = zoo.from_hf(older("gpt2-small", n_inner=1000))
    assert zoo.to_hf(wide)["n_inner"] == 1000
    for field, on in (("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True), ("n_ctx", 512)):
        assert f"not understood: {field}={on}" in refusal(older("gpt2-small", **{field: on}))


def test_llama4s_norm_undoes_a_factor_of_its_rotation() -> None:
    """The reference normalises rotated queries and keys, the zoo rotates normalised ones: the same without a factor."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    refused = refusal(older("llama4-scout-109b", rope_scaling=scaling))
    assert "the rotation's factor of 1.13863 with use_qk_norm is not supported" in refused
    assert zoo.from_hf(older("llama4-scout-109b", rope_scaling=scaling | {"attention_factor": 1.0}))
    assert zoo.from_hf(older("llama4-maverick-400b", rope_scaling=scaling))


@over(families())
def test_an_unknown_model_type_gets_the_nearest(family: str) -> None:
    for known in families()[family].from_hf.model_types:
        message = refusal({"model_type": known + "x"})
        assert f"unknown model_type '{known}x': `python -m benchmarks params|kv|flops|compare SOURCE`" in message
        assert "did you mean" in message
        assert known in message.partition("did you mean")[2]


@pytest.mark.parametrize("config", [[], "llama", None, 3, {}, {"model_type": None}, {"model_type": ["llama"]}])
def test_what_names_no_model_type_is_refused(config: Any) -> None:
    assert "model_type" in refusal(config)


@over(smallest())
def test_another_familys_config_is_refused(name: str) -> None:
    config = older(name)
    for family in families().values():
        if family.from_hf is not family_of(config).from_hf:
            with pytest.raises(MalformedError, match=f"model_type='{config['model_type']}' is not "):
                family.from_hf(config)


@over(wrapped_names())
def test_a_wrappers_own_fields_are_read_as_strictly(name: str) -> None:
    text = older(name)
    assert "not understood: surprise=3" in refusal(wrapped(text, surprise=3))
    assert zoo.from_hf(wrapped(text, surprise=3), ignore_fields=["surprise"]) == zoo.spec(name)
    assert "not understood: surprise=3" in refusal(wrapped(text | {"surprise": 3}))
    assert "text_config must be an object, got [1]" in refusal(wrapped(text, text_config=[1]))
    assert "model_type='t5' is not " in refusal(wrapped(text, text_config=text | {"model_type": "t5"}))


def read_or_refused(config: dict[str, Any]) -> None:
    """A spec, or an error of one line."""
    try:
        outcome: Any = zoo.from_hf(config)
    except MalformedError as error:
        outcome = error
    assert isinstance(outcome, zoo.Decoder) or str(outcome).isprintable()


def damaged(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An object with each field missing, and holding each kind of wrong thing; so too in the objects it holds."""
    for field, held in values.items():
        yield {name: value for name, value in values.items() if name != field}
        for value in (None, True, -1, 3, 2**70, "yarn", [1], {"factor": []}):
            yield values | {field: value}
        if isinstance(held, dict):
            yield from (values | {field: inner} for inner in damaged(held))


@pytest.mark.parametrize(
    "spelling", [toys.config, *(pytest.param(each, marks=pytest.mark.slow) for each in (older, newer))]
)
@over(smallest())
def test_every_field_may_hold_anything(name: str, spelling: Callable[[str], dict[str, Any]]) -> None:
    for config in damaged(spelling(name)):
        read_or_refused(config)
