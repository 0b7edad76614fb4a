"""The loss of every architecture, and the gradient of each of its parameters, equal the released implementation's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

import weights
import zoo
from tests import toys
from tests.models import gradient_bound, has_compiler, is_recurrent, moved_gradients, randomised, tokens_of
from tests.presets import screen_by_family
from zoo.core.forward_context import recorded_routing
from zoo.model.module import Model

LENGTH = 40  # past two windows of 16 + 1
NEAR = 1e-5  # relative to a gradient's largest element


@dataclass
class Case:
    """A reference's weights in a folder, its loss, and the gradient of each parameter by the zoo's name."""

    folder: Path
    tokens: Tensor
    loss: float
    gradients: dict[str, Tensor]
    chosen: list[Tensor]  # expert ids of each layer with experts (tokens, k), in ascending order
    near: float  # how near gradients have to be, relative to a gradient's largest element
    rounding: dict[
        str, Tensor
    ]  # of streams and recurrences, how much gradients change with one rounding of the weights


@pytest.fixture(scope="module", params=screen_by_family(most=1))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(name: str, saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The gradients are saved by transformers as if they were weights, and loaded as such: both map every tensor as
    they map released ones."""
    gradients = tmp_path_factory.mktemp(f"{name}-gradients")
    reference = deepcopy(toys.reference(name))
    tokens = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    chosen: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        chosen.extend(ids.sort(-1).values for ids in args[1:2])

    hooks = []
    for path, module in reference.named_modules():
        if path.endswith("feed_forward.router"):  # Llama 4's experts are not told: a score of 0 is not chosen
            hooks.append(module.register_forward_hook(lambda _, args, out: chosen.append(out[0].nonzero()[:, 1:])))
        elif path.endswith(".experts"):
            hooks.append(module.register_forward_pre_hook(record))

    def loss_of(model: nn.Module) -> Tensor:
        return next_token_loss(model(tokens).logits, tokens)

    loss = loss_of(reference)
    loss.backward()
    for hook in hooks:
        hook.remove()
    spec = zoo.spec(name, tiny=True)
    near, rounding = gradient_bound(spec, reference, loss_of), {}
    own = {key: each.grad for key, each in reference.named_parameters() if each.grad is not None}
    if spec.streams or is_recurrent(spec):
        # A scale or bias of a head or of what mixes streams has few elements, each a sum of all tokens that cancel.
        moved = [moved_gradients(reference, loss_of, seed) for seed in range(3)]
        changes = {key: torch.stack([(each[key] - own[key]).abs() for each in moved]).amax(0) for key in own}
        rounding = by_our_names(reference, changes, tmp_path_factory.mktemp(f"{name}-rounding"))
    return Case(saved(name), tokens, loss.item(), by_our_names(reference, own, gradients), chosen, near, rounding)


