"""Routers and experts against loops over tokens, and what stays float32 in narrow models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.exact import assert_equal, differs
from zoo import (
    GLU,
    ClampedSwiGLU,
    DenseAndMoE,
    GroupedSigmoidTopK,
    GroupedSoftmaxTopK,
    InputScaledTopK,
    MoE,
    NormedSoftmaxTopK,
    RMSNorm,
    SoftmaxTopK,
)
from zoo.blocks.routers import Router
from zoo.errors import SpecError

DIM, EXPERTS, TOKENS = 16, 12, 40
SOFTMAX = {
    f"{renormalise=} {bias=}": SoftmaxTopK(3, renormalise, bias)
    for renormalise in (True, False)
    for bias in (True, False)
}
GROUPED = {
    "some groups": GroupedSigmoidTopK(k=3, groups=4, keep=2, scale=2.5),
    "every group": GroupedSigmoidTopK(k=5, groups=3, keep=3, scale=1.0),
    "one group": GroupedSigmoidTopK(k=4, groups=1, keep=1, scale=0.5),
    "all experts of a group": GroupedSigmoidTopK(k=3, groups=4, keep=1, scale=2.5),
}
GROUPED_SOFTMAX = {
    "some groups, softmax": GroupedSoftmaxTopK(k=3, groups=4, keep=2, scale=2.5),
    "one group, softmax": GroupedSoftmaxTopK(k=4, groups=1, keep=1, scale=0.5),
}
MOES = {
    "softmax": MoE(EXPERTS, GLU(10), SOFTMAX["renormalise=True bias=False"]),
    "gpt-oss": MoE(EXPERTS, GLU(10, ClampedSwiGLU(1.7, 1.0), bias=True), SOFTMAX["renormalise=True bias=True"]),
    "shared": MoE(EXPERTS, GLU(10), GROUPED["some groups"], shared=GLU(20)),
    "grouped softmax": MoE(EXPERTS, GLU(10), GROUPED_SOFTMAX["some groups, softmax"]),
    "scaled input": MoE(EXPERTS, GLU(10), InputScaledTopK(2), shared=GLU(10)),
    "normalised input": MoE(EXPERTS, GLU(10), NormedSoftmaxTopK(3, RMSNorm(1e-5))),
    "one of one": MoE(1, GLU(10), SoftmaxTopK(1)),
    "all": MoE(EXPERTS, GLU(10), SoftmaxTopK(EXPERTS)),
}


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=0.4)
    return module


def ids(chosen: Tensor) -> list[list[int]]:
    return chosen.sort(-1).values.tolist()


@pytest.mark.parametrize("case", SOFTMAX)
def test_softmax_routing_token_by_token(case: str) -> None:
    spec = SOFTMAX[case]
    router, x = randomised(spec.build(DIM, EXPERTS)), torch.randn(TOKENS, DIM)
    weights, chosen = router(x)
    for token in range(TOKENS):
        logits = router.weight @ x[token] + (router.bias if spec.bias else 0)
        order = logits.argsort(descending=True)[: spec.k]
        assert chosen[token].sort().values.tolist() == order.sort().values.tolist()
        probabilities = logits.softmax(-1)
        total = probabilities[order].sum() if spec.renormalise else 1.0
        expected = probabilities[chosen[token]] / total
        assert_equal(weights[token], expected)


@pytest.mark.parametrize("case", [*GROUPED, *GROUPED_SOFTMAX])
def test_grouped_routing_token_by_token(case: str) -> None:
    """Groups by their two best corrected scores, weights from the uncorrected (DeepSeek-V3, section 2.1.2). Softmax
    scores have no correction."""
    spec = (GROUPED | GROUPED_SOFTMAX)[case]
    router, x = randomised(spec.build(DIM, EXPERTS)), torch.randn(TOKENS, DIM)
    weights, chosen = router(x)
    size, of_softmax = EXPERTS // spec.groups, case in GROUPED_SOFTMAX
    for token in range(TOKENS):
        logits = router.weight @ x[token]
        scores = logits.softmax(-1) if of_softmax else logits.sigmoid()
        corrected = (scores if of_softmax else scores + router.correction).tolist()
        worth = [sum(sorted(corrected[g * size : (g + 1) * size])[-2:]) for g in range(spec.groups)]
        kept = sorted(range(spec.groups), key=lambda g: -worth[g])[: spec.keep]
        best = sorted((e for e in range(EXPERTS) if e // size in kept), key=lambda e: -corrected[e])[: spec.k]
        assert sorted(chosen[token].tolist()) == sorted(best)
        assert_equal(weights[token], spec.scale * scores[chosen[token]] / scores[best].sum())


def test_weights_of_scaled_inputs_are_sigmoids_of_the_highest_logits() -> None:
    """Each by itself: they do not add up to one (Llama 4)."""
    router, x = randomised(InputScaledTopK(2).build(DIM, EXPERTS)), torch.randn(TOKENS, DIM)
    weights, chosen = router(x)
    logits = x @ router.weight.T
    top, best = logits.topk(2)
    assert ids(chosen) == ids(best)
    assert_equal(weights, top.sigmoid())


def test_a_router_of_the_normalised_input_multiplies_weights_by_a_number_of_each_expert() -> None:
    """Which is no part of the choice (Gemma 4)."""
    router, x = randomised(NormedSoftmaxTopK(3, RMSNorm(1e-5)).build(DIM, EXPERTS)), torch.randn(TOKENS, DIM)
    weights, chosen = router(x)
    for token in range(TOKENS):
        exact = x[token]
        normed = exact * (exact.square().mean() + 1e-5) ** -0.5 * router.norm.weight * DIM**-0.5
        logits = router.weight @ normed
        order = logits.argsort(descending=True)[:3]
        assert sorted(chosen[token].tolist()) == sorted(order.tolist())
        expected = logits[chosen[token]].softmax(-1) * router.expert_scale[chosen[token]]
        assert_equal(weights[token], expected)


def test_the_correction_chooses_and_does_not_weigh() -> None:
    """Equal for all experts it changes nothing; for one expert it changes who is chosen, and no weight but by that."""
    spec = GROUPED["every group"]
    router, x = randomised(spec.build(DIM, EXPERTS)), torch.randn(TOKENS, DIM)
    with torch.no_grad():
        router.correction.zero_()
        weights, chosen = router(x)
        router.correction.fill_(0.25)
        again, same = router(x)
        assert ids(same) == ids(chosen)
        assert_equal(again.sort(-1).values, weights.sort(-1).values)
        router.correction[7] = 10.0
        _, forced = router(x)
        assert (forced == 7).any(-1).all()
        router.correction[7] = -10.0
        _, avoided = router(x)
        assert not (avoided == 7).any()
        assert not (chosen == 7).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", GROUPED)
def test_grouped_routing_is_float32_in_narrow_models(case: str, dtype: torch.dtype) -> None:
    """The same choice as a float32 router of the same values makes, to the bit but for the weights' last rounding."""
    narrow = randomised(GROUPED[case].build(DIM, EXPERTS).float()).to(dtype)
    wide = GROUPED[case].build(DIM, EXPERTS).float()
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(TOKENS, DIM).to(dtype)
    (weights, chosen), (expected, same) = narrow(x), wide(x.float())
    assert torch.equal(chosen, same)
    assert torch.equal(weights, expected.to(dtype))


MOVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to(bfloat16)": lambda module: module.to(torch.bfloat16),
    "half()": lambda module: module.half(),
    "bfloat16()": lambda module: module.bfloat16(),
    "double()": lambda module: module.double(),
    "to(cpu, bfloat16)": lambda module: module.to("cpu", torch.bfloat16),
    "half().float()": lambda module: module.half().float(),
    "inside another": lambda module: nn.ModuleList([nn.Sequential(module)]).half()[0][0],
}


@pytest.mark.parametrize("move", MOVES)
def test_the_correction_stays_float32_and_exact(move: str) -> None:
    """Steps of a correction are finer than a narrow type's; everything else follows the model."""
    moe = randomised(MOES["shared"].build(DIM).float())
    before = moe.router.correction.clone()
    moved = MOVES[move](moe)
    assert moved.router.correction.dtype == (torch.float64 if move == "double()" else torch.float32)
    assert torch.equal(moved.router.correction.float(), before)
    assert isinstance(moved.router.correction, nn.Parameter)
    assert moved.router.weight.dtype == moved.experts.gate.dtype
    x = torch.randn(3, DIM, dtype=moved.router.weight.dtype)
    assert moved(x).dtype == x.dtype


def test_the_correction_follows_to_a_device() -> None:
    router = GROUPED["some groups"].build(DIM, EXPERTS)
    assert router.to("meta").correction.device.type == "meta"
    moved = GROUPED["some groups"].build(DIM, EXPERTS).to("meta", torch.bfloat16)
    assert moved.correction.device.type == "meta"
    assert moved.correction.dtype == torch.float32
    assert moved.weight.dtype == torch.bfloat16
    assert moved.to_empty(device="cpu").correction.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 5)], ids=str)
