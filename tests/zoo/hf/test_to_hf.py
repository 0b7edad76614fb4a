"""to_hf: every released size gets its published config; any other model an exact config, or an error that names why."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from tests.configs import older, own, settled
from tests.presets import distinct, over, screen_by_family
from tests.reference import published
from tests.swapped import DESCRIBABLE, INDESCRIBABLE
from weights.reference.model import causal_class
from zoo.architectures import families
from zoo.catalog import config_of, family_of
from zoo.errors import MalformedError, SpecError
from zoo.hf.fields import is_inert


def read_back(config: dict[str, Any]) -> zoo.Decoder:
    """Through a file's text."""
    return zoo.from_hf(json.loads(json.dumps(config, allow_nan=False)))


@over([*zoo.names(), *(f"tiny {name}" for name in distinct())])
def test_from_hf_inverts_to_hf(name: str) -> None:
    tiny, name = name.startswith("tiny "), name.removeprefix("tiny ")
    spec = zoo.spec(name, tiny)
    said = zoo.to_hf(spec)
    assert read_back(said) == spec
    same = [module for module in families().values() if any(zoo.spec(size, tiny) == spec for size in module.SIZES)]
    assert said["model_type"] in {known for module in same for known in module.from_hf.model_types}


@over(published())
def test_fields_equal_the_published_ones(name: str) -> None:
    """All but the fields on training and storage, and the width of dense layers where there are none."""
    theirs, ours = older(name), zoo.to_hf(zoo.spec(name))
    idle = {field for field in theirs if is_inert(field)} - {"model_type"}
    idle |= {"intermediate_size"} if "num_experts" in theirs or theirs.get("first_k_dense_replace") == 0 else set()
    shared = theirs.keys() & ours.keys() - idle
    assert len(shared) >= 10
    if (
        theirs["model_type"] != ours["model_type"]
    ):  # of Gemma 4's two classes one is written, with the fields of its own
        named = {"model_type", "architectures"}
        assert zoo.from_hf(theirs | {field: ours[field] for field in ours.keys() - theirs.keys() | named}) == zoo.spec(
            name
        )
        shared -= named
    stretched = theirs.get("rope_scaling") or {}
    for field in stretched.keys() - {"type"}:
        assert ours["rope_scaling"][field] == stretched[field], field
    if stretched:
        assert ours["rope_scaling"]["rope_type"] == stretched.get("type", stretched.get("rope_type"))
        shared -= {"rope_scaling"}
    for field in shared:  # the same, or what means the same: the width of LFM2's feed-forward is rounded
        assert ours[field] == theirs[field] or zoo.from_hf(theirs | {field: ours[field]}) == zoo.spec(name), field


@pytest.mark.parametrize("name", screen_by_family())
def test_the_reference_knows_the_class(name: str) -> None:
    from transformers import AutoConfig

    said = zoo.to_hf(zoo.spec(name, tiny=True))
    assert said["architectures"] == [causal_class(AutoConfig.for_model(**said)).__name__]


def test_real_numbers_are_written_as_such() -> None:
    """Also where a spec holds an int: strict readers of config.json refuse 40 for a field that is 40.0."""
    scaling = zoo.to_hf(zoo.spec("deepseek-v3-671b"))["rope_scaling"]
    written = [scaling[name] for name in ("factor", "beta_fast", "beta_slow")]
    assert [type(value) for value in (*written, zoo.to_hf(zoo.spec("gpt-oss-20b"))["swiglu_limit"])] == [float] * 4


@pytest.mark.parametrize("swapped", DESCRIBABLE)
def test_a_swap_that_a_config_can_describe(swapped: str) -> None:
    model_type, spec = DESCRIBABLE[swapped]
    said = zoo.to_hf(spec)
    assert said["model_type"] == model_type
    assert read_back(said) == spec


