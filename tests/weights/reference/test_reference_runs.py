"""The reports of every architecture and released form, in memory and streamed: both have the same numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet

import weights
import zoo
from tests.presets import of_families, representatives, screen_by_family, split
from tests.ranks import in_process
from tests.weights.checkpoints import Config, Tensors, read, write
from tests.weights.packers import packed_toy
from tests.weights.test_loading import fused, wrapped, wrapped_newer
from weights.reference import runs
from weights.reference.runs import chunk_sizes
from zoo.architectures import llama3

Saved = Callable[[str], Path]
TOKENS = 80  # past 3 windows of 16 + 1


@cache
def in_memory(folder: Path, dtype: str) -> tuple[weights.ParityReport, list[str]]:
    """Returns the report of a folder, and the modules of the reference's classes."""
    made: list[str] = []
    load = runs.load_reference

    def watched(*given: Any) -> Any:
        model, origin = load(*given)
        made.append(type(model).__module__)
        return model, origin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load_reference", watched)
        return weights.parity(folder, dtype=dtype, tokens=TOKENS, streaming=False), made


def by_family(chosen: Iterable[str]) -> list[ParameterSet]:
    """Every distinct preset; those that are not chosen are marked slow. A family's tests share a worker, and thus the
    reports in memory."""
    groups = {each.values[0]: [mark for mark in each.marks if mark.name != "slow"] for each in screen_by_family()}
    return [pytest.param(*each.values, marks=[*each.marks, *groups[each.values[0]]]) for each in split(groups, chosen)]


def assert_is_rounded(report: weights.ParityReport) -> None:
    """Asserts that the error of each side is that of its dtype."""
    rounded, eps = report.rounded, torch.finfo(getattr(torch, report.dtype)).eps
    assert rounded is not None
    assert min(rounded.zoo.rms, rounded.cached.rms, rounded.reference.rms) > eps / 8


@pytest.mark.parametrize("name", by_family([*of_families(most=1), *representatives()]))
@pytest.mark.parametrize("dtype", split(["float32", "bfloat16"], ["bfloat16"]))
def test_every_architecture_passes(saved: Saved, name: str, dtype: str) -> None:
    """The logits are equal in float64; in narrower dtypes, the error is at most twice the reference's own. The
    reference has transformers' own classes."""
    report, made = in_memory(saved(name), dtype)
    assert made
    assert all(module.startswith("transformers.models.") for module in made)
    assert report.passed, str(report)
    assert len(report.parts) == sum(len(list(layer.branches())) for layer in zoo.spec(name, tiny=True).layers) + 2
    assert report.exact.scale > 1  # no noise
    assert_is_rounded(report)


def without_provenance(report: weights.ParityReport) -> weights.ParityReport:
    """The report without the fields that say how it was made."""
    return replace(report, streaming=False, reference="")


