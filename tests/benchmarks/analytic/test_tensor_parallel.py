"""Costs of one of several cards that hold a model together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import zoo
from benchmarks.analytic.kv import InferenceConfig, cache_row, crossing_row, fit_row
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.analytic.roofline import device, flop_row, forward_pass
from benchmarks.analytic.weight_forms import PLAIN
from benchmarks.options import DeviceOptions, InferenceOptions
from zoo.errors import SpecError, UsageError

EIGHT = InferenceConfig(tp=8)
H100 = device("h100")


def test_llama_70b_on_eight_cards_by_hand() -> None:
    """Two sums over ranks a layer and one of the embedding, of 8,192 elements in 2 bytes; one row of logits."""
    spec = zoo.spec("llama3.1-70b")
    sums, logits = (2 * 80 + 1) * 8192 * 2, 128_256 * 2
    sent = forward_pass(spec, "decode", 4096, EIGHT).sent_bytes
    assert sent == 2 * 7 / 8 * sums + 7 / 8 * logits
    row, whole = (flop_row(one("llama3.1-70b"), "decode", 4096, config, H100) for config in (EIGHT, InferenceConfig()))
    assert row["flops"] * 8 == whole["flops"]
    assert row["sending_seconds"] == pytest.approx(row["sent_bytes"] / 450e9, rel=1e-6)
    assert row["seconds"] == pytest.approx(
        (row["weight_bytes_read"] + row["kv_bytes"]) / 3.35e12 + row["sending_seconds"]
    )
    assert (whole["sent_bytes"], whole["sending_seconds"], whole["tp"], row["tp"]) == (0, 0, 1, 8)


def test_what_fits_is_counted_on_each_card() -> None:
    model = one("llama3.1-70b")
    alone, divided = (fit_row(model, 80 * 10**9, config) for config in (InferenceConfig(), EIGHT))
    assert alone["limit"] == "weights"
    assert divided["limit"] == "context"
    norms = (2 * 80 + 1) * 8192 * 2
    assert divided["weight_bytes"] == (alone["weight_bytes"] - norms) // 8 + norms  # every rank has the norms
    assert cache_row(model, 4096, EIGHT)["kv_bytes"] * 8 == cache_row(model, 4096, InferenceConfig())["kv_bytes"]


def test_latents_are_not_divided() -> None:
    """Every card keeps them; of Llama's eight KV heads it keeps one."""
    latent, heads = one("deepseek-v3-671b"), one("llama3.1-8b")
    assert cache_row(latent, 4096, EIGHT)["kv_bytes"] == cache_row(latent, 4096, InferenceConfig())["kv_bytes"]
    assert crossing_row(latent, heads, InferenceConfig())["smaller"] == "deepseek-v3-671b"
    assert crossing_row(latent, heads, EIGHT)["smaller"] == "llama3.1-8b"


def test_more_sequences_send_more() -> None:
    spec = zoo.spec("gpt-oss-120b")
    single, many = (forward_pass(spec, "decode", 4096, replace(EIGHT, batch=batch)) for batch in (1, 16))
    assert many.sent_bytes == 16 * single.sent_bytes
    assert forward_pass(spec, "decode", 4096, InferenceConfig(cache=torch.float16)).sent_bytes == 0
    narrow = replace(EIGHT, weights=PLAIN[torch.float8_e4m3fn])  # activations stay in 16 bits
    assert forward_pass(spec, "decode", 4096, narrow).sent_bytes == single.sent_bytes


def test_whole_experts_weigh_the_same_and_send_tokens() -> None:
    """Of 8 experts a token, each card sends what its share of the tokens needs, there and back."""
    whole = replace(EIGHT, ep=8)
    model = one("deepseek-v3-671b")
    by_width, by_expert = (fit_row(model, 10**12, config)["weight_bytes"] for config in (EIGHT, whole))
    assert by_expert == by_width
    sent = [forward_pass(model.spec, "prefill", 4096, config).sent_bytes for config in (EIGHT, whole)]
    rows, ids, counts = 2 * 8 * 7168 * 2 * 4096 / 8, 8 * 4 * 4096 / 8, 2 * 8 * 4
    assert sent[1] - sent[0] == pytest.approx(58 * 7 / 8 * (rows + ids + counts * 8 / 8), rel=1e-3)
    with pytest.raises(UsageError, match="--ep 4 with --tp 8"):
        replace(EIGHT, ep=4)


def test_models_that_cannot_be_divided_are_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    models = [one("llama3.1-70b"), one("qwen2.5-0.5b")]
    assert InferenceOptions(tp=8).divisible(models) == models[:1]
    assert capsys.readouterr().err == "left out, since 8 cards cannot divide them: qwen2.5-0.5b (heads=14)\n"
    with pytest.raises(SpecError, match="heads=14 cannot be divided among 8 ranks"):
        InferenceOptions(tp=8).divisible(models[1:])
    assert InferenceOptions().divisible(models) == models


def test_the_link_of_another_device_is_given() -> None:
    assert DeviceOptions(link=50).device().link == 50e9
    assert DeviceOptions(bandwidth=100, flops=2).device().link is None
    assert DeviceOptions(bandwidth=100, flops=2, link=8).device().link == 8e9
    for link in (0, -1, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--link"):
            DeviceOptions(link=link).device()
    model = NamedSpec("mine", zoo.spec("llama3.1-8b"))
    row = flop_row(model, "decode", 4096, EIGHT, DeviceOptions(bandwidth=100, flops=2).device())
    assert row["sending_seconds"] == 0 < row["sent_bytes"]
