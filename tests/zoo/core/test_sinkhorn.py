"""Sinkhorn's normalisation: what it converges to, and the operator that compiled code calls."""

import torch
from torch.library import opcheck

from zoo.core.sinkhorn import _backward, _operator, doubly_stochastic


def test_mixtures_neither_grow_nor_shrink() -> None:
    """Rows and columns add up to one after a few iterations, whatever the scores."""
    matrix = doubly_stochastic(3 * torch.randn(100, 4, 4, dtype=torch.float64), 1e-6, 200)
    for axis in (-1, -2):
        torch.testing.assert_close(matrix.sum(axis), torch.ones(100, 4, dtype=torch.float64), rtol=0, atol=1e-4)
    assert (matrix > 0).all()


def test_the_operator_is_the_same_function_with_the_same_gradient() -> None:
    for iterations in (1, 2, 20):
        scores = torch.randn(2, 5, 4, 4, dtype=torch.float64, requires_grad=True)
        sent = torch.randn(2, 5, 4, 4, dtype=torch.float64)
        plain, operator = doubly_stochastic(scores, 1e-3, iterations), _operator(scores, 1e-3, iterations)
        assert torch.equal(plain, operator)
        expected, got = (torch.autograd.grad(result, scores, sent)[0] for result in (plain, operator))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
        assert expected.abs().max() > 1e-3
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