@pytest.mark.parametrize("name", by_family(representatives()))
@pytest.mark.parametrize("dtype", split(["float32", "bfloat16"], ["float32"]))
def test_streaming_gives_the_same_report(saved: Saved, name: str, dtype: str) -> None:
    """The numbers in float64 are the same. In the narrower dtype the report must pass by itself, since by default the
    report in memory is in another dtype."""
    parts = weights.parity(saved(name), tokens=TOKENS, dtype=dtype, streaming=True)
    whole, _ = in_memory(saved(name), "bfloat16")
    assert parts.streaming
    assert parts.passed, str(parts)
    assert_is_rounded(parts)
    same = without_provenance(whole)
    assert without_provenance(parts) == (
        same if dtype == whole.dtype else replace(same, dtype=dtype, rounded=parts.rounded)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streaming_finds_damage(saved: Saved, tmp_path: Path, dtype: str) -> None:
    """The report is equal to the one in memory in the narrower dtype, too."""
    config, tensors = read(saved("qwen3-30b-a3b"))
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    copy = write(tmp_path / "copy", config, tensors | {name: tensors[name] * 1.05}, shards=3)
    options = dict(reference=saved("qwen3-30b-a3b"), tokens=TOKENS, dtype=dtype)
    report, whole = (weights.parity(copy, **options, streaming=streaming) for streaming in (True, False))
    assert not report.passed
    assert str(report.first) == "layer 1's feed-forward"
    assert without_provenance(report) == without_provenance(whole)


@pytest.mark.parametrize("length", [2, 3, 5, 80, 257])
def test_chunks_are_the_whole_prompt(length: int) -> None:
    assert sum(chunk_sizes(length)) == length
    assert min(chunk_sizes(length)) >= 1


FP8_WIDTHS = {"hidden_size": 136, "moe_intermediate_size": 132, "kv_lora_rank": 144}  # blocks at the edge are partial


def fp8(saved: Saved) -> tuple[Config, Tensors]:
    return packed_toy("deepseek-v3-671b", 5, **FP8_WIDTHS)[:2]


def mxfp4(saved: Saved) -> tuple[Config, Tensors]:
    return packed_toy("gpt-oss-20b", 2)[:2]


def gemma3_wrapped(saved: Saved) -> tuple[Config, Tensors]:
    return wrapped(*read(saved("gemma3-4b")))


def mistral3_wrapped(saved: Saved) -> tuple[Config, Tensors]:
    return wrapped_newer(*read(saved("mistral-small-3.1-24b")))


def fused_experts(saved: Saved) -> tuple[Config, Tensors]:
    return fused(*read(saved("qwen3-30b-a3b")))


FORMS = {
    fp8: "model.layers.1.self_attn.o_proj.weight_scale_inv",
    mxfp4: "model.layers.1.self_attn.o_proj.weight",
    gemma3_wrapped: "language_model.model.layers.1.self_attn.o_proj.weight",
    mistral3_wrapped: "model.language_model.layers.1.self_attn.o_proj.weight",
    fused_experts: "model.layers.1.self_attn.o_proj.weight",
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_released_form(saved: Saved, tmp_path: Path, form: Callable, streaming: bool) -> None:
    """The form passes, and a damaged copy does not."""
    config, stored = form(saved)
    folder = write(tmp_path / "form", config, stored, shards=3)
    report = weights.parity(folder, tokens=80, streaming=streaming)
    assert report.passed, str(report)
    assert report.exact.scale > 1
    name = FORMS[form]
    changed = stored[name].clone()
    changed[0] *= 1.5  # a norm behind it would undo the same factor for all
    copy = write(tmp_path / "copy", config, stored | {name: changed})
    report = weights.parity(copy, reference=folder, tokens=80, dtype="float64", streaming=streaming)
    assert not report.passed
    assert str(report.first) == "layer 1's attention"


MB = 10**6


def checkpoint(folder: Path, layers: int, dim: int, hidden: int, vocab: int) -> Path:
    """A Llama in bfloat16 with a tied head, in shards of about a layer."""
    heads = dim // 128
    spec = llama3.decoder(
        **dict(layers=layers, dim=dim, heads=heads, kv_heads=heads, hidden=hidden, vocab=vocab, tied=True),
        **dict(rope=zoo.RoPE(1e4), context=4096),
    )
    layer = 2 * spec.layers[0].params(dim)
    weights.save(zoo.build(spec, dtype=torch.bfloat16), folder, shard_bytes=layer)
    return folder


def peak() -> int:
    """The peak memory of this process so far, in bytes. It is not ru_maxrss, which may begin with the peak of another
    process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def measured(small: str, large: str, tokens: int) -> tuple[bool, int, int]:
    """Returns whether the report of `large` passes, its number of parts, and the growth of the peak meanwhile. It must
    run in a separate process."""
    weights.parity(small, tokens=8, streaming=True)  # everything is imported
    before = peak()
    report = weights.parity(large, tokens=tokens, streaming=True)
    return report.passed, len(report.parts), peak() - before


SIZES = {
    "100 MB": dict(layers=8, dim=512, hidden=3072, vocab=2000),
    "2 GB": dict(layers=14, dim=2048, hidden=8192, vocab=32_000),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is of Linux")
@pytest.mark.parametrize("size", ["100 MB", pytest.param("2 GB", marks=pytest.mark.slow)])
def test_peak_memory_is_the_embedding_two_layers_and_the_activations(saved: Saved, tmp_path: Path, size: str) -> None:
    """The report is in float64, which takes the most memory."""
    shape, tokens, prompts = SIZES[size], 16, 3
    folder = checkpoint(tmp_path / "large", **shape)
    passed, parts, peak = in_process(measured, str(saved("llama3-8b")), str(folder), tokens)
    dim, hidden, vocab, layers = shape["dim"], shape["hidden"], shape["vocab"], shape["layers"]
    layer, embedding = 4 * dim * dim + 3 * dim * hidden, vocab * dim
    numbers = embedding + 2 * layer
    activations = 8 * prompts * tokens * (6 * vocab + 2 * layers * dim)  # logits, with what compares them; a cache
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert layers * layer > 3 * numbers  # the bound means something
    assert passed
    assert parts == 2 * layers + 2
    print(f"{peak / MB:.0f} MB peak, bound {8 * numbers / MB:.0f} + {activations / MB:.0f} + 30")
    assert peak <= 8 * numbers + activations + 30 * MB, f"{peak / MB:.0f} MB, of a file of {stored / MB:.0f}"
