"""Arguments of public functions: what is understood, and what an error says."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

import zoo
from zoo.arguments import ABBREVIATIONS, STORED, count, element_bytes, find_dtype, token_count
from zoo.errors import UsageError


def test_dtypes_by_name() -> None:
    for name, dtype in STORED.items():
        assert find_dtype(name) == find_dtype(name.upper()) == find_dtype(f"torch.{name}") == find_dtype(dtype) == dtype
        assert element_bytes(dtype) == (Fraction(1, 2) if name == "int4" else dtype.itemsize)
    assert [find_dtype(word) for word in ("bf16", "fp16", "FP8")] == [
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
    ]
    assert all(find_dtype(word) == STORED[name] for word, name in ABBREVIATIONS.items())


@pytest.mark.parametrize(
    ("dtype", "computing", "message"),
    [
        ("bfloat", False, r"unknown dtype 'bfloat'; did you mean bfloat16"),
        (torch.int64, False, r"unknown dtype 'int64'"),
        (16, False, r"a dtype must be a torch\.dtype or its name, such as bfloat16, got 16"),
        ("fp8", True, r"float8_e4m3fn only stores values; layers compute in float32, bfloat16, float16, float64"),
    ],
)
def test_other_dtypes_are_refused(dtype: Any, computing: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_dtype(dtype, computing)


def test_numbers_of_tokens() -> None:
    for given, found in ((0, 0), (4096, 4096), ("32k", 32768), ("1M", 2**20), ("128,000", 128_000), ("0.5k", 512)):
        assert token_count(given, "context") == found
    for given in (-1, True, 1.5, None, [1]):
        with pytest.raises(UsageError, match=r"context must be an integer or a text such as 32k, at least 0, got"):
            token_count(given, "context")
    for text in ("much", "-1", "1.2", ""):
        with pytest.raises(UsageError, match=r"context: .* is not a number of tokens; write 4096 or 4k"):
            token_count(text, "context")
    with pytest.raises(UsageError, match="batch must be an integer, at least 1, got 0"):
        count(0, "batch")


def test_costs_take_names_and_refuse_nonsense() -> None:
    spec = zoo.spec("gemma3-27b")
    assert spec.kv_bytes("32k", dtype="bf16") == spec.kv_bytes(32768)
    assert spec.kv_bytes("32k", dtype="fp8") == spec.kv_bytes(32768, dtype=torch.int8) == spec.kv_bytes(32768) // 2
    assert spec.kv_bytes(32768, dtype="int4") == spec.kv_bytes(32768) // 4
    assert spec.kv_growth("int4") == (spec.kv_growth()[0] / 4, spec.kv_growth()[1] / 4)
    recurrent = zoo.spec("qwen3-next")  # states that are kept in float32 stay so
    assert recurrent.kv_bytes(0, dtype="int4") > recurrent.kv_bytes(0) / 2
    odd = replace(zoo.spec("qwen3", tiny=True), layers=zoo.spec("qwen3", tiny=True).layers[:1])
    odd = zoo.swap(odd, zoo.GQA, lambda attn: replace(attn, heads=1, kv_heads=1, head_dim=2, window=None))
    assert [odd.kv_bytes(n, dtype="int4") for n in (1, 2, 3)] == [2, 4, 6]
    for call in (
        lambda: spec.kv_bytes(-1),
        lambda: spec.kv_bytes(1024, batch=0),
        lambda: spec.kv_bytes(None),  # type: ignore[arg-type]
        lambda: spec.kv_bytes(1024, dtype="int3"),
        lambda: spec.flops(-1, 1),
        lambda: spec.flops(0, 0),
        lambda: spec.flops(0, 8, logits=-1),
        lambda: zoo.build("qwen3", tiny=True, dtype="fp8"),
        lambda: zoo.build(7),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError):
            call()
    assert zoo.build("qwen3", tiny=True, dtype="bfloat16").embed.weight.dtype == torch.bfloat16
