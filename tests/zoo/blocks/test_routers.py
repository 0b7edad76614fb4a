"""The routers of DeepSeek-V4, and which layers are given token ids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.exact import assert_equal, differs
from tests.models import randomised, tokens_of
from zoo.core.forward_context import ForwardContext
from zoo.errors import SpecError, UsageError
from zoo.swaps.grammar import apply_swap

DIM, EXPERTS, SPEC = 8, 6, "deepseek-v4-flash-284b"


@torch.no_grad()
def test_scores_choose_with_the_correction_and_weigh_without() -> None:
    spec = zoo.SqrtSoftplusTopK(k=2, scale=1.5)
    router, x = spec.build(DIM, EXPERTS), torch.randn(2, 5, DIM)
    router.weight.normal_()
    router.correction.copy_(torch.tensor([3.0, 0, 0, 0, 0, -3.0]))
    weights, chosen = router(x)
    scores = torch.log1p((x @ router.weight.T).exp()).sqrt()
    assert (chosen == 0).any(-1).all()
    assert not (chosen == 5).any()
    top = scores.gather(-1, chosen)
    assert_equal(weights, 1.5 * top / top.sum(-1, keepdim=True))
    assert spec.params(DIM, EXPERTS) == sum(each.numel() for each in router.parameters())
    assert router.to(torch.bfloat16).correction.dtype == torch.float32


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
    model = randomised(zoo.spec(SPEC, tiny=True))
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
    model = randomised(zoo.spec(SPEC, tiny=True))
    tables = dict(model.named_buffers())
    assert [name.rpartition(".")[2] for name in tables] == ["table"] * 3
    assert tables.keys() <= model.state_dict().keys()
    tokens = tokens_of(model.spec, 1, 6)
    before = model(tokens)
    for table in tables.values():
        table.copy_(table.flip(0))
    assert differs(model(tokens), before)


def test_the_vocabulary_has_to_be_in_the_table() -> None:
    spec = zoo.spec(SPEC, tiny=True)
    with pytest.raises(SpecError, match="a table of 512 tokens, the vocabulary 513"):
        replace(spec, vocab=513)
    larger = spec.with_vocab(1000)
    assert {part.vocab for part in larger.walk() if isinstance(part, zoo.HashTopK)} == {1000}
    assert zoo.spec("qwen3").with_vocab(7) == replace(zoo.spec("qwen3"), vocab=7)


def test_a_swap_takes_the_models_vocabulary() -> None:
    spec, _ = apply_swap(zoo.spec("mixtral", tiny=True), "router=HashTopK(scale=1.0)")
    router = next(part for part in spec.walk() if isinstance(part, zoo.HashTopK))
    assert (router.vocab, router.k) == (512, 2)
