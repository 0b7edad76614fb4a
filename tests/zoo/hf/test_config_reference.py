"""A config means what it means to the reference: as it writes it, with a field left out, and as people publish it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests import toys
from tests.configs import WRAPPERS, older, older_rotary, smallest, wrapped, wrapped_names
from tests.exact import assert_equal
from tests.presets import over
from tests.reference import exact_logits, toy_config, toy_reference
from weights.reference.model import causal_class
from zoo.architectures import families
from zoo.errors import MalformedError

TYPES = {model_type: family for family in families().values() for model_type in family.from_hf.model_types}
RENAMED = {"kimi_k2": "deepseek_v3"}  # the same computation, by a name that the reference does not have
SMALL = {"num_hidden_layers": 6, "vocab_size": 640}  # fields that every model_type has, not at their defaults
LISTS = ("layer_types", "no_rope_layers")  # one entry a layer


def reference_config(config: dict[str, Any]) -> Any:
    """The reference's reading of a config."""
    from transformers import AutoConfig

    kind = RENAMED.get(config["model_type"], config["model_type"])
    return AutoConfig.for_model(**deepcopy(config) | {"model_type": kind})


WEIGHTLESS = ("eps", "rope_parameters", "scaling_factor", "softcapping", "limit")  # of no parameter's shape
BUILT: dict[str, int] = {}  # a config -> its parameters


def reference_params(config: Any) -> int:
    """Parameters of the text part that the reference builds, once for configs that differ in `WEIGHTLESS` fields."""
    text = config.get_text_config()
    said = json.dumps({name: value for name, value in text.to_dict().items() if not is_weightless(name)}, default=str)
    if said not in BUILT:
        BUILT[said] = count_params(deepcopy(text))
    return BUILT[said]


def is_weightless(field: str) -> bool:
    return any(word in field for word in WEIGHTLESS)


def count_params(text: Any) -> int:
    text.pad_token_id = None  # may be outside a small vocabulary
    with torch.device("meta"):
        model = causal_class(text)._from_config(text)
    ends = ("e_score_correction_bias", "expert_bias", "layer_scalar")
    corrections = [name for name, _ in model.named_buffers() if name.endswith(ends)]
    counted = sum(weight.numel() for weight in model.parameters())
    return counted + sum(model.get_buffer(name).numel() for name in corrections)


def written(config: Any, folder: Path) -> list[dict[str, Any]]:
    """All that the reference writes of a config: the full dump, and the file."""
    config.save_pretrained(folder)
    return [json.loads(json.dumps(config.to_dict(), default=str)), json.loads((folder / "config.json").read_text())]


