"""Routers, and mixtures beside a dense block; their results are those of released models (tests/test_parity.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from tests.exact import assert_equal, differs
from tests.models import randomised as randomised_model
from tests.models import tokens_of
from zoo import GLU, DenseAndMoE, GroupedSigmoidTopK, MoE, NormedSoftmaxTopK, RMSNorm, SoftmaxTopK
from zoo.core.forward_context import ForwardContext
from zoo.errors import SpecError, UsageError
from zoo.swaps.grammar import apply_swap

DIM, EXPERTS, TOKENS, HASHED = 16, 12, 40, "deepseek-v4-flash-284b"
NORM = RMSNorm(1e-5)
GROUPED = {
    "some groups": GroupedSigmoidTopK(k=3, groups=4, keep=2, scale=2.5),
    "every group": GroupedSigmoidTopK(k=5, groups=3, keep=3, scale=1.0),
    "one group": GroupedSigmoidTopK(k=4, groups=1, keep=1, scale=0.5),
    "all experts of a group": GroupedSigmoidTopK(k=3, groups=4, keep=1, scale=2.5),
}


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=0.4)
    return module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", GROUPED)
def test_grouped_routing_is_float32_in_narrow_models(case: str, dtype: torch.dtype) -> None:
    """The choice equals that of a float32 router with the same values, and so do the weights, up to their last
    rounding."""
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
    moe = randomised(MoE(EXPERTS, GLU(10), GROUPED["some groups"], shared=GLU(20)).build(DIM).float())
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


ROUTED = MoE(6, GLU(10), NormedSoftmaxTopK(2, NORM))
BOTH = DenseAndMoE(GLU(20), ROUTED, NORM)


def test_costs_of_a_dense_block_beside_a_mixture_are_sums_and_widths_keep_their_proportion() -> None:
    assert BOTH.params(DIM) == sum(weight.numel() for weight in BOTH.build(DIM).parameters())
    idle = 4 * GLU(10).params(DIM)  # of 6 experts 2 are chosen
    assert BOTH.active_params(DIM) == BOTH.params(DIM) - idle
    wider = BOTH.with_width(40)
    assert (wider.width, wider.routed.width) == (40, 20)
    with pytest.raises(SpecError, match="dense must hold no MoE"):
        replace(BOTH, dense=MoE(4, GLU(8), SoftmaxTopK(2)))


@torch.no_grad()
def test_a_table_chooses_and_scores_weigh() -> None:
    spec = zoo.HashTopK(k=2, scale=1.5, vocab=10)
    router, x, ids = spec.build(DIM, EXPERTS), torch.randn(2, 5, DIM), torch.randint(10, (2, 5))
    router.weight.normal_()
    weights, chosen = router(x, ForwardContext(torch.arange(5), {}, {}, tokens=ids))
    assert torch.equal(chosen, router.table[ids])
    top = F.softplus(x @ router.weight.T).sqrt().gather(-1, chosen)
    assert_equal(weights, 1.5 * top / top.sum(-1, keepdim=True))
    assert spec.params(DIM, EXPERTS) == router.weight.numel()
    with pytest.raises(UsageError, match="token ids"):
        router(x)


def test_a_fresh_table_gives_every_expert_as_many_tokens() -> None:
    table = zoo.HashTopK(k=3, scale=1.0, vocab=40).build(DIM, 8).table
    assert table.shape == (40, 3)
    assert all(len(set(row)) == 3 for row in table.tolist())
    assert table.flatten().bincount().tolist() == [15] * 8


@torch.no_grad()
def test_layers_that_read_no_ids_are_given_none() -> None:
    model = randomised_model(zoo.spec(HASHED, tiny=True))
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[1].tokens))
    tokens = tokens_of(model.spec, 1, 6)
    model(tokens)
    assert [ids is not None for ids in seen] == [layer.reads_tokens for layer in model.spec.layers]
    assert [ids is not None for ids in seen] == [True, True, True, False, False]
    assert all(ids is tokens for ids in seen if ids is not None)


@torch.no_grad()
def test_a_table_is_stored_and_no_parameter() -> None:
    model = randomised_model(zoo.spec(HASHED, tiny=True))
    tables = dict(model.named_buffers())
    assert [name.rpartition(".")[2] for name in tables] == ["table"] * 3
    assert tables.keys() <= model.state_dict().keys()
    tokens = tokens_of(model.spec, 1, 6)
    before = model(tokens)
    for table in tables.values():
        table.copy_(table.flip(0))
    assert differs(model(tokens), before)


def test_the_vocabulary_has_to_be_in_the_table() -> None:
    spec = zoo.spec(HASHED, tiny=True)
    with pytest.raises(SpecError, match="a table of 512 tokens, the vocabulary 513"):
        replace(spec, vocab=513)
    larger = spec.with_vocab(1000)
    assert {part.vocab for part in larger.walk() if isinstance(part, zoo.HashTopK)} == {1000}
    assert zoo.spec("qwen3").with_vocab(7) == replace(zoo.spec("qwen3"), vocab=7)


def test_a_swap_takes_the_models_vocabulary() -> None:
    spec, _ = apply_swap(zoo.spec("mixtral", tiny=True), "router=HashTopK(scale=1.0)")
    router = next(part for part in spec.walk() if isinstance(part, zoo.HashTopK))
    assert (router.vocab, router.k) == (512, 2)
