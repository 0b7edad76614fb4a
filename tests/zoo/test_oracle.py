"""zoo.costs_of: what it takes, what it refuses, and that it opens nothing."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch

import zoo
from tests.presets import over
from tests.reference import published
from zoo.errors import MalformedError, SpecError, UsageError

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, hidden_act="silu")


def test_a_name_a_decoder_and_a_config_are_one_model() -> None:
    by_name, by_spec = zoo.costs_of("qwen3-8b", 100, 3), zoo.costs_of(zoo.spec("qwen3-8b"), 100, 3)
    by_config = zoo.costs_of(published()["qwen3-8b"]["config"], 100, 3)
    assert by_name.total == by_spec.total == by_config.total


def test_a_config_of_no_family_is_estimated() -> None:
    config = SMALL | {"model_type": "new_kind", "tie_word_embeddings": True}
    found = zoo.costs_of(config, 9, 1)
    assert (found.total.cache_bytes, found.estimated) == (10 * 4 * 2 * 32 * 2, True)
    assert not zoo.costs_of("qwen3").estimated


def test_dtypes_are_given_as_torchs_and_as_names_and_the_cache_may_have_its_own() -> None:
    whole, half = (zoo.costs_of("qwen3-8b", 99, 1, dtype=dtype).total for dtype in (torch.float32, "bf16"))
    assert (whole.weight_bytes, whole.cache_bytes) == (2 * half.weight_bytes, 2 * half.cache_bytes)
    assert whole.activation_bytes == 2 * half.activation_bytes
    mixed = zoo.costs_of("qwen3-8b", 99, 1, cache_dtype="fp8").total
    assert (mixed.weight_bytes, 2 * mixed.cache_bytes) == (half.weight_bytes, half.cache_bytes)
    narrow = zoo.costs_of("qwen3-8b", 99, 1, dtype="int4").total
    assert (4 * narrow.weight_bytes, narrow.activation_bytes) == (half.weight_bytes, half.activation_bytes)


@over(zoo.names())
def test_texts_for_tokens_mean_numbers(name: str) -> None:
    if (zoo.spec(name).context or 0) > 4096:
        assert zoo.costs_of(name, "4k", "1").total == zoo.costs_of(name, 4096, 1).total


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(past=-1), "past must be an integer or a text such as 32k, at least 0, got -1"),
        (dict(new=0), "new must be an integer or a text such as 32k, at least 1, got 0"),
        (dict(batch=-4), "batch must be an integer, at least 1, got -4"),
        (dict(batch=1.5), "batch must be an integer, at least 1, got 1.5"),
        (dict(tp=0), "tp must be an integer, at least 1, got 0"),
        (dict(past="1M"), "past=1048576 and new=1 tokens are beyond the model's context of 40960 tokens"),
        (dict(dtype="int3"), "unknown dtype 'int3'"),
        (dict(logits=2), "logits=2 positions are more than the new=1 tokens"),
        (dict(tp=2, ep=4), "ep"),
        (dict(tp=7), "cannot be divided among 7 ranks"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        zoo.costs_of("qwen3-8b", **arguments)
    assert said in str(refused.value)


def test_wrong_models_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown model 'qwen9'"):
        zoo.costs_of("qwen9")
    with pytest.raises(UsageError, match="a model is a name, a Decoder or a config as a dict, not a list"):
        zoo.costs_of([])  # type: ignore[arg-type]
    with pytest.raises(MalformedError, match="num_hidden_layers is missing"):
        zoo.costs_of({"model_type": "new"})
    with pytest.raises(MalformedError, match=r"not understood: .*tower=3"):
        zoo.costs_of(deepcopy(published()["qwen3-8b"]["config"]) | {"tower": 3})
    with pytest.raises(SpecError):
        zoo.costs_of("gpt2", tp=5)


def test_it_opens_no_file_and_imports_neither_weights_nor_benchmarks() -> None:
    code = """
import sys, zoo
zoo.costs_of("qwen3", 1, 1)
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event in ("open", "socket.connect") else None)
assert zoo.costs_of("deepseek-v3", 4095, 1, batch=8, tp=8, ep=8).by("layer", "op")
assert not opened, opened
assert not {"weights", "benchmarks", "huggingface_hub", "safetensors"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
