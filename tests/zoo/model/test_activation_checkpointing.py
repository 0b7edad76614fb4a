"""Layers that are computed again in the backward pass: the same gradients, and less kept for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import zoo
from tests.exact import assert_equal
from tests.models import has_compiler, randomised, tokens_of
from tests.presets import screen, split
from zoo.model import module
from zoo.model.module import Model


def step(model: Model, tokens: Tensor, recompute: bool) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Logits, bytes that autograd keeps for the backward pass, weights not counted, and each parameter's gradient."""
    weights, kept = {weight.data_ptr() for weight in model.parameters()}, [0]

    def count(tensor: Tensor) -> Tensor:
        kept[0] += 0 if tensor.data_ptr() in weights else tensor.nbytes
        return tensor

    model.activation_checkpointing = recompute
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = model(tokens)
    logits.square().mean().backward()
    return logits, kept[0], {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("name", screen())
def test_gradients_are_the_same(name: str) -> None:
    model = randomised(zoo.spec(name, tiny=True))
    tokens = tokens_of(model.spec, 2, 24)
    logits, kept, grads = step(model, tokens, recompute=False)
    again, fewer, recomputed = step(model, tokens, recompute=True)
    assert_equal(again, logits)
    assert fewer < kept / 2
    assert recomputed.keys() == grads.keys()
    for part, gradient in grads.items():
        assert_equal(recomputed[part], gradient, part)


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.parametrize("backend", split(["eager", "aot_eager", "inductor"], ["eager"]))
def test_a_compiled_model_recomputes_without_another_graph(backend: str) -> None:
    torch.compiler.reset()
    counters.clear()
    model = randomised(zoo.spec("llama3", tiny=True))
    model.compile(backend=backend)
    tokens = tokens_of(model.spec, 2, 24)
    _, kept, grads = step(model, tokens, recompute=False)
    graphs = counters["stats"]["unique_graphs"]
    _, fewer, recomputed = step(model, tokens, recompute=True)
    assert counters["stats"]["unique_graphs"] == graphs == len(set(model.spec.layers)) + 1
    assert fewer < kept / 2
    for part, gradient in grads.items():
        assert_equal(recomputed[part], gradient, part)
    torch.compiler.reset()


@torch.no_grad()
def test_nothing_is_recomputed_without_gradients_or_over_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def recorded(*args: object, **options: bool) -> object:
        calls.append(args)
        return checkpoint(*args, **options)

    monkeypatch.setattr(module, "checkpoint", recorded)
    model = randomised(zoo.spec("qwen3", tiny=True))
    model.activation_checkpointing = True
    tokens = tokens_of(model.spec, 1, 4)
    model(tokens)
    with torch.enable_grad():
        model(tokens, model.new_cache(1, 4))
        assert not calls
        model(tokens)
    assert len(calls) == len(model.spec.layers)


def test_hooks_and_frozen_parts_are_honoured() -> None:
    model = randomised(zoo.spec("qwen3", tiny=True))
    model.embed.requires_grad_(False)
    model.layers[0].register_forward_hook(lambda module, args, out: 2 * out)
    tokens = tokens_of(model.spec, 2, 6)
    (logits, _, grads), (again, _, recomputed) = (step(model, tokens, flag) for flag in (False, True))
    assert_equal(again, logits)
    assert "embed.weight" not in grads
    assert recomputed.keys() == grads.keys()
    for part, gradient in grads.items():
        assert_equal(recomputed[part], gradient, part)
