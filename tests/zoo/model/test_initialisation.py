"""Weights of fresh models: finite, of the right scales at any depth, and the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from tests.exact import assert_equal
from tests.models import randomised, tokens_of
from tests.presets import screen, screen_of_families
from zoo.blocks.layer import PLACEMENTS, ResidualBranch
from zoo.blocks.norms import _LayerScale
from zoo.catalog import allocate
from zoo.model.initialisation import initialise, residual_outputs
from zoo.model.module import Model
from zoo.swaps.grammar import apply_swaps


def byte_form(family: str) -> zoo.Decoder:
    """The family's tiny form over bytes, its layers repeated to six: 200 thousand parameters where it is dense."""
    spec = zoo.spec(family, tiny=True)
    return replace(spec, vocab=256, layers=(spec.layers * 6)[: max(6, len(spec.layers))])


@torch.no_grad()
def first_loss(spec: zoo.Decoder) -> Tensor:
    """Nats per token of a fresh model for random tokens, above the uniform prediction's."""
    tokens = tokens_of(spec, 4, 65)
    logits = zoo.build(spec, dtype=torch.float64)(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) - math.log(spec.vocab)


@pytest.mark.parametrize("family", screen_of_families())
def test_the_first_prediction_is_nearly_uniform(family: str) -> None:
    for spec in (zoo.spec(family, tiny=True), byte_form(family)):
        assert abs(first_loss(spec)) < 0.7


