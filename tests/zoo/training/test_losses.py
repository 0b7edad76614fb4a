"""Losses and balancing against their formulas, against the reference with its gradients, and on several ranks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import weights
import zoo
from tests import toys
from tests.exact import BOUND, assert_as_near, assert_equal, in_float64
from tests.models import randomised, tokens_of
from tests.presets import distinct, over
from tests.ranks import in_ranks
from tests.reference import toy_reference
from zoo.blocks.routers import routers_of
from zoo.core.forward_context import RouterOutput, recorded_routing
from zoo.errors import UsageError
from zoo.training.losses import (
    IGNORED,
    cross_entropy,
    load_balancing_loss,
    require_trainable_routers,
    update_router_bias,
)

EXPERTS, K, RATE = 6, 2, 0.5


def router_kinds(spec: zoo.Decoder) -> set[type]:
    return {type(part) for part in spec.walk() if part.role == "router"}


TINY = {name: zoo.spec(name, tiny=True) for name in distinct()}
SOFTMAX = [name for name, spec in TINY.items() if zoo.SoftmaxTopK in router_kinds(spec)]
SIGMOID = next(
    replace(spec, layers=spec.layers * 2) for spec in TINY.values() if zoo.GroupedSigmoidTopK in router_kinds(spec)
)


def outputs(layers: int = 3) -> list[RouterOutput]:
    """Of random routers, float64."""
    drawn = [torch.randn(2, 7, EXPERTS, dtype=torch.float64, requires_grad=True) for _ in range(layers)]
    return [RouterOutput(logits, logits.topk(K).indices) for logits in drawn]


def rows(output: RouterOutput) -> list[tuple[list[float], list[int]]]:
    """(logits, chosen experts) of each token."""
    return list(zip(output.logits.flatten(0, 1).tolist(), output.chosen.flatten(0, 1).tolist(), strict=True))


def softmax(logits: list[float]) -> list[float]:
    return torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()


@pytest.mark.usefixtures("_float64")
def test_cross_entropy_is_the_mean_over_scored_targets() -> None:
    logits, targets = torch.randn(3, 2, 5, 11), torch.randint(11, (2, 5))
    targets[0, 1] = targets[1, 4] = IGNORED

    def by_token(logits: Tensor) -> Tensor:
        each = [
            -torch.log_softmax(logits[b, t], -1)[targets[b, t]]
            for b in range(2)
            for t in range(5)
            if targets[b, t] != IGNORED
        ]
        return torch.stack(each).mean()

    assert_equal(cross_entropy(logits[0], targets), by_token(logits[0]))
    narrow = logits.bfloat16()  # of which the loss is in float32
    assert_as_near(
        [cross_entropy(each, targets) for each in narrow],
        [by_token(each.float()) for each in narrow],
        [by_token(each.double()) for each in narrow],
    )
    assert cross_entropy(logits[0], torch.full((2, 5), IGNORED)).isnan()


@pytest.mark.usefixtures("_float64")
def test_the_per_layer_loss_is_its_formula() -> None:
    routing, total = outputs(), 0.0
    for output in routing:
        tokens = rows(output)
        for e in range(EXPERTS):
            share = sum(e in chosen for _, chosen in tokens) / (K * len(tokens))
            total += EXPERTS * share * sum(softmax(logits)[e] for logits, _ in tokens) / len(tokens)
    assert_equal(load_balancing_loss(routing), torch.tensor(total / len(routing)))


def pooled(routing: list[RouterOutput]) -> Tensor:
    """The reference's form: the layers' tokens are those of one layer, and each of a token's k choices counts."""
    logits = torch.cat([output.logits.flatten(0, -2) for output in routing])
    chosen = torch.cat([output.chosen.flatten(0, -2) for output in routing])
    return chosen.shape[-1] * load_balancing_loss([RouterOutput(logits, chosen)])


def gradients(reference: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The reference's gradients under the zoo's names: they take the way of the weights, which is linear."""
    holder = deepcopy(reference)
    with torch.no_grad():
        for held, weight in zip(holder.parameters(), reference.parameters(), strict=True):
            held.copy_(weight.grad)
    holder.save_pretrained(folder)
    return dict(weights.load(folder, dtype=torch.float64).named_parameters())


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", SOFTMAX)
def test_the_loss_with_router_logits_and_its_gradients_equal_the_reference(name: str, tmp_path: Path) -> None:
    """With a coefficient so large that the balancing loss moves every gradient before the last router."""
    config = toys.config(name) | {"router_aux_loss_coef": 0.5}
    tokens = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(1))
    with in_float64():
        reference = toy_reference(config).double()
        reference.set_experts_implementation("eager")
        expected = reference(tokens, labels=tokens, output_router_logits=True)
        expected.loss.backward()
    reference.save_pretrained(tmp_path / "weights")
    theirs = gradients(reference, tmp_path / "gradients")
    model = weights.load(tmp_path / "weights", dtype=torch.float64)
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        model.zero_grad()
        with recorded_routing() as routing:
            logits = model(tokens)
        balance = pooled(routing)
        loss = cross_entropy(logits[:, :-1], tokens[:, 1:]) + 0.5 * balance
        loss.backward()
        assert_equal(balance, expected.aux_loss)
        assert_equal(loss, expected.loss)
        for part, weight in model.named_parameters():
            assert theirs[part].any(), part
            assert_equal(weight.grad, theirs[part], part)


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
    """The optimiser is given all parameters and decays them, after the whole model was asked for gradients."""
    model = randomised(SIGMOID).requires_grad_(True)
    before = corrections(model)
    recorded(model, tokens_of(model.spec, 1, 5))
    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5).step()
    assert all(map(torch.equal, before, corrections(model)))


def test_other_routers_have_nothing_to_move_and_outputs_must_be_of_the_model() -> None:
    spec = next(spec for spec in TINY.values() if router_kinds(spec) == {zoo.SoftmaxTopK})
    model = randomised(spec)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    routing = recorded(model, tokens_of(spec, 1, 5))
    update_router_bias(model, routing, RATE)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(UsageError, match="router outputs for"):
        update_router_bias(model, routing * 2, RATE)
    with pytest.raises(UsageError, match="no routing was recorded"):
        load_balancing_loss([])


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
