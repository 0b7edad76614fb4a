"""Cost terms, added up as the page does, equal the costs of the specs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch

import zoo
from benchmarks.gallery.cost_terms import BATCHES, Terms, model_terms
from tests.presets import of_families, split
from zoo.blocks import GLU, Branch
from zoo.errors import CheckFailed
from zoo.model.decoder import Decoder
from zoo.registry import swap

CONTEXTS = (1, 2, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 4096, 32_768, 131_072, 1_000_003)
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


def added_up(terms: Terms, context: int) -> dict[str, int]:
    """The sums in the docstring of cost_terms."""
    return {
        "params": sum(n * sum(each.params.values()) for n, each in terms),
        "active": sum(n * each.active_params for n, each in terms),
        "cache_elements": sum(n * each.elements(context) for n, each in terms),
        "float32_bytes": sum(n * each.state_float32_bytes for n, each in terms),
        "flops": sum(n * each.flops(context) for n, each in terms),
    }


def costs(spec: Decoder, context: int) -> dict[str, int]:
    """Returns the costs by the spec itself."""
    return {
        "params": spec.params(),
        "active": spec.active_params(),
        "cache_elements": spec.kv_bytes(context) - spec.kv_bytes(context, dtype=torch.uint8),
        "float32_bytes": 2 * spec.kv_bytes(context, dtype=torch.uint8) - spec.kv_bytes(context),
        "flops": spec.flops(context - 1, 1),
    }


@pytest.mark.parametrize("name", split(zoo.names(), of_families()))
def test_terms_add_up_to_the_costs_of_the_spec(name: str) -> None:
    """Parameters read by a decode step only up to rounding: the experts read are an expectation, not an integer."""
    spec = zoo.spec(name)
    terms = model_terms(spec)
    for context in CONTEXTS:
        cache = added_up(terms, context)
        assert cache == costs(spec, context)
        for dtype in DTYPES:
            nbytes = 7 * (dtype.itemsize * cache["cache_elements"] + cache["float32_bytes"])
            assert nbytes == spec.kv_bytes(context, 7, dtype)
    params, flops = Counter[str](), Counter[str]()
    for n, each in terms:
        growing = {part: growth.grown(4096) for part, growth in each.growing_flops.items()}
        for total, parts in ((params, each.params), (flops, each.fixed_flops), (flops, growing)):
            for part, number in parts.items():
                total[part] += n * number
    assert params == {part: number for part, number in spec.param_breakdown().items() if number}
    assert flops == {part: number for part, number in spec.flop_breakdown(4095, 1).items() if number}
    for i, batch in enumerate(BATCHES):
        assert sum(n * each.read_params[i] for n, each in terms) == pytest.approx(spec.read_params(batch), rel=1e-12)


@dataclass(frozen=True)
class _Quadratic(GLU):
    """A feed-forward whose FLOPs grow with the square of the context, unlike those of every block of the zoo."""

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return (past + new) ** 2


def test_block_with_nonlinear_costs_is_refused() -> None:
    odd = swap(zoo.spec("llama3"), GLU, lambda ffn: _Quadratic(ffn.hidden))
    with pytest.raises(CheckFailed, match=f"{Branch.__name__}: its costs are not a sum of terms"):
        model_terms(odd)
