"""Changes after `compile()` are seen on the next pass: logits and gradients are those of the uncompiled model.

The eager backend shows, in seconds, what torch's compiler front end assumes.
"""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import zoo
from tests.exact import assert_as_near, assert_equal, differs
from tests.models import is_differentiated, randomised, tokens_of
from tests.presets import distinct, split
from zoo.core import inductor
from zoo.model.guards import ModelGuard, is_as_built
from zoo.model.module import Model

NAME = "qwen3"
# A mixture of experts, the rest each some ten seconds.
MODELS = split(distinct(), ["qwen3-30b-a3b"])

pytestmark = [
    pytest.mark.usefixtures("_float64"),
    pytest.mark.filterwarnings("ignore"),  # torch warns of its own code while it compiles
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def pair(name: str = NAME, dtype: torch.dtype = torch.float64) -> tuple[Model, Model]:
    """The same weights, uncompiled and compiled."""
    spec = zoo.spec(name, tiny=True)
    plain, fast = (randomised(spec).to(dtype) for _ in range(2))
    fast.compile(backend="eager")
    return plain, fast


def run(model: Model, tokens: Tensor) -> Tensor:
    """Logits of a pass over a cache. Guards are the same for every kind of pass."""
    return model(tokens, model.new_cache(*tokens.shape))


class Adapter(nn.Module):
    """A projection and a low-rank change of it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.base = base
        self.down = nn.Parameter(torch.randn(4, base.in_features, generator=generator) / 8)
        self.up = nn.Parameter(torch.randn(base.out_features, 4, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Flipped(torch.Tensor):
    """A tensor subclass with a linear map of its own, as quantised and sharded weights have."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out.as_subclass(Tensor).flip(-1) if func is nn.functional.linear else out


def block(model: Model) -> Any:
    return model.layers[0].attn.block


def first(model: Model) -> nn.Linear:
    """A projection of the first layer, whatever its mixer."""
    return next(part for part in model.layers[0].modules() if isinstance(part, nn.Linear))


def adapt(model: Model) -> None:
    for layer in model.layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Adapter(child))


def hook(model: Model) -> None:
    model.layers[-1].ffn.block.register_forward_hook(lambda module, args, out: out * 1.5)


def hook_before(model: Model) -> None:
    model.layers[0].register_forward_pre_hook(lambda module, args: (args[0] * 0.5, *args[1:]))


def hook_head(model: Model) -> None:
    model.norm.register_forward_hook(lambda module, args, out: -out)


def rescale(model: Model) -> None:
    block(model).scale *= 3.0


def patch(model: Model) -> None:
    linear = first(model)
    linear.forward = types.MethodType(lambda self, x: (x @ self.weight.T).flip(-1), linear)


def overwrite(model: Model) -> None:
    with torch.no_grad():
        first(model).weight.mul_(-1.0)


def point_elsewhere(model: Model) -> None:
    first(model).weight.data = first(model).weight.data.flip(0)


def assign(model: Model) -> None:
    state = {name: weight.flip(0).clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def turn(model: Model) -> None:
    """A column-major matrix."""
    linear = first(model)
    linear.weight = nn.Parameter(linear.weight.detach().T.contiguous().T)


def subclass(model: Model) -> None:
    linear = first(model)
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Flipped))


def exchange(model: Model) -> None:
    model.layers[0].ffn, model.layers[1].ffn = model.layers[1].ffn, model.layers[0].ffn


def replace_norm(model: Model) -> None:
    model.norm = nn.LayerNorm(model.spec.dim)


def untie(model: Model) -> None:
    head = nn.Linear(model.spec.dim, model.spec.vocab)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    model.head = head


def narrow(model: Model) -> None:
    model.to(torch.bfloat16)


EDITS: list[Callable[[Model], object]] = [
    adapt,
    hook,
    hook_before,
    hook_head,
    rescale,
    patch,
    overwrite,
    point_elsewhere,
    assign,
    turn,
    subclass,
    exchange,
    replace_norm,
    untie,
    Model.train,
]


# By default one after the other on one model, of each kind of change: in place, of a layout, a hook, a module, and all
# projections of all layers, which are compiled with all guards from then on.
IN_TURNS = [overwrite, turn, hook_head, replace_norm, adapt]


@torch.no_grad()
@pytest.mark.parametrize(
    "edits",
    [IN_TURNS, *(pytest.param([edit], marks=pytest.mark.slow) for edit in EDITS)],
    ids=lambda edits: edits[0].__name__ if len(edits) == 1 else "in turns",
)
def test_edits_after_compiling_are_seen(edits: list[Callable[[Model], object]]) -> None:
    plain, fast = pair()
    tokens = tokens_of(plain.spec, 1, 26)
    before = run(fast, tokens)
    for edit in edits:
        for model in (plain, fast):
            edit(model)
        expected = run(plain, tokens)
        assert_equal(run(fast, tokens), expected, edit.__name__)
        if edit not in (Model.train, turn):
            assert differs(before, expected), f"{edit.__name__} changes no logits, so that the test shows nothing"
        before = expected


@torch.no_grad()
def test_another_dtype_after_compiling_is_seen() -> None:
    plain, fast = pair()
    run(fast, tokens_of(plain.spec, 1, 26))
    for model in (plain, fast):
        narrow(model)
    assert_both_as_near(plain, fast)


