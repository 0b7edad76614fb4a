"""Fields that no forward pass reads are ignored, those that name a feature only where it is off, all others refused.

The slow sweep is the proof: each ignored field is set on the reference, and its logits do not move.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests import toys
from tests.configs import newer, older, older_rotary, own, reads_share, smallest, wrapped, wrapped_names
from tests.presets import over
from tests.reference import randomise
from weights.reference.model import causal_class
from zoo.architectures import families
from zoo.catalog import family_of
from zoo.errors import MalformedError
from zoo.hf.config import COMMON, PARTIAL
from zoo.hf.fields import INERT, NEUTRAL, PATTERNS, VISION, alike, is_inert

# What each ignored field is set to, beside what the groups below say: values that are not the usual ones, and that the
# reference takes. Names that are matched by a pattern, and not listed, are here too.
VALUES: dict[str, list[Any]] = {
    **{name: [0.5] for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")},  # of a probability
    "_attn_implementation": ["eager", "sdpa"],
    "_attn_implementation_autoset": [True],
    "_attn_implementation_internal": ["sdpa"],
    "_experts_implementation": ["eager"],
    "_experts_implementation_internal": ["eager"],
    "_flash_attn_2_enabled": [True],
    "_num_labels": [5],
    "attention_dropout": [0.5],
    "attn_implementation": ["eager"],
    "bad_words_ids": [[[3]]],
    "begin_suppress_tokens": [[3]],
    "bos_token_id": [7],
    "boi_token_index": [500],
    "boi_token_id": [500],
    "cache_config": [{"batch_size": 2}],
    "cache_implementation": ["hybrid", "static"],
    "chat_template": ["{{ messages }}"],
    "chunk_size_feed_forward": [2],
    "compression_config": [{"quant_method": "x"}],
    "constraints": [[]],
    "dtype": ["float32"],
    "early_stopping": ["never", True],
    "eos_token_id": [9, [9, 10]],
    "eoi_token_id": [501],
    "experts_implementation": ["eager"],
    "finetuning_task": ["mnli"],
    "force_words_ids": [[[3]]],
    "forced_eos_token_id": [9],
    "exponential_decay_length_penalty": [[3, 1.5]],
    "id2label": [{"0": "no", "1": "yes", "2": "perhaps"}],
    "image_token_id": [502],
    "image_token_index": [502],
    "initializer_range": [0.9],
    "label2id": [{"no": 0, "yes": 1}],
    "model_type": [],  # which class is built
    "num_assistant_tokens_schedule": ["constant"],
    "output_attentions": [True],
    "output_hidden_states": [True],
    "output_router_logits": [True],
    "pad_token_id": [11],
    "problem_type": ["regression"],
    "processor_class": ["X"],
    "quantization": [{"group_size": 64, "bits": 4}],
    "quantization_config": [{"quant_method": "awq", "bits": 4}],  # the numbers are what the loader makes of the file
    "return_dict": [True, False],
    "router_aux_loss_coef": [0.5],
    "return_dict_in_generate": [True],
    "sequence_bias": [[[[3], 2.0]]],
    "stop_strings": [["x"]],
    "suppress_tokens": [[3]],
    "task_specific_params": [{"x": {"max_length": 3}}],
    "torch_dtype": ["float32"],
    "torchscript": [True],
    "transformers.js_config": [{"dtype": "q4"}],
    "unk_token_id": [12],
    "unsloth_fixed": [True],
    "unsloth_version": ["2024.9"],
    "use_cache": [False],
    "watermarking_config": [{"bias": 2.5}],
}
SOME: list[Any] = [True, 3]  # for all others


def refusal(config: Any, **options: Any) -> str:
    with pytest.raises(MalformedError) as caught:
        zoo.from_hf(config, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


@over(smallest())
def test_what_no_pass_reads_is_ignored_in_any_value(name: str) -> None:
    """All at once, in each of their values."""
    read = {"model_type", *(own(name, field) for field in COMMON.values())}  # by this family, if by no other
    values = {field: [*VALUES.get(field, SOME), "x", {}, [1]] for field in (INERT | VALUES.keys()) - read}
    for i in range(max(map(len, values.values()))):
        config = older(name, **{field: held[i % len(held)] for field, held in values.items()})
        assert zoo.from_hf(config) == zoo.spec(name)


@over(smallest())
def test_what_names_a_feature_is_read_where_it_is_off(name: str) -> None:
    read = {PARTIAL} if name in reads_share() else set()
    base = toys.config(name)  # few layers, since it is read often
    spec = zoo.from_hf(base)
    for field, off in NEUTRAL.items():
        if field in read:
            continue
        assert zoo.from_hf(base | {field: off}) == spec
        assert zoo.from_hf(base | {field: None}) == spec
        for on in (not off, {"0": [1]}, 0.5, "x"):
            config = base | {field: on}
            assert f"not understood: {field}={on!r} (only {off!r} is); pass --ignore-field NAME" in refusal(config)
            assert zoo.from_hf(config, ignore_fields=[field]) == spec


@over(smallest())
def test_an_unknown_field_that_is_null_counts_as_absent(name: str) -> None:
    assert zoo.from_hf(older(name, surprise=None, auto_map=None, architectures=None)) == zoo.spec(name)


@over(smallest())
def test_what_is_never_ignored(name: str) -> None:
    for field, value in (
        ("is_causal", False),
        ("original_max_position_embeddings", 4096),
        ("per_layer_config", {"0": {"hidden_size": 8}}),
        ("attention_chunk_size", 8192),
        ("experts_per_token_", 4),
        ("num_experts_per_token", 4),
    ):
        if field not in older(name) | newer(name):
            assert f"not understood: {field}={value!r}" in refusal(older(name, **{field: value}))
    if name not in older_rotary():
        return
    scaling = {"type": "linear", "factor": 2.0}
    for field in ("temperature", "pad_token_id", "unsloth_version", "surprise", "original_max_position_embeddings"):
        told = refusal(older(name, rope_scaling=scaling | {field: 7}, initial_context_length=None))
        assert f"rope_scaling.{field}=7" in told or "linear x2 as the scaling of RoPE is not supported" in told


@over([name for name in older_rotary() if name not in reads_share()])
def test_a_share_of_the_head_that_is_rotated_is_one(name: str) -> None:
    """The reference writes the share among the rope fields too."""
    config = newer(name)
    kinds = [entry for entry in config["rope_parameters"].values() if isinstance(entry, dict)]
    for rope in kinds or [config["rope_parameters"]]:
        rope["partial_rotary_factor"] = 1.0
    assert zoo.from_hf(config) == zoo.spec(name)


@over(smallest())
def test_other_heads_are_refused_by_name(name: str) -> None:
    config = older(name)
    named = family_of(config).from_hf.classes[config["model_type"]]
    stem = named.removesuffix("ForCausalLM")
    heads = "ForSequenceClassification ForTokenClassification ForQuestionAnswering ForRewardModel Model MTP"
    for other in (*heads.split(), "ForCausalLMEagle", "ForCausalLMEagle3"):
        message = refusal(older(name, architectures=[stem + other], surprise=3))
        assert f"architectures=['{stem}{other}'] is not read, only {named}" in message.replace('"', "'")
        assert zoo.from_hf(older(name, architectures=[stem + other]), ["architectures"]) == zoo.spec(name)
    assert "architectures=" in refusal(older(name, architectures=[named, stem + "Model"]))
    for odd in ("x", {named: 1}, [[named]], 3, [None]):
        assert "architectures=" in refusal(older(name, architectures=odd))
    for fine in ([named], [], None, named):
        assert zoo.from_hf(older(name, architectures=fine)) == zoo.spec(name)


@over(wrapped_names())
def test_other_heads_of_a_wrapper_are_refused_by_name(name: str) -> None:
    text = older(name)
    wrapper = wrapped(text)
    named = family_of(wrapper).from_hf.classes[wrapper["model_type"]]
    assert zoo.from_hf(wrapped(text, architectures=[named])) == zoo.spec(name)
    other = named.replace("ForConditionalGeneration", "ForSequenceClassification")
    assert f"architectures=['{other}'] is not read, only {named}" in refusal(wrapped(text, architectures=[other]))
    told = refusal(wrapped(text | {"architectures": [other]}))
    assert f"architectures=['{other}'] is not read, only " in told


def test_the_reference_has_the_classes() -> None:
    import transformers

    for family in families().values():
        for named in family.from_hf.classes.values():
            assert hasattr(transformers, named)


@over(smallest())
def test_code_of_its_own_is_read_where_it_was_released(name: str) -> None:
    """DeepSeek-V3's, and of no other family: elsewhere it may compute anything."""
    released = older("deepseek-v3-671b")["auto_map"]
    prefixed = {key: f"deepseek-ai/DeepSeek-V3--{code}" for key, code in released.items()}
    strange = {key: f"someone/DeepSeek-V3--{code}" for key, code in released.items()}
    changed = released | {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    theirs = older(name)["model_type"] == older("deepseek-v3-671b")["model_type"]
    for auto_map, read in ((released, theirs), (prefixed, theirs), (strange, False), (changed, False), ("x", False)):
        config = older(name, auto_map=auto_map)
        if read:
            assert zoo.from_hf(config) == zoo.spec(name)
        else:
            assert "not understood: auto_map=" in refusal(config)
    for odd in ({"AutoConfig": None}, {"AutoConfig": ["configuration_deepseek.DeepseekV3Config"]}, [1], 3):
        assert "not understood: auto_map=" in refusal(older(name, auto_map=odd))


def test_no_bool_is_alike_a_number() -> None:
    assert alike(1.0, 1)
    assert alike({}, {})
    assert not alike(True, 1.0)
    assert not alike(0, False)


def test_what_the_reference_drops_of_a_config_is_ignored() -> None:
    """Its own list of what samples: it drops these from each config that it reads."""
    from transformers import GenerationConfig

    assert [field for field in GenerationConfig._get_default_generation_params() if not is_inert(field)] == []


def test_every_pattern_has_names_in_the_sweep() -> None:
    for pattern in PATTERNS:
        assert sum(re.fullmatch(pattern, field) is not None for field in VALUES) >= 2
    assert all(is_inert(field) or field in VISION for field in VALUES), "the sweep sets what is not ignored"


def is_ignored(config: dict[str, Any], field: str, value: Any) -> bool:
    """Whether a field changes nothing in how a config is read. A family that reads it changes, or refuses it."""
    try:
        return zoo.from_hf(config | {field: value}) == zoo.from_hf(config)
    except MalformedError:
        return False


@cache
def toy(name: str, outside: bool = False) -> dict[str, Any]:
    """A preset at toy widths, with enough layers for each kind; in its wrapper where that is what is swept."""
    config = toys.config(name)
    if not outside:
        return config
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    wrapper = wrapped(config, mm_tokens_per_image=4) if config["model_type"].startswith("gemma") else wrapped(config)
    kind = {} if config["model_type"].startswith("gemma") else {"model_type": "pixtral", "head_dim": 16}
    return wrapper | {"vision_config": vision | kind, "image_token_index": 503}


def logits(config: dict[str, Any]) -> Tensor:
    """The reference's, every parameter random and the same for configs of equal shapes."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    known = AutoConfig.for_model(**config)
    pictured = AutoModelForImageTextToText._model_mapping
    kind = pictured[type(known)] if "text_config" in config else causal_class(known)
    model = kind._from_config(known, attn_implementation="eager", dtype=torch.float32)
    parts = [model.model.language_model, model.lm_head] if "text_config" in config else [model]
    for part in parts:  # without the vision tower, whose shapes some of the swept fields set
        randomise(part, seed=0)
    tokens = torch.randint(13, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model.eval()(tokens)
    return out[0] if isinstance(out, tuple) else out.logits


# Fields that the wrapper's reference reads for pictures, with another value than the usual one.
PICTURES = {"mm_tokens_per_image": 1, "multimodal_projector_bias": True, "projector_hidden_act": "silu",
            "spatial_merge_size": 1, "vision_feature_layer": -2}  # fmt: skip
SWEPT = [(name, False) for name in smallest()] + [(name, True) for name in wrapped_names()[-2:]]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Thousands of toy passes: on a busy machine, threads that wait for each other take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "outside"), SWEPT, ids=[f"{name}{'-wrapper' * outside}" for name, outside in SWEPT])
def test_the_reference_does_not_read_them(name: str, outside: bool) -> None:
    """Ignored names set on the reference's config, one at a time: its logits do not move."""
    config = toy(name, outside)
    before, moved, seen, unbuilt = logits(config), [], set(), []
    bound = 1e-5 * max(1.0, float(before.abs().max()))
    swept = {field: VALUES.get(field, SOME) for field in sorted(INERT | VALUES.keys())}
    swept |= {field: [off] for field, off in NEUTRAL.items() if is_ignored(config, field, off)}
    if outside:
        swept |= {field: [value] for field, value in PICTURES.items() if field in VISION}
    for field, values in swept.items():
        for value in values:
            levels = [config | {field: value}]
            if outside and field not in VISION:
                levels.append(config | {"text_config": config["text_config"] | {field: value}})
            for changed in levels:
                try:
                    after = logits(changed)
                except Exception as error:  # the reference does not run with this value; it must with another
                    unbuilt.append((field, value, f"{type(error).__name__}: {str(error)[:100]}"))
                    continue
                if after.shape != before.shape or (after - before).abs().max() > bound:
                    moved.append((field, value))
                seen.add(field)
    assert moved == []
    assert seen == {field for field, values in swept.items() if values}, unbuilt


@pytest.mark.slow
@pytest.mark.parametrize("name", smallest())
def test_the_reference_does_read_what_is_never_ignored(name: str) -> None:
    """The sweep would see a field that matters: without its causal mask, a model computes something else."""
    config = toy(name)
    assert (logits(config | {"is_causal": False}) - logits(config)).abs().max() > 1e-2