@pytest.mark.parametrize("dim", [64, 256])
def test_a_tied_head_predicts_as_uniformly_at_any_width(dim: int) -> None:
    norm = zoo.RMSNorm(1e-6)
    layer = zoo.Layer(zoo.pre(norm, zoo.GQA(4, 2, dim // 4, zoo.RoPE(1e4))), zoo.pre(norm, zoo.GLU(dim)))
    spec = zoo.Decoder(256, dim, (layer,) * 2, norm, tied=True)
    assert abs(first_loss(spec)) < 0.2
    offset = replace(spec, norm=zoo.RMSNorm(1e-6, unit_offset=True))
    assert_equal(first_loss(offset), first_loss(spec))  # it multiplies by 1 + w


def test_a_tied_head_starts_the_same_in_bfloat16() -> None:
    """1 / 576, of which bfloat16 holds nothing beside 1."""
    norm = zoo.RMSNorm(1e-6)
    layer = zoo.Layer(zoo.pre(norm, zoo.GQA(4, 2, 16, zoo.RoPE(1e4))), zoo.pre(norm, zoo.GLU(64)))
    spec = zoo.Decoder(256, 576, (layer,), norm, tied=True)
    whole, half = (zoo.build(spec, dtype=dtype).norm.weight for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(half, whole.to(torch.bfloat16))
    assert whole.unique().item() == pytest.approx(1 / 576, rel=1e-4)


def outputs(model: Model, tokens: Tensor) -> Iterator[float]:
    """Mean square of the embedded tokens, then of each layer's output."""
    kept = [model.embedded(tokens, torch.arange(tokens.shape[1]))]
    hooks = [layer.register_forward_hook(lambda *call: kept.append(call[-1])) for layer in model.layers]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return (x.square().mean().item() for x in kept)


@pytest.mark.parametrize("family", screen_of_families())
@torch.no_grad()
def test_activations_keep_their_size_through_twenty_four_layers(family: str) -> None:
    """Unit embeddings, and branches that together add as much; where each branch's output is normalised it adds 1."""
    tiny = zoo.spec(family, tiny=True)
    spec = replace(tiny, layers=(tiny.layers * 24)[:24])
    model = zoo.build(spec)
    sizes = list(outputs(model, tokens_of(spec, 2, 32)))
    assert sizes[0] == pytest.approx(1, abs=0.1)
    normalised = sum(isinstance(part, ResidualBranch) and part.normalises_output for part in model.modules())
    assert 0.9 < sizes[-1] < 4 + 1.2 * normalised
    assert sizes[-1] > 0.8 * normalised


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_outputs_that_are_added_as_they_are_are_scaled_by_depth(placement: str) -> None:
    tiny = zoo.spec("llama3", tiny=True)
    spec, _ = apply_swaps(replace(tiny, layers=tiny.layers[:1] * 8), [f"norm={placement}"])
    model = zoo.build(spec)
    factor = 1.0 if placement in ("olmo", "sandwich") else 16**-0.5
    for branch in (part for part in model.modules() if isinstance(part, ResidualBranch)):
        (weight,) = residual_outputs(branch.block)
        assert weight.std().item() * weight.shape[-1] ** 0.5 == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("family", screen_of_families())
@torch.no_grad()
def test_a_block_names_all_matrices_that_make_its_output(family: str) -> None:
    """Its output is linear in them: with twice the matrices, and no biases, it is twice as large."""
    spec = zoo.spec(family, tiny=True)
    model, tokens = randomised(spec), tokens_of(spec, 1, 20)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
    distinct_layers = dict(zip(spec.layers, model.layers, strict=True)).values()
    branches = [part for layer in distinct_layers for part in layer.modules() if isinstance(part, ResidualBranch)]
    seen: list[Tensor] = []
    for branch in branches:
        seen.clear()
        keep = branch.block.register_forward_hook(lambda *call: seen.append(call[-1]))
        named = residual_outputs(branch.block)
        assert named
        for factor in (1, 2, 0.5):  # powers of two: exact, and back to the first weights
            for weight in named:
                weight.mul_(factor)
            model(tokens)
        keep.remove()
        assert torch.equal(seen[1], 2 * seen[0])
        assert torch.equal(seen[2], seen[0])


@pytest.mark.parametrize("name", screen())
def test_every_parameter_is_set(name: str) -> None:
    """Matrices by their fan-in, residual outputs and embeddings apart; vectors as their module says, or zero."""
    spec = zoo.spec(name, tiny=True)
    model = allocate(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    initialise(model, 0)
    apart = {id(model.embed.weight), *(id(weight) for weight in residual_outputs(model))}
    for path, module in model.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            assert weight.isfinite().all(), f"{path}.{key}"
            if weight.ndim >= 2 and not key.endswith("bias"):
                scale = weight.std().item() * weight.shape[-1] ** 0.5
                near = max(0.15, 4 / (2 * weight.numel()) ** 0.5)  # standard deviations of so few numbers differ
                assert id(weight) in apart or scale == pytest.approx(1, abs=near), f"{path}.{key}"
            elif module is not model.norm or not spec.tied:
                start = torch.as_tensor(getattr(module, "identity", {}).get(key, 0.0))
                assert (weight == start).all(), f"{path}.{key}"


@pytest.mark.parametrize("name", screen())
@torch.no_grad()
def test_every_norm_of_a_fresh_model_only_normalises(name: str) -> None:
    """Each vector comes out at length sqrt(width), whichever form the norm has; it is shorter before a tied head, and
    where the scores that follow are not scaled."""
    model = zoo.build(name, tiny=True)
    norms = [
        part
        for part in model.modules()
        if hasattr(part, "identity") and not isinstance(part, _LayerScale)
        if len(signature(part.forward).parameters) == 1
    ]
    assert len(norms) > len(model.layers)
    gains = {}
    for layer, spec in zip(model.layers, model.spec.layers, strict=True):
        if isinstance(attn := spec.mixer, zoo.GQA) and attn.qk_norm and attn.scale == 1:
            gains[layer.attn.block.q_norm] = attn.head_dim**-0.5
    if model.head is None:
        gains[model.norm] = min(model.spec.embed_scale**2 / model.spec.dim, 1.0)
    for norm in norms:
        gain = gains.get(norm, 1.0)
        x = norm(torch.randn(3, 8 if norm.weight is None else len(norm.weight)))
        assert x.square().mean(-1).tolist() == pytest.approx([gain**2] * 3, rel=1e-3)


@pytest.mark.parametrize("family", screen_of_families())
def test_a_seed_gives_the_same_weights_again(family: str) -> None:
    one, same, other = (zoo.build(family, tiny=True, seed=seed) for seed in (5, 5, 6))
    for (key, weight), equal, differing in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(weight, equal), key
        assert torch.equal(weight, differing) == (weight.ndim < 2 or key.endswith("bias")), key