@pytest.mark.parametrize("swapped", INDESCRIBABLE)
def test_a_swap_that_none_can_describe_is_refused_by_name(swapped: str) -> None:
    spec, nearest, differs = INDESCRIBABLE[swapped]
    with pytest.raises(SpecError, match="no published config describes this model") as refused:
        zoo.to_hf(spec)
    assert f"The nearest, of {nearest}: " in str(refused.value)
    assert differs in str(refused.value)
    assert "\n" not in str(refused.value)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: list[Any] = [None, {"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}, YARN]
SCALINGS += [YARN | {"attention_factor": 1.5, "truncate": False}]
SCALINGS += [YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5}]
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.5, 2, 2.5, 3, 4, 5, 6, 7]}
SCALINGS += [LONGROPE, LONGROPE | {"factor": 4.0}, LONGROPE | {"attention_factor": 1.5}]
SCALINGS += [{"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.5, "high_freq_factor": 3.0}]
# Fields that few values make sense for; of the others an integer is 1 to 300, a number 1 to 1e6.
SOME = {
    "hidden_size": [32, 64, 192],
    "num_hidden_layers": [1, 3, 6, 12, 15],
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_group", "topk_group"), (1, 2, 4, 8)),
    "num_global_key_value_heads": [1, 2, 4],
    **dict.fromkeys(("head_dim", "qk_rope_head_dim"), (2, 8, 24, 32)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (8, 16)),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), (1, 2, 4)),
    "linear_num_key_heads": [1, 2, 4],
    "linear_attn_config": [
        {"num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 3, "full_attn_layers": [1, 3], "kda_layers": [2, 4]}
    ],
    "num_experts_per_tok": [1, 2],
    "q_lora_rank": [None, 8],
    "num_kv_shared_layers": [0, 1, 3],
    "partial_rotary_factor": [0.25, 0.75],
    "rope_parameters": [{"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}],
}
SOME |= {
    **dict.fromkeys(("n_groups", "mamba_n_groups"), (1, 2, 4)),
    **dict.fromkeys(("mamba_n_heads", "mamba_expand"), (2, 8)),
    "moe_latent_size": [None, 24],
    "num_dense_layers": [1, 3],
    "hybrid_override_pattern": ["M", "*-EM"],
    "position_embedding_type": ["rope", "nope"],
    "o_groups": [1, 4],
    "compress_rates": [{"compressed_sparse_attention": 2}, {"heavily_compressed_attention": 16}],
}
# What other fields say, unless nothing else does.
RESTATED = ("layer_types", "no_rope_layers", "experts_per_token", "initial_context_length", "n_ctx", "rotary_dim")
RESTATED += ("num_hidden_layers",)


def values_of(field: str, held: Any) -> st.SearchStrategy[Any]:
    """Other values of a field of a config."""
    if field == "rope_scaling":
        yarn = dict(rope_type=st.just("yarn"), factor=st.floats(1, 64), mscale=st.just(1.0))
        yarn |= dict(mscale_all_dim=st.sampled_from([0.5, 0.707, 1.0]))
        return st.sampled_from(SCALINGS) | st.fixed_dictionaries(yarn)
    if field in SOME:
        return st.sampled_from(SOME[field])
    if isinstance(held, bool):
        return st.booleans()
    if isinstance(held, int):
        return st.integers(1, 300)
    return st.floats(1, 1e6) if isinstance(held, float) else st.just(held)


def changed(config: dict[str, Any], field: str, value: Any) -> dict[str, Any] | None:
    """The config with another value of a field, None where that describes no model."""
    follows: dict[str, Any] = {}
    if "kv_lora_rank" in config and field == "num_attention_heads":
        follows = {"num_key_value_heads": value}
    if field == "vocab_size" and config.get("hidden_size_per_layer_input"):
        follows = {"vocab_size_per_layer_input": value}
    if field in ("num_kv_shared_layers", "use_double_wide_mlp") and not config["num_kv_shared_layers"]:
        follows = {"num_hidden_layers": 12} | ({} if field == "num_kv_shared_layers" else {"num_kv_shared_layers": 3})
    if "mamba_d_head" in config and field in ("hidden_size", "mamba_n_heads", "mamba_expand"):
        follows = {"mamba_d_head": "auto"}
    stretched = config.get("rope_scaling") or {}
    if field in ("qk_nope_head_dim", "qk_rope_head_dim") and "partial_rotary_factor" in stretched:  # the ratio of these
        follows["rope_scaling"] = {name: held for name, held in stretched.items() if name != "partial_rotary_factor"}
    if "long_factor" in stretched and field in ("head_dim", "partial_rotary_factor"):  # a factor for each rotated pair
        wide = {name: config.get(name, 1.0) for name in ("head_dim", "partial_rotary_factor")} | {field: value}
        pairs = int(wide["head_dim"] * wide["partial_rotary_factor"]) // 2
        follows["rope_scaling"] = stretched | {name: [1.5] * pairs for name in ("short_factor", "long_factor")}
    try:
        zoo.from_hf(other := config | {field: value} | follows)
    except MalformedError:
        return None
    return other


@cache
def plain(name: str) -> dict[str, Any]:
    """The config of a tiny model, without the fields that restate others."""
    spec = zoo.spec(name, tiny=True)
    config = zoo.to_hf(spec)

    def without(field: str) -> dict[str, Any]:
        return {other: value for other, value in config.items() if other != field}

    for field in RESTATED:
        try:
            config = without(field) if zoo.from_hf(without(field)).layers == spec.layers else config
        except MalformedError:
            continue
    return config


@pytest.mark.parametrize("name", screen_by_family(most=1))
@settings(max_examples=settings().max_examples // 2)
@given(st.data())
def test_any_config_that_is_read_can_be_written(name: str, data: st.DataObject) -> None:
    """Every field that `from_hf` reads, several at a time."""
    config = plain(name)
    for field in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=5)):
        config = changed(config, field, data.draw(values_of(field, config[field]))) or config
    spec = zoo.from_hf(config)
    assert read_back(zoo.to_hf(spec)) == spec


# Examples of values, for fields that are not in SOME: by the type of what they hold.
EXAMPLES: dict[type, list[Any]] = {int: [7, 48, 300], float: [2.5, 12345.0], bool: [True, False]}
# Fields with one value in all models of a model_type, and those that other fields settle.
ONE_VALUE = {"architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act"}
ONE_VALUE |= {"hidden_activation", "use_sliding_window", "scoring_func", "topk_method", "norm_topk_prob"}
ONE_VALUE |= {"rope_interleave", "moe_layer_freq", "attention_bias", "num_key_value_heads", "intermediate_size"}
ONE_VALUE |= {"sliding_window", "mlp_bias", "activation_function"}
ONE_VALUE |= {"topk_group"}  # of a single group, one is kept
ONE_VALUE |= {"mamba_d_head"}  # the model's width over the heads


@pytest.mark.parametrize("name", screen_by_family(most=1))
def test_every_field_alone(name: str) -> None:
    """Each field of a config in other values: what is read is written, and no field is left at one value. By the
    family alone; to choose among all of them takes 30 times as long, and is tested above."""
    config, untouched = plain(name), set()
    spec, family = zoo.from_hf(config), family_of(config)
    usual = {own(name, field): field for field in SOME}
    for field, held in config.items():
        some = SOME.get(usual.get(field, field), EXAMPLES.get(type(held), []))
        values = SCALINGS if field == "rope_scaling" else some
        others = {zoo.from_hf(other) for value in values if (other := changed(config, field, value))} - {spec}
        assert all(family.from_hf(config_of(family, other)) == other for other in others)
        if not others:
            untouched.add(field)
    plan = {field for field, held in config.items() if isinstance(held, list) and len(held) == len(spec.layers)}
    plan |= {"num_hidden_layers"} if plan else set()  # they agree
    allowed = ONE_VALUE | plan | settled(name) | family.from_hf.expected.keys()
    if config.get("n_group") == 1:
        allowed |= {"topk_group"}
    if all(layer.cache_spec().entries for layer in spec.layers):
        allowed |= {"rope_theta"}  # of layers without entries, beside which others have a base of their own
    assert untouched <= allowed


def _values() -> dict[str, list[Any]]:
    """Field name -> its values in all tiny models."""
    found: dict[str, dict[Any, None]] = defaultdict(dict)
    for name in distinct():
        for part in zoo.spec(name, tiny=True).walk():
            found |= {f.name: found[f.name] | {getattr(part, f.name): None} for f in fields(part)}
    return {name: list(values) for name, values in found.items()}


VALUES = _values()


@st.composite
def swapped_models(draw: st.DrawFn) -> zoo.Decoder:
    """A tiny model with up to three fields changed, each in all blocks that are equal."""
    spec = zoo.spec(draw(st.sampled_from(distinct())), tiny=True)
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(list(dict.fromkeys(spec.walk()))).filter(fields))
        name = draw(st.sampled_from([field.name for field in fields(part)]))
        held = getattr(part, name)
        options = [st.sampled_from(VALUES[name])]
        if isinstance(held, int) and not isinstance(held, bool):
            options.append(st.integers(1, 300))
        if isinstance(held, float):
            options.append(st.floats(1e-6, 1e6))
        try:
            spec = _replaced(spec, part, replace(part, **{name: draw(st.one_of(options))}))
        except SpecError:  # no such model
            continue
    return spec


def _replaced(spec: Any, old: zoo.Spec, new: zoo.Spec) -> Any:
    return new if spec == old else spec.map(lambda child: _replaced(child, old, new))


@given(swapped_models())
def test_any_model_gets_an_exact_config_or_is_refused(spec: zoo.Decoder) -> None:
    try:
        said = zoo.to_hf(spec)
    except SpecError:
        with pytest.raises(SpecError, match=r"The nearest, of \w+: .* is .* here, .* there"):
            zoo.to_hf(spec)
    else:
        assert read_back(said) == spec
