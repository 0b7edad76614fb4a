"""The list of blocks is complete, and the timed work of each block is that in its row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.measure import blocks
from benchmarks.measure.blocks import BlockConfig, BlockEntry, block_list, block_tasks, build_block, rows, run
from benchmarks.measure.environment import CPU
from benchmarks.measure.timing import Samples
from tests.benchmarks.fakes import time_alike
from zoo.blocks import HyperBranch
from zoo.core.cache import Cache
from zoo.errors import UsageError
from zoo.registry import Mixer, Spec

DIM = 256
LISTED = block_list(DIM)
CONFIG = BlockConfig(DIM, tokens=6, context=20)
# What a row cannot show: compositions of blocks, and scalings, which change a table that is made once a pass.
WITHOUT_A_ROW = {"Layer", "Decoder", "LinearScaling", "Llama3Scaling", "LongRoPE", "YarnScaling"}
WITHOUT_A_ROW |= {"LearnedPositions", "LogTemperature", "ProportionalRoPE"}  # tables likewise
WITHOUT_A_ROW |= {"LayerScale"}  # one multiplication
WITHOUT_A_ROW |= {"PerLayerInputs", "LayerInput"}  # two narrow projections, and what only a model has: its tokens
WITHOUT_A_ROW |= {"DenseAndMoE", "NormedSoftmaxTopK"}  # blocks that have rows, side by side; a norm before a router
WITHOUT_A_ROW |= {"KVSource", "SharedKV"}  # GQA, and GQA that needs another layer


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    time_alike(monkeypatch, blocks)


def test_no_kind_of_block_is_forgotten() -> None:
    """A new kind in zoo/ needs a line in benchmarks/measure/blocks.py, or here with the reason."""
    ours = {name for name, kind in Spec.kinds.items() if kind.__module__.startswith("zoo.")}
    measured = {type(node).__name__ for entry in LISTED for node in entry.spec.walk()}
    assert measured | WITHOUT_A_ROW == ours
    assert not measured & WITHOUT_A_ROW


def test_labels_are_unique_and_specs_differ() -> None:
    listed = block_list(1024)  # at the least width, two queries that share a key are all there are
    assert len({entry.label for entry in listed}) == len({entry.spec for entry in listed}) == len(listed)


def test_blocks_that_are_compared_have_equal_active_parameters() -> None:
    """Experts have as many active parameters as dense blocks, apart from the router."""
    by_label = {entry.label: entry.spec for entry in block_list(1024)}
    dense = by_label["SwiGLU"].params(1024)
    for label in ("MoE, softmax", "MoE, shared"):
        assert 0 < by_label[label].active_params(1024) - dense <= 16 * 1024 + 16


@pytest.mark.parametrize("dim", [1, 100, 384])
def test_a_width_that_heads_do_not_divide_is_refused(dim: int) -> None:
    with pytest.raises(UsageError, match="multiple of 256"):
        block_list(dim)


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry.label)
def test_a_row_says_what_the_block_is(entry: BlockEntry) -> None:
    samples = Samples()
    run([entry], CONFIG, samples)
    (row,) = rows([entry], CONFIG, samples)
    assert row["params"] == sum(
        weight.numel() for weight in build_block(entry.spec, DIM, torch.float32, 0).parameters()
    )
    assert (row["prefill_s"], row["decode_s"]) == (1.0, 1.0)
    assert len(row["prefill_seconds"]) == len(row["decode_seconds"]) == CONFIG.repeat
    if isinstance(entry.spec, Mixer):
        block = entry.spec.cache_spec().block  # 1, or the tokens of entries
        grown = [Cache([entry.spec.cache_spec()], 1, n * block, torch.float32, CPU).nbytes for n in (5000, 5001)]
        assert row["kv_bytes_per_token"] * block == grown[1] - grown[0]
        assert row["kv_fixed_bytes"] == grown[0] - 5000 * block * row["kv_bytes_per_token"]
    else:
        assert row["kv_bytes_per_token"] == row["kv_fixed_bytes"] == 0


@torch.no_grad()
@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry.label)
def test_what_is_timed_is_a_prefill_and_one_token(entry: BlockEntry) -> None:
    """Each is one call of the whole block; a mixer's token sees the whole context, or its window."""
    module, seen = build_block(entry.spec, DIM, torch.float32, 0), list[tuple[Any, ...]]()
    config = BlockConfig(DIM, tokens=6, context=600)
    tasks = list(block_tasks(entry, module, config))
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args))
    for task in tasks:
        step = task.prepare()
        before = len(seen)
        step()
        assert len(seen) == before + 1
    hook.remove()
    streams = (4,) if isinstance(entry.spec, HyperBranch) else ()
    assert [args[0].shape for args in seen] == [(1, 6, *streams, DIM), (1, 1, *streams, DIM)]
    if isinstance(entry.spec, Mixer):
        keys = [len(args[1].views[args[2].geometry].keys) for args in seen]
        kept = entry.spec.cache_spec()
        assert keys == ([6, kept.reach.pairs(599, 1)] if kept.per_token else [6, 1])


def test_a_block_measured_in_one_phase_only_has_no_row() -> None:
    samples = {("MHA", "prefill"): [1.0], ("MHA", "decode"): [1.0], ("GQA", "prefill"): [1.0]}
    assert [row["block"] for row in rows(LISTED, CONFIG, samples)] == ["MHA"]
