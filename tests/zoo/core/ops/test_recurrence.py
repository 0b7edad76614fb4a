"""Recurrences: their chunked forms against a loop over tokens in float64, from any state and in any pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from tests.exact import assert_equal
from zoo.core.ops import recurrence
from zoo.core.ops.recurrence import (
    gated_delta_flops,
    gated_delta_rule,
    plain_gated_delta_rule,
    plain_state_space,
    state_space,
    state_space_flops,
)

BATCH, KEY_HEADS, HEADS, WIDTH, VALUE_WIDTH = 2, 2, 4, 8, 6
KINDS = "decay a head", "decay a channel", "state space"
LENGTHS = 1, 2, 63, 64, 65, 130


def inputs(kind: str, tokens: int, strength: float = 0.3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Returns the streams of `tokens` tokens, and a state that is not zero. Decays are from 0 to -2 `strength`."""
    q, k = (torch.randn(BATCH, tokens, KEY_HEADS, WIDTH, dtype=dtype) / WIDTH**0.5 for _ in range(2))
    v = torch.randn(BATCH, tokens, HEADS, VALUE_WIDTH, dtype=dtype)
    decay = -2 * strength * torch.rand(BATCH, tokens, HEADS, WIDTH, dtype=dtype)
    if kind == "state space":
        return [q, k, v, decay[..., 0], torch.randn(BATCH, HEADS, VALUE_WIDTH, WIDTH, dtype=dtype)]
    beta, state = (
        torch.rand(BATCH, tokens, HEADS, dtype=dtype),
        torch.randn(BATCH, HEADS, WIDTH, VALUE_WIDTH, dtype=dtype),
    )
    return [q, k, v, decay[..., :1] if kind == "decay a head" else decay, beta, state]


def run(kind: str, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    return (state_space if kind == "state space" else gated_delta_rule)(*given)


def token_by_token(kind: str, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    return (plain_state_space if kind == "state space" else plain_gated_delta_rule)(*given)


def assert_all_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_length_is_the_definition(kind: str, tokens: int) -> None:
    """Errors in narrower dtypes are compared with those of released layers in tests/zoo/blocks."""
    given = inputs(kind, tokens)
    assert_all_equal(run(kind, given), token_by_token(kind, given))
    assert all(x.dtype == torch.float32 for x in run(kind, [x.float() for x in given]))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_any_length_continue_from_the_state(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "CPU_SEGMENT", 64)
    *streams, state = inputs(kind, sum(LENGTHS))
    expected = token_by_token(kind, [*streams, state])
    outs = []
    for piece in zip(*(stream.split(LENGTHS, dim=1) for stream in streams), strict=True):
        out, state = run(kind, [*piece, state])
        outs.append(out)
    assert_all_equal((torch.cat(outs, dim=1), state), expected)


@torch.no_grad()
@pytest.mark.parametrize("strength", [3.0, 30.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_strong_decays_neither_overflow_nor_lose_the_rest(kind: str, strength: float) -> None:
    """A chunk's decays add up to far below the logarithm of the smallest number."""
    given = inputs(kind, 200, strength)
    given[3][:, 100:] *= 1e-3 / strength  # then weak ones
    assert all(x.isfinite().all() for x in run(kind, [x.float() for x in given]))
    assert_all_equal(run(kind, given), token_by_token(kind, given))


@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_definition(kind: str, tokens: int) -> None:
    given = [x[:1].requires_grad_() for x in inputs(kind, tokens)]
    weights = [torch.randn_like(x) for x in run(kind, given)]

    def gradients(form: object) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((a * b).sum() for a, b in zip(form(kind, given), weights, strict=True)), given)

    assert_all_equal(gradients(run), gradients(token_by_token))


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 65, 600])
@pytest.mark.parametrize("kind", KINDS)
def test_matrix_products_are_counted(kind: str, tokens: int) -> None:
    given = inputs(kind, tokens, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        run(kind, given)
    sizes = tokens, KEY_HEADS, HEADS, WIDTH, VALUE_WIDTH
    if kind == "state space":
        count = BATCH * state_space_flops(*sizes, causal=False)
    else:
        count = BATCH * gated_delta_flops(*sizes, per_channel=kind == "decay a channel", causal=False)
    assert counter.get_total_flops() == count
    products = 2 if kind == "state space" else 3
    flops = state_space_flops(*sizes) if kind == "state space" else gated_delta_flops(*sizes)
    assert flops == 2 * products * tokens * HEADS * WIDTH * VALUE_WIDTH


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_the_arithmetic_in_float32(kind: str) -> None:
    given = inputs(kind, 70, dtype=torch.float32)
    expected = run(kind, given)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(run(kind, given), expected, strict=True))


def test_initial_decays_span_the_published_ranges() -> None:
    rates, steps = recurrence.initial_decay_rates(5), recurrence.initial_time_steps(3)
    assert [round(math.exp(x), 6) for x in rates] == [1, 4.75, 8.5, 12.25, 16]
    assert [round(math.log1p(math.exp(x)), 6) for x in steps] == [0.001, 0.01, 0.1]
    assert len(recurrence.initial_decay_rates(1)) == len(recurrence.initial_time_steps(1)) == 1


def compiled(kind: str, backend: str) -> tuple[object, object]:
    """Returns `run` of one kind, traced without code generation, and the counter of its graphs."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(partial(run, kind), dynamic=True, fullgraph=True, backend=counter), counter


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it traces
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_serves_every_number_of_tokens(kind: str) -> None:
    torch.compiler.reset()
    traced, counter = compiled(kind, "eager")
    for tokens in (70, 64, 2, 65, 600):
        given = inputs(kind, tokens)
        assert_all_equal(traced(given), run(kind, given))
    assert counter.frame_count == 1
    given = inputs(kind, 1)
    assert_all_equal(traced(given), run(kind, given))
    assert counter.frame_count == 2  # the step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it traces
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_with_gradients_serves_every_number_of_chunks(kind: str) -> None:
    """One graph for several chunks, and one for a single chunk, which the compiler broadcasts."""
    torch.compiler.reset()
    traced, counter = compiled(kind, "aot_eager")
    for tokens, graphs in ((130, 1), (200, 1), (65, 1), (64, 2), (30, 2), (128, 2)):
        given = [x.requires_grad_() for x in inputs(kind, tokens)]
        found, expected = traced(given), run(kind, given)
        weights = [torch.randn_like(x) for x in expected]
        gradients, expected_gradients = (
            torch.autograd.grad(sum((a * b).sum() for a, b in zip(form, weights, strict=True)), given)
            for form in (found, expected)
        )
        assert_all_equal(found, expected)
        assert_all_equal(gradients, expected_gradients)
        assert counter.frame_count == graphs