@torch.no_grad()
def by_our_names(reference: nn.Module, values: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Values by the reference's names of its parameters, zeros where there is none -> the same by ours."""
    holder = deepcopy(reference)
    for key, parameter in holder.named_parameters():  # what chooses tokens has no gradient
        parameter.copy_(values.get(key, torch.zeros(())))
    for buffer in holder.state_dict().keys() - dict(holder.named_parameters(remove_duplicate=False)).keys():
        holder.get_buffer(buffer).zero_()  # the router's correction, which is not differentiated
    holder.save_pretrained(folder)
    return dict(weights.load(folder).named_parameters())


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def shifts_of_scores(model: Model) -> set[str]:
    """Biases of keys that are not rotated: they add the same to all scores of a query, which changes no softmax. Their
    gradients are zero but for rounding."""
    layers = enumerate(layer.mixer for layer in model.spec.layers)
    plain = [i for i, mixer in layers if isinstance(mixer, zoo.GQA) and mixer.bias and mixer.rope == zoo.NoPE()]
    return {f"layers.{i}.attn.block.k.bias" for i in plain}


def check(model: Model, case: Case, roundings: int = 1) -> None:
    """Loss, experts and the gradient of every parameter: by so many `roundings` of the weights where they change it."""
    model.zero_grad()
    with recorded_routing() as routing:
        loss = next_token_loss(model(case.tokens), case.tokens)
    loss.backward()
    assert abs(loss.item() - case.loss) <= case.near * case.loss
    for layer, chosen in zip(routing, case.chosen, strict=True):
        assert torch.equal(layer.chosen.flatten(0, -2).sort(-1).values, chosen)
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
            assert max(got.abs().max(), largest) <= NEAR * overall, parameter
            continue
        assert largest > 0, parameter
        most = max(case.near * largest, roundings * case.rounding.get(parameter, largest * 0).max())
        assert (got - expected).abs().max() <= most, parameter


def test_every_gradient_equals_the_reference(case: Case) -> None:
    """With and without activation checkpointing."""
    model = weights.load(case.folder)
    check(model, case)
    model.activation_checkpointing = True
    check(model, case)


def largest_difference(one: Model, other: Model) -> float:
    """Of the gradients of two equal models, each relative to the largest element of `other`'s."""
    pairs = [(a.grad, b.grad) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all((a is None) == (b is None) for a, b in pairs)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs if a is not None and b is not None)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
def test_a_compiled_layer_with_a_window_sinks_and_experts_has_the_same_gradients() -> None:
    """One layer, with all that compiled training has operators of its own for. The slow tests compile every family."""
    tiny = zoo.spec("gpt-oss-20b", tiny=True)
    spec = replace(tiny, layers=(next(layer for layer in tiny.layers if layer.cache_spec().reach.limit),))
    torch.compiler.reset()
    uncompiled, compiled = randomised(spec), randomised(spec)
    compiled.compile()
    tokens = tokens_of(spec, 2, LENGTH)
    for model in (uncompiled, compiled):
        next_token_loss(model(tokens), tokens).backward()
    assert largest_difference(compiled, uncompiled) <= NEAR
    torch.compiler.reset()


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.slow
def test_compiled_gradients_under_autocast_are_as_near_to_float32_as_uncompiled_ones() -> None:
    """Both differ by up to a tenth: bfloat16 rounds elsewhere where the compiler fuses. Where summands cancel, as those
    of a key's bias do, both are further off, and the compiled one by no more than twice as much. The router's biases
    choose the experts by clear margins, since a near tie may go either way and gradients then differ."""
    spec = zoo.spec("gpt-oss-20b", tiny=True)
    torch.compiler.reset()
    models = uncompiled, compiled, exact = [randomised(spec) for _ in range(3)]
    compiled.compile()
    tokens, chosen = tokens_of(spec, 2, LENGTH), []
    for model in models:
        for name, parameter in model.named_parameters():
            if name.endswith("router.weight"):
                parameter.data.mul_(0.01)
            elif name.endswith("router.bias"):
                parameter.data.copy_(0.5 * torch.arange(len(parameter)))
        with torch.autocast("cpu", torch.bfloat16, enabled=model is not exact), recorded_routing() as routing:
            loss = next_token_loss(model(tokens), tokens)
        loss.backward()
        chosen.append(torch.stack([layer.chosen.sort(-1).values for layer in routing]))
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])
    for name, parameter in exact.named_parameters():
        found = (model.get_parameter(name).grad for model in (uncompiled, compiled))
        usual, difference = ((gradient - parameter.grad).norm() for gradient in found)
        assert difference <= max(2 * usual, 0.15 * parameter.grad.norm()), name
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it traces
def test_a_traced_model_of_all_blocks_has_the_same_gradients() -> None:
    """Windows, sinks, experts of both routers, NoPE and MLA in one model: the compiler's tracing and differentiation,
    without the code generation that takes most of its time. One set of graphs serves all lengths, of one autocast."""
    sinks, latent, plain = (zoo.spec(name, tiny=True) for name in ("gpt-oss-20b", "deepseek-v3-671b", "smollm3-3b"))
    layers = (*dict.fromkeys(sinks.layers), latent.layers[-1], plain.layers[-1])
    spec = replace(sinks, layers=layers)
    assert len({type(part) for part in spec.walk()} & {zoo.GQA, zoo.MLA, zoo.MoE, zoo.NoPE, zoo.SoftmaxTopK}) == 5
    torch.compiler.reset()
    counters.clear()
    uncompiled, compiled = randomised(spec), randomised(spec)
    compiled.compile(backend="aot_eager")
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        for autocast in (False, True):
            for batch, length in ((2, 40), (3, 57), (2, 12)):
                tokens = tokens_of(spec, batch, length)
                for model in (uncompiled, compiled):
                    model.zero_grad()
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        loss = next_token_loss(model(tokens), tokens)
                    loss.backward()
                assert largest_difference(compiled, uncompiled) <= NEAR
            assert counters["stats"]["unique_graphs"] == (1 + autocast) * (len(layers) + 1)
    torch.compiler.reset()


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.slow
def test_every_compiled_gradient_equals_the_reference(case: Case) -> None:
    """With and without activation checkpointing. A compiled sum takes its summands one after the other, which rounds
    more often than the pairs of an uncompiled one."""
    torch.compiler.reset()
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        model = weights.load(case.folder)
        model.compile()
        check(model, case, roundings=2)
        model.activation_checkpointing = True
        check(model, case, roundings=2)
    torch.compiler.reset()
