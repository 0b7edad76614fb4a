"""Losses against their formulas token by token, and against the reference with its gradients."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import weights
import zoo
from tests import toys
from tests.exact import assert_as_near, assert_equal, in_float64
from tests.presets import distinct
from tests.reference import toy_reference
from zoo.core.forward_context import RouterOutput, recorded_routing
from zoo.errors import UsageError
from zoo.training.losses import IGNORED, cross_entropy, load_balancing_loss

pytestmark = pytest.mark.usefixtures("_float64")

EXPERTS, K = 6, 2
SOFTMAX = [
    name for name in distinct() if any(isinstance(part, zoo.SoftmaxTopK) for part in zoo.spec(name, tiny=True).walk())
]


def outputs(layers: int = 3) -> list[RouterOutput]:
    """Of random routers, float64."""
    drawn = [torch.randn(2, 7, EXPERTS, dtype=torch.float64, requires_grad=True) for _ in range(layers)]
    return [RouterOutput(logits, logits.topk(K).indices) for logits in drawn]


def rows(output: RouterOutput) -> list[tuple[list[float], list[int]]]:
    """(logits, chosen experts) of each token."""
    return list(zip(output.logits.flatten(0, 1).tolist(), output.chosen.flatten(0, 1).tolist(), strict=True))


def softmax(logits: list[float]) -> list[float]:
    return torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()


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


def test_counts_are_of_every_choice() -> None:
    for output in outputs():
        chosen = [e for _, experts in rows(output) for e in experts]
        assert output.counts().tolist() == [chosen.count(e) for e in range(EXPERTS)]


def test_the_per_layer_loss_is_its_formula() -> None:
    routing, total = outputs(), 0.0
    for output in routing:
        tokens = rows(output)
        for e in range(EXPERTS):
            share = sum(e in chosen for _, chosen in tokens) / (K * len(tokens))
            total += EXPERTS * share * sum(softmax(logits)[e] for logits, _ in tokens) / len(tokens)
    assert_equal(load_balancing_loss(routing), torch.tensor(total / len(routing)))


def test_what_is_balanced_has_the_least_loss_and_gradients_lead_there() -> None:
    """Every expert for as many tokens: one after the other. All tokens to the same experts cost more."""
    ids = torch.arange(EXPERTS)
    chosen = torch.stack([ids, (ids + 1) % EXPERTS], dim=-1)[None]
    even = torch.zeros(1, EXPERTS, EXPERTS).scatter_(-1, chosen, 3.0)
    assert_equal(load_balancing_loss([RouterOutput(even, chosen)]), torch.tensor(1.0))
    uneven = (even[:, :1] * torch.ones(1, EXPERTS, 1)).requires_grad_()
    worst = load_balancing_loss([RouterOutput(uneven, chosen[:, :1].expand(1, EXPERTS, K))])
    assert worst > 1.2
    worst.backward()
    assert (uneven.grad[..., :K] > 0).all()
    assert (uneven.grad[..., K:] < 0).all()


def test_without_routing_there_is_no_loss() -> None:
    with pytest.raises(UsageError, match="no routing was recorded"):
        load_balancing_loss([])


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
