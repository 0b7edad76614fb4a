"""Serving at a batch against figures by hand: the step, its limit, the largest batch, and the crossover."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import one
from benchmarks.analytic.roofline import Device, device
from benchmarks.analytic.serving import serve_row
from benchmarks.analytic.weight_forms import PLAIN, RELEASED
from tests.presets import over
from zoo.architectures import families
from zoo.catalog import best_known, sizes
from zoo.errors import UsageError

H100 = device("h100")
FP8 = torch.float8_e4m3fn


def test_a_step_reads_the_weights_once_and_the_cache_of_each_sequence() -> None:
    model, spec = one("llama3.1-8b"), sizes()["llama3.1-8b"].spec
    token = 32 * 2 * 8 * 128 * 2  # bytes of the cache
    for batch in (1, 8, 64):
        row = serve_row(model, 8192, InferenceConfig(batch), H100)
        read = 2 * (spec.params() - (128_256 - batch) * 4096) + batch * 8192 * token
        assert row["step_s"] == pytest.approx(read / 3.35e12)
        assert row["sequence_tokens_per_s"] == pytest.approx(1 / row["step_s"])
        assert row["device_tokens_per_s"] == pytest.approx(batch / row["step_s"])
        free = 80_000_000_000 - 2 * spec.params()
        assert row["max_batch"] == free // (8192 * token)
        assert row["bound"] == ("bandwidth" if batch <= row["max_batch"] else "memory")


def test_the_crossover_is_the_first_context_whose_caches_are_more_bytes_than_the_weights_read() -> None:
    for name in ("llama3.1-8b", "gemma3-27b", "deepseek-v3"):
        model, config = one(name), InferenceConfig(8, cache=FP8)
        row = serve_row(model, 4096, config, H100)
        weights = config.costs(model.spec, 4095, 1).total.weight_bytes
        below, above = (model.spec.kv_bytes(row["crossover_context"] + n, 8, FP8) for n in (-1, 0))
        assert below <= weights < above


def test_a_model_of_states_alone_never_crosses_and_links_and_arithmetic_can_be_the_limit() -> None:
    model = one("llama3.1-8b")
    slow = replace(H100, link=1e6)
    assert serve_row(model, 1024, InferenceConfig(4, tp=8), slow)["bound"] == "links"
    weak = Device("weak", flops=1e12, bandwidth=3e12, memory=None)
    row = serve_row(model, 1024, InferenceConfig(64), weak)
    assert (row["bound"], row["max_batch"]) == ("arithmetic", None)


@over(families())
def test_a_larger_batch_is_slower_for_each_and_faster_together_and_the_largest_one_fits(family: str) -> None:
    model = one(best_known(family))
    config = InferenceConfig(1, RELEASED, FP8)
    context = min(model.spec.context or 4096, 4096)
    rows = [serve_row(model, context, replace(config, batch=batch), H100) for batch in (1, 4, 16)]
    assert [*map(speed, rows)] == sorted(map(speed, rows), reverse=True)
    together = [row["device_tokens_per_s"] for row in rows]
    assert together == sorted(together)
    most = rows[0]["max_batch"]
    for batch, fits in ((most, True), (most + 1, False)):
        if batch:
            row = serve_row(model, context, replace(config, batch=batch), H100)
            assert (row["weight_bytes"] + row["kv_bytes"] <= 80e9) == fits == (row["bound"] != "memory")


def speed(row: dict[str, float]) -> float:
    return row["sequence_tokens_per_s"]


def test_cards_share_the_weights_and_send() -> None:
    model = one("llama3.1-70b")
    alone, eight = (serve_row(model, 4096, InferenceConfig(8, tp=tp), H100) for tp in (1, 8))
    assert alone["max_batch"] == 0
    assert eight["max_batch"] > 8
    assert eight["sequence_tokens_per_s"] > alone["sequence_tokens_per_s"]


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(UsageError, match="--context 41000 is beyond qwen3-8b's context of 40960 tokens"):
        serve_row(one("qwen3-8b"), 41_000, InferenceConfig(1, PLAIN[torch.bfloat16]), H100)
