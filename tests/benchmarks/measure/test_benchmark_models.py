"""The models that are measured, their form, their weights, and the rows about those that do not fit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

import weights
import zoo
from benchmarks.measure import environment
from benchmarks.measure.benchmark_models import BenchmarkModel, Variant, benchmark_models, first_layers
from benchmarks.measure.runners import ThroughputConfig, workloads
from benchmarks.measure.throughput import needed_bytes, require_model_memory
from tests.presets import over
from zoo.architectures import families
from zoo.errors import NotAvailable, UsageError

CPU, F32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
WORKS = workloads(512, 128, [0, 4096], 1)


@over(zoo.names())
def test_the_first_layers_hold_every_kind_as_far_as_they_go(name: str) -> None:
    spec = zoo.spec(name)
    kinds = list(dict.fromkeys(spec.layers))
    for number in (1, len(kinds), len(kinds) + 2, len(spec.layers), 1000):
        kept = first_layers(spec, number).layers
        assert len(kept) == min(number, len(spec.layers))
        assert list(dict.fromkeys(kept)) == kinds[:number]
        assert not Counter(kept) - Counter(spec.layers)


def test_first_layers_keep_their_order() -> None:
    spec = zoo.spec("gemma3-270m")
    local, full = dict.fromkeys(spec.layers)
    assert first_layers(spec, 3).layers == (local, local, full)
    assert first_layers(spec, 7).layers == spec.layers[:7]


def test_without_names_every_architecture_is_measured() -> None:
    assert [model.label for model in benchmark_models([], Variant(tiny=True))] == list(families())


def test_variants_and_swaps() -> None:
    plain, starred = benchmark_models(["qwen3-8b"], Variant(layers=4, swaps=("GQA(window=64)",)))
    assert (plain.label, starred.label) == ("qwen3-8b", "qwen3-8b*")
    assert plain.spec == first_layers(zoo.spec("qwen3-8b"), 4)
    assert {layer.cache_spec().reach.limit for layer in starred.spec.layers} == {64}
    small, windowed = benchmark_models(["qwen3-8b"], Variant(tiny=True, swaps=("GQA(window=4096)",)))
    assert small.spec == zoo.spec("qwen3-8b", tiny=True)
    assert (plain.tiny, small.tiny) == (False, True)
    assert {layer.cache_spec().reach.limit for layer in windowed.spec.layers} == {16}  # toy, as all widths


def test_a_name_stands_for_one_model() -> None:
    with pytest.raises(UsageError, match="qwen3 is named twice"):
        benchmark_models(["qwen3", "llama3", "qwen3"], Variant())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model, saved."""
    weights.save(zoo.build("qwen3", tiny=True, seed=5), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_folder_with_weights_is_measured_with_them(folder: Path) -> None:
    (model,) = benchmark_models([str(folder)], Variant())
    assert model.label == "saved"
    assert model.spec == zoo.spec("qwen3", tiny=True)
    held, stored = model.build(CPU, F32, 0), zoo.build("qwen3", tiny=True, seed=5)
    for loaded, saved in zip(held.parameters(), stored.parameters(), strict=True):
        assert torch.equal(loaded, saved)


def test_another_variant_of_it_has_random_weights(folder: Path) -> None:
    (model,) = benchmark_models([str(folder)], Variant(layers=1))
    assert model.source is None
    plain, starred = benchmark_models([str(folder)], Variant(swaps=("rope=NoPE",)))
    assert plain.source is not None
    assert starred.source is None


def test_a_folder_with_a_config_alone_is_measured_with_random_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (model,) = benchmark_models([str(folder)], Variant())
    assert model.source is None


def test_released_weights_of_a_preset_come_from_the_cache_or_are_missed() -> None:
    with pytest.raises(NotAvailable, match="Qwen/Qwen3"):
        benchmark_models(["qwen3-0.6b"], Variant(released=True))


@pytest.mark.parametrize("name", ["gemma3-270m", "qwen3-0.6b", "gpt-oss-20b"])
def test_what_is_needed_covers_weights_and_caches(name: str) -> None:
    spec = zoo.spec(name)
    caches = sum(spec.kv_bytes(work.capacity, dtype=BF16) for work in WORKS)
    once = needed_bytes(spec, BF16, WORKS, 1)
    assert once > spec.params() * 2 + caches
    assert needed_bytes(spec, BF16, WORKS, 1, copies=2) - once == spec.params() * 2
    assert needed_bytes(spec, BF16, WORKS, 2) - once >= caches


def refused(names: list[str], free: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(environment, "free_memory", lambda device: free)
    with pytest.raises(NotAvailable) as error:
        require_model_memory(benchmark_models(names, Variant()), ThroughputConfig(WORKS, dtype))
    return str(error.value)


def test_what_does_not_fit_says_how_much_it_needs_and_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    told = refused(["llama3-8b"], 24 * 2**30, F32, monkeypatch)
    assert "llama3-8b (8.03B parameters) in float32 needs 32.4 GiB" in told
    assert "24 GiB is free" in told
    assert "--dtype bfloat16, --layers 2" in told
    assert told.endswith("--tiny")


def test_the_layers_that_would_fit_do_and_one_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 20 * 2**30
    told = refused(["qwen3-8b", "llama3-8b"], free, F32, monkeypatch)
    assert "qwen3-8b (8.19B parameters), llama3-8b (8.03B parameters) in float32 need" in told
    most = int(told.partition("--layers ")[2].partition(",")[0])

    def together(number: int) -> int:
        specs = (first_layers(zoo.spec(name), number) for name in ("qwen3-8b", "llama3-8b"))
        return sum(needed_bytes(spec, F32, WORKS, 1) for spec in specs)

    assert together(most) <= free < together(most + 1)


def test_what_fits_or_cannot_be_said_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (2**60, None):
        monkeypatch.setattr(environment, "free_memory", lambda device, free=free: free)
        models = [BenchmarkModel(benchmark_models(["llama3-8b"], Variant())[0].entry)]
        require_model_memory(models, ThroughputConfig(WORKS, F32))
