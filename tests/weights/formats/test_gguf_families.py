"""Every family's .gguf file gives the logits of the reference whose weights it holds."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weights
from tests.reference import toy_config
from tests.weights.formats.gguf_converter import KINDS, Case, fields, write
from tests.weights.packers import mxfp4, mxfp4_numbers
from zoo.architectures import families
from zoo.errors import MalformedError
from zoo.hf.config import Size


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], Case]:
    """Registers a preset "toy" with a case's dimensions."""

    def register(case: Case) -> Case:
        family = next(module for module in families().values() if case.name in module.SIZES)
        spec = family.from_hf(case.config)
        monkeypatch.setitem(family.SIZES, "toy", Size("toy", spec.params(), spec, released="2025-01"))
        return case

    return register


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_the_reference(
    name: str, toy: Callable[[Case], Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = toy(Case(name))
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(write(tmp_path / "x.gguf", case.kind, case.said, case.tensors))
    tokens, logits = case.logits()
    assert logits.abs().max() > 1
    assert (model(tokens) - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert re.search(r"x\.gguf does not say the layer pattern.*: taken from toy, of the same dimensions", caplog.text)


@torch.no_grad()
def test_mxfp4_experts(toy: Callable[[Case], Case], tmp_path: Path) -> None:
    """gpt-oss as released in .gguf files: parameters equal the unpacked codes."""
    case = toy(Case("gpt-oss-20b"))
    for name, tensor in list(case.tensors.items()):
        if name.endswith("exps.weight"):
            case.tensors[name] = mxfp4(tensor)
    model = weights.load(write(tmp_path / "x.gguf", case.kind, case.said, case.tensors))
    for i, layer in enumerate(model.layers):
        for part in ("gate", "up", "down"):
            numbers = mxfp4_numbers(*case.tensors[f"blk.{i}.ffn_{part}_exps.weight"]).float()
            assert torch.equal(getattr(layer.ffn.block.experts, part), numbers), (i, part)


def test_rope_freqs_must_be_the_presets(toy: Callable[[Case], Case], tmp_path: Path) -> None:
    case = toy(Case("llama3.1-8b"))
    case.tensors["rope_freqs.weight"] = case.tensors["rope_freqs.weight"] * np.float32(1.001)
    with pytest.raises(MalformedError, match=r"toy is nearest, but for another table of rope_freqs"):
        weights.load(write(tmp_path / "other.gguf", case.kind, case.said, case.tensors))
    case.tensors["rope_freqs.weight"] = np.ones(3, dtype=np.float32)
    with pytest.raises(MalformedError, match=r"toy is nearest, but for another table of rope_freqs"):
        weights.load(write(tmp_path / "short.gguf", case.kind, case.said, case.tensors))


def test_missing_rope_freqs_are_logged(
    toy: Callable[[Case], Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = toy(Case("llama3.1-8b"))
    del case.tensors["rope_freqs.weight"]
    with caplog.at_level(logging.INFO, "weights"):
        weights.load(write(tmp_path / "x.gguf", case.kind, case.said, case.tensors))
    assert "does not say the layer pattern, rope_freqs: taken from toy" in caplog.text


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"expert_count": 9}, "expert_count 9 instead of 8"),
        ({"expert_used_count": 2}, "expert_used_count 2 instead of 3"),
        ({"rope.scaling.factor": 16.0}, "rope.scaling.factor 16.0 instead of 32"),
        ({"attention.sliding_window": 17}, "attention.sliding_window 17 instead of 16"),
        ({"rope.scaling.type": "linear"}, "rope.scaling.type linear instead of yarn"),
    ],
)
def test_no_preset_is_an_error(
    change: dict[str, Any], phrase: str, toy: Callable[[Case], Case], tmp_path: Path
) -> None:
    case = toy(Case("gpt-oss-20b"))
    with pytest.raises(MalformedError, match=rf"toy is nearest, but for {re.escape(phrase)}"):
        weights.load(write(tmp_path / "x.gguf", case.kind, case.said | change, case.tensors))


def test_presets_that_differ_in_their_context_alone(tmp_path: Path) -> None:
    """Llama 3 and 3.1 with 8B have the same dimensions, and other positions."""
    from weights.formats.gguf_file import GGUFFile

    said = fields(toy_config("llama3-8b", 1), "llama") | {
        "block_count": 32,
        "embedding_length": 4096,
        "feed_forward_length": 14_336,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
    }
    said |= {"attention.key_length": 128, "attention.value_length": 128}
    for context, preset in ((8192, "llama3-8b"), (131_072, "llama3.1-8b")):
        path = write(tmp_path / f"{context}.gguf", "llama", said | {"context_length": context}, {})
        assert GGUFFile(path).preset[0] == preset


def test_a_head_stored_although_it_is_tied(toy: Callable[[Case], Case], tmp_path: Path) -> None:
    case = toy(Case("qwen3-0.6b"))
    case.tensors["output.weight"] = case.tensors["token_embd.weight"]
    assert weights.load(write(tmp_path / "same.gguf", case.kind, case.said, case.tensors)).head is None
    case.tensors["output.weight"] = case.tensors["token_embd.weight"] + 1
    with pytest.raises(MalformedError, match="differs from"):
        weights.load(write(tmp_path / "other.gguf", case.kind, case.said, case.tensors))