@pytest.mark.parametrize("case", MOES)
def test_a_mixture_is_the_weighed_sum_of_its_experts_token_by_token(case: str, shape: tuple[int, int]) -> None:
    spec = MOES[case]
    moe, x = randomised(spec.build(DIM)), torch.randn(*shape, DIM)
    weights, chosen = (part.view(*shape, -1) for part in moe.router(x.flatten(0, 1)))
    expected = torch.zeros_like(x)
    for b in range(shape[0]):
        for t in range(shape[1]):
            for weight, e in zip(weights[b, t].tolist(), chosen[b, t].tolist(), strict=True):
                expert, token = expert_of(moe, spec, e), x[b, t]
                expected[b, t] += expert(weight * token) if spec.router.scales_input else weight * expert(token)
            if spec.shared:
                expected[b, t] += moe.shared(x[b, t])
    assert_equal(moe(x), expected)


def expert_of(moe: nn.Module, spec: MoE, e: int) -> nn.Module:
    """One expert as the dense block it is."""
    glu = spec.expert.build(DIM)
    with torch.no_grad():
        for part in ("gate", "up", "down"):
            getattr(glu, part).weight.copy_(getattr(moe.experts, part)[e])
            if spec.expert.bias:
                getattr(glu, part).bias.copy_(getattr(moe.experts, f"{part}_bias")[e])
    return glu


@pytest.mark.parametrize("case", MOES)
def test_parameters_are_all_and_active_those_of_k_experts(case: str) -> None:
    spec = MOES[case]
    module = spec.build(DIM)
    assert spec.params(DIM) == sum(weight.numel() for weight in module.parameters())
    idle = (spec.experts - spec.router.k) * spec.expert.params(DIM)
    assert spec.active_params(DIM) == spec.params(DIM) - idle
    assert spec.router.params(DIM, spec.experts) == sum(weight.numel() for weight in module.router.parameters())


def test_only_the_chosen_experts_get_a_gradient() -> None:
    moe = randomised(MOES["gpt-oss"].build(DIM))
    x = torch.randn(1, 2, DIM)
    moe(x).sum().backward()
    chosen = set(moe.router(x.flatten(0, 1))[1].flatten().tolist())
    assert len(chosen) < EXPERTS
    for stacked in moe.experts.parameters():
        assert {e for e in range(EXPERTS) if stacked.grad[e].abs().sum() > 0} == chosen


ROUTERS = [*SOFTMAX.values(), *GROUPED.values(), *GROUPED_SOFTMAX.values(), InputScaledTopK(2)]
ROUTERS += [NormedSoftmaxTopK(3, RMSNorm(1e-5))]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router.describe())
def test_a_router_that_reaches_too_few_experts_is_no_spec(router: Router) -> None:
    MoE(EXPERTS, GLU(10), router)
    with pytest.raises(ValueError, match="k=13 is above the "):
        MoE(EXPERTS, GLU(10), replace(router, k=13))


NORM = RMSNorm(1e-5)
ROUTED = MoE(6, GLU(10), NormedSoftmaxTopK(2, NORM))
BOTH = DenseAndMoE(GLU(20), ROUTED, NORM)


@torch.no_grad()
def test_a_dense_block_and_a_mixture_are_added_and_the_router_sees_the_input_itself() -> None:
    module, x = randomised(BOTH.build(DIM)), torch.randn(2, 5, DIM)
    weights, chosen = module.routed.router(x)
    experts = module.routed.experts(module.routed_pre(x), weights, chosen)
    expected = module.dense_post(module.dense(module.dense_pre(x))) + module.routed_post(experts)
    assert_equal(module(x), expected)
    normed, _ = module.routed.router(module.routed_pre(x))
    assert differs(weights, normed)


def test_costs_of_a_dense_block_beside_a_mixture_are_sums_and_widths_keep_their_proportion() -> None:
    assert BOTH.params(DIM) == sum(weight.numel() for weight in BOTH.build(DIM).parameters())
    idle = 4 * GLU(10).params(DIM)  # of 6 experts 2 are chosen
    assert BOTH.active_params(DIM) == BOTH.params(DIM) - idle
    wider = BOTH.with_width(40)
    assert (wider.width, wider.routed.width) == (40, 20)
    with pytest.raises(SpecError, match="dense must hold no MoE"):
        replace(BOTH, dense=MoE(4, GLU(8), SoftmaxTopK(2)))
