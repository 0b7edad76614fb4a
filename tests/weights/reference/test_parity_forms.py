"""The parity report of checkpoints as they are released: packed, multimodal, with experts one by one, in shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import weights
from tests.weights.checkpoints import Config, Tensors, read, write
from tests.weights.packers import packed_toy
from tests.weights.test_loading import fused, wrapped, wrapped_newer

Saved = Callable[[str], Path]
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
    """It passes, and a damaged copy does not."""
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
