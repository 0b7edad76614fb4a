"""What routers hand out: every router once a pass, in order, whatever runs around the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_map

import zoo
from tests.exact import assert_equal
from tests.models import has_compiler, randomised, tokens_of
from tests.presets import distinct, representatives, screen, split
from zoo.blocks import Router
from zoo.core.forward_context import RouterOutput, recorded_routing, recordings
from zoo.model.compile import CompiledModel
from zoo.model.module import Model


def mixtures(spec: zoo.Decoder) -> list[zoo.MoE]:
    return [part for layer in spec.layers for part in layer.walk() if isinstance(part, zoo.MoE)]


SPARSE = [name for name in distinct() if mixtures(zoo.spec(name, tiny=True))]
ONE = next(name for name in SPARSE if name.startswith("qwen3"))


@pytest.mark.parametrize("name", screen())
def test_each_router_hands_out_its_logits_and_its_choice(name: str) -> None:
    model = randomised(zoo.spec(name, tiny=True))
    tokens, inputs, chosen = tokens_of(model.spec, 2, 9), dict[int, Tensor](), dict[int, Tensor]()
    routers = [part for part in model.modules() if isinstance(getattr(part, "spec", None), Router)]
    for i, router in enumerate(routers):
        router.register_forward_pre_hook(lambda router, args, i=i: inputs.update({i: args[0]}))
        router.register_forward_hook(lambda router, args, out, i=i: chosen.update({i: out[1]}))
    with recorded_routing() as recorded:
        logits = model(tokens)
    assert len(recorded) == len(mixtures(model.spec)) == len(routers)
    for i, (output, spec) in enumerate(zip(recorded, mixtures(model.spec), strict=True)):
        bias, x = getattr(routers[i], "bias", None), inputs[i]
        if isinstance(spec.router, zoo.NormedSoftmaxTopK):
            x = routers[i].norm(x) * x.shape[-1] ** -0.5
        assert_equal(output.logits, F.linear(x, routers[i].weight, bias))
        assert output.logits.shape == (2, 9, spec.experts)
        assert output.chosen.shape == (2, 9, spec.router.k)
        assert torch.equal(output.chosen, chosen[i].view(output.chosen.shape))
    assert not recordings
    assert torch.equal(model(tokens), logits)


def test_passes_are_recorded_one_after_the_other_and_innermost() -> None:
    """Over a cache too, and nothing is recorded after an error or outside."""
    model = randomised(zoo.spec(ONE, tiny=True))
    tokens, layers = tokens_of(model.spec, 1, 7), len(mixtures(model.spec))
    with torch.inference_mode(), recorded_routing() as whole:
        model(tokens)
        with recorded_routing() as parts:
            cache = model.new_cache(1, 7)
            for part in tokens.split([4, 1, 2], dim=1):
                model(part, cache)
    assert (len(whole), len(parts)) == (layers, 3 * layers)
    for layer, output in enumerate(whole):
        joined = torch.cat([each.logits for each in parts[layer::layers]], dim=1)
        assert_equal(joined, output.logits)
    with pytest.raises(ZeroDivisionError), recorded_routing():
        _ = 1 / 0
    assert not recordings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_narrow_models_are_float32(dtype: torch.dtype) -> None:
    for name in SPARSE:
        model = randomised(zoo.spec(name, tiny=True), dtype=dtype)
        with torch.no_grad(), recorded_routing() as recorded:
            model(tokens_of(model.spec, 1, 3))
        assert {output.logits.dtype for output in recorded} == {torch.float32}


def recorded_logits(model: Model, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[RouterOutput]]:
    with recorded_routing() as recorded:
        return run(tokens_of(model.spec, 2, 12)), recorded


def loss_of(logits: Tensor, recorded: list[RouterOutput]) -> Tensor:
    return logits.square().mean() + sum(output.logits.logsumexp(-1).mean() for output in recorded)


def step(model: Model, run: Callable[[Tensor], Tensor]) -> tuple[list[RouterOutput], dict[str, Tensor]]:
    """What is recorded, and the gradients of a loss that depends on it and on the logits."""
    model.zero_grad()
    logits, recorded = recorded_logits(model, run)
    loss_of(logits, recorded).backward()
    return recorded, {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def assert_same(one: tuple[list[RouterOutput], dict[str, Tensor]], other: tuple[list[RouterOutput], dict]) -> None:
    assert len(one[0]) == len(other[0]) > 0
    for a, b in zip(one[0], other[0], strict=True):
        assert_equal(a.logits, b.logits)
        assert torch.equal(a.chosen, b.chosen)
    assert one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        assert_equal(other[1][name], grad, name)


def copied(module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """As the hooks of FSDP do, which may cast what they find in containers."""
    return tree_map(lambda each: each, (args, kwargs))


@pytest.mark.parametrize("name", split(SPARSE, representatives()))
def test_recomputed_layers_and_hooks_that_copy_containers_record_once(name: str) -> None:
    model = randomised(zoo.spec(name, tiny=True))
    expected = step(model, model)
    model.activation_checkpointing = True
    assert_same(expected, step(model, model))
    for module in (model, *model.layers):
        module.register_forward_pre_hook(copied, with_kwargs=True)
    assert_same(expected, step(model, model))


@pytest.fixture
def _compiler() -> Iterator[None]:
    if not has_compiler():
        pytest.skip("there is no C++ compiler")
    torch.compiler.reset()
    counters.clear()
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.parametrize(
    ("name", "backend"),
    [(ONE, "eager"), *(pytest.param(name, "inductor", marks=pytest.mark.slow) for name in SPARSE)],
)
def test_compiled_models_record_with_one_graph_for_each_distinct_layer(name: str, backend: str) -> None:
    spec = zoo.spec(name, tiny=True)
    plain, fast = (randomised(replace(spec, layers=spec.layers * 2)) for _ in range(2))
    fast.compile(backend=backend)
    expected = step(plain, plain)
    kinds = len(set(spec.layers))
    assert_same(expected, step(fast, fast))
    assert counters["stats"]["unique_graphs"] == kinds + 1
    fast.activation_checkpointing = True
    assert_same(expected, step(fast, fast))
    assert counters["stats"]["unique_graphs"] == kinds + 1
    fast(tokens_of(spec, 2, 12))  # without recording: other functions for the layers, the same for the head
    assert counters["stats"]["unique_graphs"] == 2 * kinds + 1
    assert_same(expected, step(fast, fast))
    assert counters["stats"]["unique_graphs"] == 2 * kinds + 1


@pytest.mark.usefixtures("_compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_model_inside_torch_compile_sees_that_it_is_recorded() -> None:
    model = randomised(zoo.spec(ONE, tiny=True))
    whole = torch.compile(model, fullgraph=True, backend="eager")
    whole(tokens_of(model.spec, 2, 12))
    assert_same(step(model, model), step(model, whole))


@pytest.mark.usefixtures("_compiler")
def test_a_cuda_graph_is_not_replayed_where_it_would_record_nothing() -> None:
    model = zoo.build(ONE, tiny=True)
    compiled = CompiledModel(model, {})
    assert compiled.functions().replayable
    assert not compiled.functions(recorded=True).replayable
