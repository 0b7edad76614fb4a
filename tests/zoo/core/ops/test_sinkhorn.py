"""Sinkhorn's normalisation: the operator that compiled code calls."""

import pytest
import torch
from torch.library import opcheck

from tests.exact import assert_equal
from zoo.core.ops.sinkhorn import _backward, _operator, doubly_stochastic

pytestmark = pytest.mark.usefixtures("_float64")


def test_the_operator_is_the_same_function_with_the_same_gradient() -> None:
    for iterations in (1, 2, 20):
        scores = torch.randn(2, 5, 4, 4, requires_grad=True)
        sent = torch.randn(2, 5, 4, 4)
        plain, operator = doubly_stochastic(scores, 1e-3, iterations), _operator(scores, 1e-3, iterations)
        assert torch.equal(plain, operator)
        expected, got = (torch.autograd.grad(result, scores, sent)[0] for result in (plain, operator))
        assert_equal(got, expected)
        assert expected.any()
        opcheck(_operator, (scores, 1e-3, iterations))
        opcheck(_backward, (sent, scores.detach(), 1e-3, iterations))


def test_compiled_code_calls_the_operator() -> None:
    calls: list[str] = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> object:
        calls.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    scores = torch.randn(3, 4, 4)
    compiled = torch.compile(doubly_stochastic, backend=backend, fullgraph=True)
    assert torch.equal(compiled(scores, 1e-6, 20), doubly_stochastic(scores, 1e-6, 20))
    assert calls == ["zoo.doubly_stochastic.default"]
