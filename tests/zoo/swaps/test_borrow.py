"""Blocks that a swap names without fields, or borrows from a published model, on any model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import zoo
from tests.exact import assert_equal
from tests.models import chunks, randomised, tokens_of
from tests.presets import over, representatives
from zoo import GLU, GQA, MLA, Decoder, GatedDeltaNet, GroupedSigmoidTopK, MoE, SoftmaxTopK, Spec, apply_swap
from zoo.architectures import families
from zoo.catalog import allocate
from zoo.errors import SpecError
from zoo.registry import Mixer
from zoo.swaps.borrow import borrowed, introduced_by
from zoo.swaps.proportions import Proportions

KINDS = {name: kind for name, kind in Spec.kinds.items() if kind.role in ("attn", "ffn")}
ALONE = [name for name in KINDS if name != "SharedKV"]  # it takes keys and values from an earlier layer


def swapped(spec: Decoder, *texts: str) -> Decoder:
    for text in texts:
        spec, _ = apply_swap(spec, text)
    return spec


def assert_equals_its_formulas(spec: Decoder) -> None:
    """Parameters and the bytes of a cache, of the built model and by the spec."""
    model = allocate(spec, "meta")
    assert sum(each.numel() for each in model.parameters()) == spec.params()
    assert model.new_cache(2, 40).nbytes == spec.kv_bytes(40, 2, torch.float32)


@over([(name, family) for name in ALONE for family in families()])
def test_every_kind_without_fields_makes_a_model_of_every_toy_form(kind_and_family) -> None:
    name, family = kind_and_family
    before = zoo.spec(family, tiny=True)
    after = swapped(before, f"{KINDS[name].role}={name}")
    assert_equals_its_formulas(after)
    for old, new in zip(before.layers, after.layers, strict=True):
        branch = KINDS[name].role
        assert (getattr(new, branch) is None) == (getattr(old, branch) is None)
        assert getattr(new, branch) is None or type(getattr(new, branch).block) is KINDS[name]


@over(zoo.names(), representatives())
def test_every_kind_without_fields_makes_a_model_of_every_published_size(preset) -> None:
    for name in ALONE:
        spec = swapped(zoo.spec(preset), f"{KINDS[name].role}={name}")
        assert_equals_its_formulas(replace(spec, layers=tuple(dict.fromkeys(spec.layers))))


@pytest.mark.parametrize("name", [name for name in ALONE if issubclass(KINDS[name], Mixer)])
def test_a_mixer_without_fields_decodes_as_it_prefills(name: str) -> None:
    spec = swapped(zoo.spec("llama3", tiny=True), "layers=2", f"attn={name}")
    model, tokens = randomised(spec), tokens_of(spec, 2, 24)
    with torch.no_grad():
        cache, whole = model.new_cache(2, 24), model(tokens)
        assert_equal(torch.cat([model(part, cache) for part in chunks(tokens, [13, 7, 1, 1, 1, 1])], 1), whole)


def test_a_block_that_takes_keys_from_another_layer_needs_one() -> None:
    for family in ("llama3", "gpt2"):
        spec = zoo.spec(family, tiny=True)
        with pytest.raises(SpecError, match=r"layer 0 takes keys and values .*, which no earlier layer hands on"):
            swapped(spec, "attn=SharedKV")
        assert_equals_its_formulas(swapped(spec, "attn=KVSource in 0", "attn=SharedKV except in 0"))


@over(zoo.names())
def test_a_model_borrows_its_own_blocks_as_they_are(preset) -> None:
    spec = zoo.spec(preset)
    for kind in {type(node) for node in spec.walk()}:
        exact = next(node for node in spec.walk() if type(node) is kind)
        lent = borrowed(kind, spec, spec)
        assert type(lent) is kind
        assert lent == exact or kind.role not in ("attn", "ffn")


def test_sizes_are_in_the_ratio_of_published_widths() -> None:
    lender = zoo.spec("qwen3-next")  # 2,048 wide
    own = next(node for node in lender.walk() if isinstance(node, GatedDeltaNet))
    equal, twice = (
        swapped(zoo.spec(name), "attn=GatedDeltaNet from qwen3-next").layers[0].mixer
        for name in ("llama3.2-1b", "llama3.1-8b")
    )
    assert equal == own
    assert twice == replace(own, key_heads=2 * own.key_heads, value_heads=2 * own.value_heads)
    experts = swapped(zoo.spec("llama3.1-8b"), "ffn=MoE from mixtral").layers[0].feed_forward
    assert experts == zoo.spec("mixtral").layers[0].feed_forward  # both 4,096 wide
    wider = swapped(zoo.spec("llama3.1-70b"), "ffn=MoE from mixtral").layers[0].feed_forward
    assert wider == replace(experts, expert=GLU(2 * experts.expert.width))


def test_a_narrow_model_borrows_in_the_proportions_of_scaled_models() -> None:
    spec, lender = zoo.spec("llama3", tiny=True), zoo.spec("deepseek-v3")
    small = Proportions(lender, spec.dim, spec.context, spec.vocab).scale(lender.layers[0].mixer)
    assert swapped(spec, "attn=MLA from deepseek-v3").layers[0].mixer == small


def test_given_fields_come_first_and_formulas_name_the_borrowed_block() -> None:
    own = zoo.spec("deepseek-v3").layers[0].mixer
    attn = swapped(zoo.spec("deepseek-v3"), "attn=MLA(kv_rank=kv_rank/2, q_rank=none) from deepseek-v3").layers[0].mixer
    assert attn == replace(own, kv_rank=own.kv_rank // 2, q_rank=None)
    window = swapped(zoo.spec("llama3.1-8b"), "attn=SWA from gemma3").layers[0].mixer.window
    assert window == next(node.window for node in zoo.spec("gemma3").walk() if isinstance(node, GQA) and node.window)


def test_without_a_lender_the_models_own_fields_come_first() -> None:
    for name in ("llama3.2-1b", "qwen3-8b"):
        spec = zoo.spec(name)
        old, new = spec.layers[0].mixer, swapped(spec, "attn=MLA").layers[0].mixer
        assert isinstance(new, MLA)
        assert (new.heads, new.rope, new.norm) == (old.heads, old.rope.at_width(new.rope_dim), spec.norm)
        experts = swapped(spec, "ffn=MoE").layers[0].feed_forward
        assert experts == MoE(8, spec.layers[0].feed_forward, SoftmaxTopK(2))  # Mixtral's, of this model's feed-forward


def test_a_family_lends_from_the_smallest_size_that_has_the_kind() -> None:
    assert not any(isinstance(node, MoE) for node in zoo.spec("qwen3").walk())
    lent = swapped(zoo.spec("llama3.2-1b"), "ffn=MoE from qwen3").layers[0].feed_forward
    assert lent == zoo.spec("qwen3-30b-a3b").layers[0].feed_forward  # both 2,048 wide


def test_a_borrowed_router_chooses_among_the_models_experts() -> None:
    routed = swapped(zoo.spec("mixtral"), "router=GroupedSigmoidTopK from deepseek-v3").layers[0].feed_forward
    lender = next(node for node in zoo.spec("deepseek-v3").walk() if isinstance(node, MoE))
    assert isinstance(routed.router, GroupedSigmoidTopK)
    assert routed.router == lender.router.among(routed.experts, lender.experts, zoo.spec("mixtral").vocab)


@over(KINDS)
def test_a_kind_was_introduced_by_the_first_family_that_has_it(name) -> None:
    lender = introduced_by(KINDS[name])
    assert lender is not None
    having = [
        module
        for module in families().values()
        if any(type(node) is KINDS[name] for size in module.SIZES.values() for node in size.spec.walk())
    ]
    assert lender in [size.spec for size in having[0].SIZES.values()]
