"""The bias update evens out loads, on one rank and on several, and routers that cannot learn are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import zoo
from tests.exact import BOUND, assert_equal
from tests.models import randomised, tokens_of
from tests.presets import distinct, over
from tests.ranks import in_ranks
from zoo.blocks.routers import routers_of
from zoo.core.forward_context import ForwardContext, RouterOutput, recorded_routing
from zoo.errors import UsageError
from zoo.training.routing import require_trainable_routers, update_router_bias


def router_kinds(spec: zoo.Decoder) -> set[type]:
    return {type(part) for part in spec.walk() if part.role == "router"}


TINY = [zoo.spec(name, tiny=True) for name in distinct()]
SIGMOID = next(replace(spec, layers=spec.layers * 2) for spec in TINY if zoo.GroupedSigmoidTopK in router_kinds(spec))
SOFTMAX = next(spec for spec in TINY if router_kinds(spec) == {zoo.SoftmaxTopK})
RATE = 0.5


def recorded(model: nn.Module, tokens: Tensor) -> list[RouterOutput]:
    with recorded_routing() as routing:
        model(tokens).square().mean().backward()
    return routing


def corrections(model: nn.Module) -> list[Tensor]:
    return [router.correction.detach().clone() for router in routers_of(model)]


def test_each_correction_moves_by_the_rate_towards_equal_loads() -> None:
    model = randomised(SIGMOID)
    before, routing = corrections(model), recorded(model, tokens_of(model.spec, 2, 13))
    assert len(routing) == len(before) > 1
    update_router_bias(model, routing, RATE)
    for old, new, output in zip(before, corrections(model), routing, strict=True):
        loads = [sum(e in chosen for chosen in output.chosen.flatten(0, 1).tolist()) for e in range(len(old))]
        mean = sum(loads) / len(loads)
        signs = [(load < mean) - (load > mean) for load in loads]
        assert_equal(new - old, RATE * torch.tensor(signs, dtype=torch.float64))
        assert len(set(signs)) > 1
    assert all(router.correction.grad is None for router in routers_of(model))


def test_an_optimiser_leaves_corrections_alone() -> None:
    """Even one that is given all parameters and decays them, after the whole model was asked for gradients."""
    model = randomised(SIGMOID).requires_grad_(True)
    before = corrections(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    recorded(model, tokens_of(model.spec, 1, 5))
    optimiser.step()
    assert all(map(torch.equal, before, corrections(model)))


def test_other_routers_have_nothing_to_move_and_outputs_must_be_of_the_model() -> None:
    model = randomised(SOFTMAX)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    routing = recorded(model, tokens_of(SOFTMAX, 1, 5))
    update_router_bias(model, routing, RATE)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(UsageError, match="router outputs for"):
        update_router_bias(model, routing * 2, RATE)


def largest_excess(rate: float) -> float:
    """Train a mixture of experts on inputs that lie on one side; the busiest expert's load over the mean, less one, at
    the end (Wang et al. 2024, eq. 4)."""
    generator = torch.Generator().manual_seed(0)
    spec = zoo.MoE(8, zoo.GLU(4), zoo.GroupedSigmoidTopK(k=2, groups=2, keep=2, scale=1.0))
    moe = spec.build(16)
    with torch.no_grad():
        for weight in moe.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
        moe.router.correction.zero_()
    optimiser = torch.optim.AdamW([w for w in moe.parameters() if w.requires_grad], lr=3e-3)
    side, target = torch.randn(2, 16, generator=generator)
    for _ in range(80):
        x = torch.randn(1, 128, 16, generator=generator) + 2 * side
        ctx = ForwardContext(torch.arange(1), {}, {}, [])
        loss = (moe(x, ctx) - x.roll(1, -1) * target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_router_bias(moe, ctx.routing, rate)
    counts = ctx.routing[0].counts().double()
    return (counts.max() / counts.mean()).item() - 1


def test_loads_even_out_while_a_router_learns() -> None:
    assert largest_excess(rate=0.0) > 1.0
    assert largest_excess(rate=0.02) < 0.5


def moved(device: torch.device) -> dict[str, Any]:
    """In one rank of two: the same model, whole and then sharded, on its own tokens."""
    from torch.distributed.fsdp import fully_shard

    mesh, index = dist.init_device_mesh("cpu", (2,)), dist.get_rank()
    found: dict[str, Any] = {}
    for form in ("whole", "sharded"):
        model = randomised(SIGMOID)
        if form == "sharded":
            for layer in model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        routing = recorded(model, tokens_of(model.spec, 2, 13, seed=index))
        update_router_bias(model, routing, RATE)
        full = [getattr(each, "full_tensor", lambda each=each: each)() for each in corrections(model)]
        found[form] = [correction.tolist() for correction in full]
    return found


def test_loads_are_those_of_all_ranks() -> None:
    """Two processes end with the corrections of one that saw the tokens of both, with whole and sharded models."""
    model = randomised(SIGMOID)
    both = torch.cat([tokens_of(model.spec, 2, 13, seed=index) for index in range(2)])
    alone = randomised(SIGMOID)
    update_router_bias(model, recorded(model, both), RATE)
    update_router_bias(alone, recorded(alone, both[:2]), RATE)
    assert any((a != b).any() for a, b in zip(corrections(model), corrections(alone), strict=True))
    expected = [correction.tolist() for correction in corrections(model)]
    assert in_ranks(2, moved) == [{"whole": expected, "sharded": expected}] * 2


ROUTERS = [
    zoo.SoftmaxTopK(k=1),
    zoo.SoftmaxTopK(k=1, renormalise=False),
    zoo.NormedSoftmaxTopK(k=1, norm=zoo.RMSNorm(1e-5)),
    zoo.InputScaledTopK(k=1),
    zoo.GroupedSigmoidTopK(k=1, groups=2, keep=1, scale=2.5),
    zoo.GroupedSoftmaxTopK(k=1, groups=2, keep=1, scale=2.5),
    zoo.SqrtSoftplusTopK(k=1, scale=1.5),
    zoo.HashTopK(k=1, scale=1.5, vocab=512),
]


@pytest.mark.parametrize("router", ROUTERS, ids=repr)
def test_a_single_renormalised_expert_is_refused_since_its_router_gets_no_gradient(router: Any) -> None:
    base = zoo.spec("qwen3", tiny=True)
    for changed in (router, replace(router, k=2)):
        spec = zoo.swap(base, zoo.GLU, zoo.MoE(4, zoo.GLU(8), changed))
        model = randomised(spec)
        recorded(model, tokens_of(spec, 1, 6))
        learns = max(part.weight.grad.abs().max() for part in routers_of(model)) > BOUND
        assert learns == (changed.k == 2 or not changed.renormalises)
        if learns:
            require_trainable_routers(spec)
        else:
            with pytest.raises(UsageError, match=r"layer 0: the .* gets no gradient"):
                require_trainable_routers(spec)


def test_every_kind_of_router_is_among_these() -> None:
    released = {
        kind for kind in zoo.Spec.kinds.values() if kind.role == "router" and kind.__module__.startswith("zoo.")
    }
    assert released == set(map(type, ROUTERS))


@over(zoo.names())
def test_every_released_model_can_be_trained(name: str) -> None:
    require_trainable_routers(zoo.spec(name))