@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["defaults", "small"])
@pytest.mark.parametrize("model_type", TYPES)
def test_what_the_reference_writes_is_read(model_type: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    """For each model_type, of its class defaults and of other sizes: one spec, with as many parameters."""
    text = {"text_config": {"model_type": "mistral"} | sizes} if model_type == "mistral3" else {"text_config": sizes}
    config = reference_config({"model_type": model_type, **(text if model_type in WRAPPERS.values() else sizes)})
    inner = config.get_text_config()
    if getattr(inner, "layer_types", ()) is None:  # LFM2's mixture demands them
        inner.layer_types = ["full_attention"] * inner.num_hidden_layers
    if getattr(inner, "hidden_size_per_layer_input", 0) and sizes:  # a table of another vocabulary is refused by name
        with pytest.raises(MalformedError, match="vocab_size_per_layer_input=262144 is not supported, only 640"):
            zoo.from_hf(config.to_dict())
        inner.vocab_size_per_layer_input = inner.vocab_size
    specs = [zoo.from_hf(said | {"model_type": model_type}) for said in written(config, tmp_path)]
    assert specs[0] == specs[1]
    assert specs[0].params() == reference_params(config)
    for field in sizes:  # what the reference made of it: of Nemotron-H, a list says how many layers there are
        read = {"num_hidden_layers": len(specs[0].layers), "vocab_size": specs[0].vocab}[field]
        assert read == getattr(inner, field)


@pytest.mark.parametrize("value", ["absent", pytest.param("null", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", smallest())
def test_a_field_that_is_absent_is_the_references_default_or_demanded(name: str, value: str, tmp_path: Path) -> None:
    """Each field in turn. Where both read the config, they read the same; the reference says what it read in full."""
    base = toys.config(name)
    read = 0
    for field in base.keys() - {"model_type"}:
        config = {key: held for key, held in base.items() if key != field}
        config |= {} if value == "absent" else {field: None}
        try:
            spec = zoo.from_hf(config)
        except MalformedError:
            continue
        try:
            theirs = reference_config(config)
            params = reference_params(theirs)
        except Exception:  # it has no default either
            assert value == "null", field
            continue
        read += 1
        for said in written(theirs, tmp_path):
            assert zoo.from_hf(said) == spec, field
        assert params == spec.params(), field
    assert read > 3


@over(older_rotary())
def test_the_scaling_of_the_models_own_context(name: str) -> None:
    """YaRN and Llama 3's scaling without the context they stretch: the reference takes the model's."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}  # of Llama 4 no other is read
    llama = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for scaling in (yarn, llama):
        config = older(name, rope_scaling=scaling, initial_context_length=None)
        try:
            spec = zoo.from_hf(config)
        except MalformedError:  # a model_type without such scalings
            with pytest.raises(Exception, match="rope_parameters"):
                reference_config(config)
            continue
        scalings = {part.scaling for part in spec.walk() if isinstance(part, zoo.RoPE) and part.scaling}
        assert {part.original for part in scalings} == {config["max_position_embeddings"]}
        theirs = reference_config(config).rope_parameters
        full = theirs.get("full_attention", theirs.get("compress", theirs))
        assert full["original_max_position_embeddings"] == config["max_position_embeddings"]
        assert zoo.from_hf(older(name, rope_parameters=theirs, rope_scaling=None, initial_context_length=None)) == spec


def test_gpt_oss_stretches_its_context_where_it_does_not_say() -> None:
    """The reference's default is the released YaRN; that there is none has to be said."""
    config = older("gpt-oss-20b", rope_scaling=None, initial_context_length=None)
    assert zoo.from_hf(config) == zoo.spec("gpt-oss-20b")
    assert reference_config(config).rope_parameters["rope_type"] == "yarn"
    plain = config | {"rope_scaling": {"rope_type": "default"}}
    assert reference_config(plain).rope_parameters["rope_type"] == "default"
    spec = zoo.swap(zoo.spec("gpt-oss-20b"), zoo.RoPE, zoo.RoPE(1.5e5))
    assert zoo.from_hf(plain) == zoo.from_hf(plain | {"rope_parameters": {}, "rope_scaling": None}) == spec
    assert zoo.to_hf(spec)["rope_scaling"] == {"rope_type": "default"}


LLAMA, MOE = older("llama3.2-1b"), older("qwen3-30b-a3b")
DEEPSEEK = older("deepseek-v3-671b")
AS_RELEASED = {field: DEEPSEEK[field] for field in ("auto_map", "quantization_config")}
SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49_152, "max_position_embeddings": 8192,
    "rope_theta": 100_000, "rope_scaling": None, "is_llama_config": True, "rope_interleaved": False,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "unk_token_id": None,
}  # fmt: skip
GRANITE = {
    "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "head_dim": None, "vocab_size": 49_152, "max_position_embeddings": 2048,
    "rope_theta": 10_000, "rope_scaling": None, "attention_bias": True, "mlp_bias": True,
    "tie_word_embeddings": True,
}  # fmt: skip
CODER = {
    "qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0, "max_window_layers": 28,
    "rope_theta": 10_000_000, "max_position_embeddings": 262_144, "router_aux_loss_coef": 0.0,
}  # fmt: skip
# Configs as people publish them, and how many parameters their publishers count.
REAL: dict[str, tuple[dict[str, Any], int]] = {
    "saved by Unsloth": (LLAMA | {"unsloth_fixed": True, "unsloth_version": "2025.3.18", "pad_token_id": 128_004},
                         1_235_814_400),
    "a fine-tune": (LLAMA | {"_attn_implementation_autoset": True, "gradient_checkpointing": False, "use_cache": False,
                             "_flash_attn_2_enabled": True, "max_sequence_length": 4096}, 1_235_814_400),
    "SmolLM2 135M": (LLAMA | SMOLLM2, 134_515_008),
    "granite-3b-code": (LLAMA | GRANITE, 3_482_503_680),
    "Qwen3-Coder 30B-A3B": (MOE | CODER, 30_532_122_624),
    "Moonlight 16B-A3B": (older("moonlight-16b-a3b", auto_map=DEEPSEEK["auto_map"]), 15_960_108_544 + 1664),
    "Kimi-K2": (older("kimi-k2-1t", model_type="kimi_k2", **AS_RELEASED), 1_026_408_209_408 + 23_040),
    "medgemma": (wrapped(older("gemma3-4b", cache_implementation="hybrid")), 3_880_263_168),
}  # fmt: skip


@pytest.mark.parametrize("variant", REAL)
def test_configs_as_people_publish_them(variant: str) -> None:
    """With the parameters that are published, and that the reference builds."""
    config, params = REAL[variant]
    spec = zoo.from_hf(config)
    assert spec.params() == params
    read = {key: value for key, value in config.items() if key not in ("auto_map", "quantization_config")}
    assert reference_params(reference_config(read)) == params


@over(wrapped_names())
def test_the_text_part_says_whether_the_head_is_tied_and_then_the_wrapper(name: str) -> None:
    for inside, outside, tied in ((True, False, True), (False, True, False), (None, True, True), (None, False, False)):
        config = wrapped(older(name, tie_word_embeddings=inside), tie_word_embeddings=outside)
        assert zoo.from_hf(config).tied is tied
    assert zoo.from_hf(wrapped(older(name, tie_word_embeddings=True), tie_word_embeddings=None)).tied


# Forms of a config that no released model has: the preset, and the fields that differ.
OTHER_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("llama3.2-1b", {"attention_bias": True}),
    ("llama3.2-1b", {"mlp_bias": True}),
    *((name, {"head_dim": 24}) for name in ("olmo2-1b", "smollm3-3b")),
    *((name, {"first_k_dense_replace": 0}) for name in ("deepseek-v3-671b", "glm4.5-air-106b", "kimi-linear-48b-a3b")),
    *((name, {"num_dense_layers": 0}) for name in ("trinity-nano-6b", "lfm2-8b-a1b")),
]


@pytest.mark.parametrize(("name", "changes"), OTHER_FORMS)
def test_another_form_is_the_references(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    import weights

    config = toy_config(name, layers=4) | changes
    reference = toy_reference(config)
    reference.save_pretrained(tmp_path)
    model = weights.load(tmp_path, dtype=torch.float64)
    tokens = torch.randint(2, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_equal(model(tokens), exact_logits(config, reference, tokens))
    said = zoo.to_hf(model.spec)
    assert all(said[field] == value for field, value in changes.items())
    assert zoo.from_hf(said) == model.spec