def assert_both_as_near(plain: Model, fast: Model) -> None:
    """Two models of a narrow dtype, compiled and not, are as near to float64."""
    tokens = [tokens_of(plain.spec, 1, 26, seed) for seed in range(3)]
    compiled, uncompiled = ([run(model, each) for each in tokens] for model in (fast, plain))
    exact = copy.deepcopy(plain).double()
    assert_as_near(compiled, uncompiled, [run(exact, each) for each in tokens])


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_norms_cast_to_float32_after_compiling_are_seen(name: str) -> None:
    plain, fast = pair(name, torch.bfloat16)
    tokens = tokens_of(plain.spec, 1, 26)
    run(fast, tokens)
    for model in (plain, fast):
        for part in model.modules():
            if part is not model.norm and len(list(part.parameters())) == 1 and next(part.parameters()).ndim == 1:
                part.float()
    assert_both_as_near(plain, fast)


@torch.no_grad()
def test_a_hook_for_all_modules_is_called() -> None:
    _, fast = pair()
    tokens, called = tokens_of(fast.spec, 1, 26), []
    run(fast, tokens)
    handle = register_module_forward_hook(lambda module, args, out: called.append(module))
    try:
        run(fast, tokens)
    finally:
        handle.remove()
    assert {type(layer) for layer in fast.layers} <= {type(module) for module in called}
    called.clear()
    run(fast, tokens)
    assert not called


@pytest.mark.parametrize("name", MODELS)
def test_layers_that_are_unfrozen_get_their_gradients(name: str) -> None:
    """The last layer but one: a norm follows the last layer, so that the gradient of its output scale is nearly 0."""
    plain, fast = pair(name)
    tokens = tokens_of(plain.spec, 2, 30)
    for model in (plain, fast):
        model.requires_grad_(False)
        model(tokens)
        model.layers[-2].requires_grad_(True)
        model(tokens).square().mean().backward()
    unfrozen = f"layers.{len(plain.layers) - 2}."
    for (path, weight), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        # A stored scale, too: it was asked for.
        has_gradient = path.startswith(unfrozen) and (is_differentiated(path) or path.endswith("output_scale.weight"))
        assert (weight.grad is not None) == (other.grad is not None) == has_gradient, path
        if weight.grad is not None:
            assert_equal(other.grad, weight.grad, path)


@pytest.mark.parametrize("name", MODELS)
def test_one_model_serves_inference_and_gradients(name: str) -> None:
    """In any order: under inference_mode, under no_grad, with gradients, in train mode, and back."""
    plain, fast = pair(name)
    tokens = tokens_of(plain.spec, 1, 26)
    with torch.no_grad():
        expected = run(plain, tokens)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            assert_equal(run(fast, tokens), expected)
    fast.train()
    logits = fast(tokens)
    logits.square().mean().backward()
    plain(tokens).square().mean().backward()
    for (path, weight), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert (weight.grad is None) == (other.grad is None)
        if weight.grad is not None:
            assert_equal(other.grad, weight.grad, path)


@torch.no_grad()
def test_a_compiled_model_can_be_copied() -> None:
    """As with torch's own modules, the copy is not compiled; it can be."""
    plain, fast = pair()
    tokens = tokens_of(plain.spec, 1, 26)
    expected = run(fast, tokens)
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    overwrite(fast)
    for again in copies:
        assert again._compiled is None
        assert_equal(run(again, tokens), expected)
    again.compile(backend="eager")
    assert_equal(run(again, tokens), expected)


@torch.no_grad()
def test_every_compiled_function_drops_the_guards_on_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first alone: torch removes entries from the options that it is given."""
    filtered = []

    def guards(entries: Any) -> list[bool]:
        kept = torch.compiler.skip_guard_on_all_nn_modules_unsafe(entries)
        filtered.append(len(entries) - sum(kept))
        return kept

    monkeypatch.setattr(inductor, "_kept_guards", guards)
    made = []
    model = randomised(zoo.spec("gemma3-1b", tiny=True))
    model.compile(backend=lambda graph, inputs: made.append(graph) or graph)
    run(model, tokens_of(model.spec, 1, 26))
    assert len(filtered) == len(made) == 3
    assert all(filtered)


def test_a_guard_sees_what_compiled_code_relies_on_and_nothing_else() -> None:
    model = randomised(zoo.spec(NAME, tiny=True))
    guard = ModelGuard(model)
    overwrite(model)
    model.zero_grad()
    model(tokens_of(model.spec, 1, 5))
    assert guard.holds()
    for edit in (rescale, hook, adapt, narrow, turn):
        guard = ModelGuard(model)
        edit(model)
        assert not guard.holds(), edit
    block(model).table = torch.ones(3)
    guard = ModelGuard(model)
    block(model).table = torch.ones(3) * 2
    assert not guard.holds()


def test_fresh_layers_are_as_built_and_edited_ones_are_not() -> None:
    for name in zoo.names():
        spec = zoo.spec(name, tiny=True)
        for layer in dict.fromkeys(spec.layers):
            one, other = layer.build(spec.dim), layer.build(spec.dim).to(torch.bfloat16)
            assert is_as_built(one, other), name
    for edit in (rescale, patch, subclass, turn, adapt):
        model = zoo.build(NAME, tiny=True)
        edit(model)
        assert not is_as_built(model.layers[0], zoo.build(NAME, tiny=True).layers[0]), edit
