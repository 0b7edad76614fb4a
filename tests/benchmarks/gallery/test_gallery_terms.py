"""Terms, added up as the page adds them, are what the specs say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import zoo
from benchmarks.gallery import terms
from benchmarks.gallery.terms import BATCHES, Counted
from zoo.blocks import GLU, Branch
from zoo.errors import CheckFailed
from zoo.model.decoder import Decoder
from zoo.registry import swap

CONTEXTS = (1, 2, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 4096, 32_768, 131_072, 1_000_003)
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


def added(counted: Counted, context: int) -> dict[str, int]:
    """What the docstring of the terms says, in its words."""
    return {
        "params": sum(n * sum(run.params.values()) for n, run in counted),
        "active": sum(n * run.active for n, run in counted),
        "stored": sum(n * run.stored * run.seen(context) for n, run in counted),
        "flops": sum(n * run.flops(context) for n, run in counted),
    }


def said(spec: Decoder, context: int) -> dict[str, int]:
    """The same, by the spec."""
    return {
        "params": spec.params(),
        "active": spec.active_params(),
        "stored": spec.kv_bytes(context, dtype=torch.uint8),
        "flops": spec.flops(context - 1, 1),
    }


@pytest.fixture(params=zoo.names(), ids=str)
def spec(request: pytest.FixtureRequest) -> Decoder:
    return zoo.spec(request.param)


def test_the_terms_add_up_to_what_the_spec_says(spec: Decoder) -> None:
    counted = terms.runs(spec)
    for context in CONTEXTS:
        assert added(counted, context) == said(spec, context)
        for dtype in DTYPES:
            assert 7 * dtype.itemsize * added(counted, context)["stored"] == spec.kv_bytes(context, 7, dtype)


def test_so_do_the_parts(spec: Decoder) -> None:
    counted = terms.runs(spec)
    for kind, wanted in (("params", spec.param_breakdown()), ("fixed", spec.flop_breakdown(4095, 1))):
        found: dict[str, int] = {}
        for n, run in counted:
            parts = {**getattr(run, kind)}
            if kind == "fixed":
                parts = {
                    name: parts.get(name, 0) + run.per_seen.get(name, 0) * run.seen(4096)
                    for name in {*parts, *run.per_seen}
                }
            found = {name: found.get(name, 0) + n * parts.get(name, 0) for name in {*found, *parts}}
        assert found == {name: number for name, number in wanted.items() if number}


def test_what_a_step_reads_adds_up(spec: Decoder) -> None:
    """To rounding: experts are read in expectation, which is no whole number."""
    for i, batch in enumerate(BATCHES):
        read = sum(n * run.read[i] for n, run in terms.runs(spec))
        assert read == pytest.approx(spec.read_params(batch), rel=1e-12)


@dataclass(frozen=True)
class _Pairs(GLU):
    """A feed-forward whose cost grows with the square of the context, as no block's here does."""

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return (past + new) ** 2


def test_a_block_whose_costs_are_no_such_terms_is_refused() -> None:
    odd = swap(zoo.spec("llama3"), GLU, lambda ffn: _Pairs(ffn.hidden))
    with pytest.raises(CheckFailed, match=f"{Branch.__name__}: its costs are no sum of terms"):
        terms.runs(odd)
