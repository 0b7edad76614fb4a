"""The reports of every architecture, in memory and streamed: both have the same numbers."""

from __future__ import annotations

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
from tests.weights.checkpoints import read, write
from weights.reference import runs
from weights.reference.runs import chunk_sizes

Saved = Callable[[str], Path]
TOKENS = 80  # past 3 windows of 16 + 1


@cache
def in_memory(folder: Path, dtype: str) -> tuple[weights.ParityReport, list[str]]:
    """The report of a folder, and the modules of the reference's classes."""
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
    """Every distinct preset, those that are not chosen marked slow. A family's tests share a worker, and with it the
    reports in memory."""
    groups = {each.values[0]: [mark for mark in each.marks if mark.name != "slow"] for each in screen_by_family()}
    return [pytest.param(*each.values, marks=[*each.marks, *groups[each.values[0]]]) for each in split(groups, chosen)]


def assert_is_rounded(report: weights.ParityReport) -> None:
    """Each side has the error of its dtype."""
    rounded, eps = report.rounded, torch.finfo(getattr(torch, report.dtype)).eps
    assert rounded is not None
    assert min(rounded.zoo.rms, rounded.cached.rms, rounded.reference.rms) > eps / 8


@pytest.mark.parametrize("name", by_family([*of_families(most=1), *representatives()]))
@pytest.mark.parametrize("dtype", split(["float32", "bfloat16"], ["bfloat16"]))
def test_every_architecture_passes(saved: Saved, name: str, dtype: str) -> None:
    """In float64 at the bound, and in narrower dtypes no further from that than twice the reference's own error. The
    reference is of transformers' own classes."""
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
    """The same numbers in float64. In a narrower dtype it passes by itself; by default the report in memory is in the
    other one."""
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
