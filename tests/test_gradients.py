"""The loss of every architecture, and the gradient of each of its parameters, equal the released implementation's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

import weights
import zoo
from tests import toys
from tests.exact import BOUND, assert_equal, in_float64
from tests.models import has_compiler, randomised, tokens_of
from tests.presets import screen_by_family
from zoo.core.forward_context import recorded_routing
from zoo.model.module import Model

LENGTH = 40  # past two windows of 16 + 1


@dataclass
class Case:
    """A reference's weights in a folder, its loss in float64, and the gradient of each parameter by the zoo's name."""

    folder: Path
    tokens: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


@pytest.fixture(scope="module", params=screen_by_family(most=1))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(name: str, saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    """transformers saves the gradients as if they were weights, and they are loaded as weights, so every tensor is
    mapped like a released one."""
    reference = deepcopy(toys.exact_reference(name))
    tokens = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with in_float64():
        loss = next_token_loss(reference(tokens).logits, tokens)
        loss.backward()
    folder = tmp_path_factory.mktemp(f"{name}-gradients")
    with torch.no_grad():
        for parameter in reference.parameters():  # what chooses tokens has no gradient
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
        for buffer in reference.state_dict().keys() - dict(reference.named_parameters(remove_duplicate=False)).keys():
            reference.get_buffer(buffer).zero_()  # the router's correction, which is not differentiated
    reference.save_pretrained(folder)
    gradients = dict(weights.load(folder, dtype=torch.float64).named_parameters())
    return Case(saved(name), tokens, loss.detach(), gradients)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def shifts_of_scores(model: Model) -> set[str]:
    """Biases of keys that are not rotated. They add the same amount to all scores of a query, which changes no softmax.
    Their gradients are zero but for rounding."""
    layers = enumerate(layer.mixer for layer in model.spec.layers)
    plain = [i for i, mixer in layers if isinstance(mixer, zoo.GQA) and mixer.bias and mixer.rope == zoo.NoPE()]
    return {f"layers.{i}.attn.block.k.bias" for i in plain}


def check(model: Model, case: Case) -> None:
    """Checks the loss and the gradient of every parameter."""
    model.zero_grad()
    loss = next_token_loss(model(case.tokens), case.tokens)
    loss.backward()
    assert_equal(loss.detach(), case.loss, "loss")
    parameters = dict(model.named_parameters())
    assert parameters.keys() == case.gradients.keys()
    overall, vanishing = max(each.abs().max() for each in case.gradients.values()), shifts_of_scores(model)
    for parameter, expected in case.gradients.items():
        got = parameters[parameter].grad
        largest = expected.abs().max()
        if not parameters[parameter].requires_grad:  # a router's correction, an indexer
            assert got is None, parameter
            assert largest == 0, parameter
            continue
        assert got is not None, parameter
        if parameter in vanishing:
            assert max(got.abs().max(), largest) <= BOUND * overall, parameter
            continue
        assert largest > 0, parameter
        assert_equal(got, expected.detach(), parameter)


def test_every_gradient_equals_the_reference(case: Case) -> None:
    """The gradients with activation checkpointing equal these (tests/zoo/model/test_activation_checkpointing.py)."""
    check(weights.load(case.folder, dtype=torch.float64), case)


def assert_equal_gradients(one: Model, other: Model) -> None:
    """Asserts that two equal models have equal gradients, each after a backward pass."""
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None and name not in shifts_of_scores(one):
            assert_equal(a.grad, b.grad, name)


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.slow
def test_compiled_gradients_under_autocast_are_as_near_to_exact_ones_as_uncompiled_ones() -> None:
    """Prompts have three lengths, which one set of graphs serves. The router's biases choose the experts by clear
    margins, since rounding to bfloat16 would decide near ties."""
    spec = zoo.spec("gpt-oss-20b", tiny=True)
    torch.compiler.reset()
    counters.clear()
    dtypes = {"uncompiled": torch.float32, "compiled": torch.float32, "exact": torch.float64}
    models = {kind: randomised(spec, dtype=dtype) for kind, dtype in dtypes.items()}
    models["compiled"].compile()
    errors: dict[tuple[str, str], list[Tensor]] = {}
    for model in models.values():
        for name, parameter in model.named_parameters():
            if name.endswith("router.weight"):
                parameter.data.mul_(0.01)
            elif name.endswith("router.bias"):
                parameter.data.copy_(0.5 * torch.arange(len(parameter)))
    for seed, length in enumerate((LENGTH, 57, 12)):
        tokens, chosen = tokens_of(spec, 2, length, seed), []
        for kind, model in models.items():
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=kind != "exact"), recorded_routing() as routing:
                loss = next_token_loss(model(tokens), tokens)
            loss.backward()
            chosen.append(torch.stack([layer.chosen.sort(-1).values for layer in routing]))
        assert torch.equal(chosen[0], chosen[1])
        assert torch.equal(chosen[0], chosen[2])
        for name, parameter in models["exact"].named_parameters():
            exact = parameter.grad
            for kind in ("uncompiled", "compiled"):
                error = models[kind].get_parameter(name).grad.double() - exact
                errors.setdefault((kind, name), []).append(error.square().mean() / exact.square().mean())
    for name, _ in models["exact"].named_parameters():
        compiled, uncompiled = (torch.stack(errors[kind, name]).mean().sqrt() for kind in ("compiled", "uncompiled"))
        assert compiled <= 2 * max(uncompiled, torch.finfo(torch.bfloat16).eps), name
    assert counters["stats"]["unique_graphs"] == len(set(spec.layers)) + 1
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it traces
def test_a_traced_model_of_all_blocks_has_the_same_gradients() -> None:
    """Windows, sinks, experts of both routers, NoPE and MLA in one model: the compiler's tracing and differentiation,
    without the code generation that takes most of its time. One set of graphs serves all lengths."""
    sinks, latent, plain = (zoo.spec(name, tiny=True) for name in ("gpt-oss-20b", "deepseek-v3-671b", "smollm3-3b"))
    layers = (*dict.fromkeys(sinks.layers), latent.layers[-1], plain.layers[-1])
    spec = replace(sinks, layers=layers)
    assert len({type(part) for part in spec.walk()} & {zoo.GQA, zoo.MLA, zoo.MoE, zoo.NoPE, zoo.SoftmaxTopK}) == 5
    torch.compiler.reset()
    counters.clear()
    uncompiled, compiled = (randomised(spec, dtype=torch.float64) for _ in range(2))
    compiled.compile(backend="aot_eager")
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        for batch, length in ((2, 40), (3, 57), (2, 12)):
            tokens = tokens_of(spec, batch, length)
            for model in (uncompiled, compiled):
                model.zero_grad()
                next_token_loss(model(tokens), tokens).backward()
            assert_equal_gradients(compiled, uncompiled)
        assert counters["stats"]["unique_graphs"] == len(layers) + 1
    torch.compiler.reset()


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.slow
def test_every_compiled_gradient_equals_the_reference(case: Case) -> None:
    """This holds with and without activation checkpointing."""
    torch.compiler.reset()
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        model = weights.load(case.folder, dtype=torch.float64)
        model.compile()
        check(model, case)
        model.activation_checkpointing = True
        check(model, case)
    torch.compiler.reset()
