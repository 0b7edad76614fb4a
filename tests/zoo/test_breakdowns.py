"""Costs by part: they add up to the whole, and each part is what the built module holds under the part's names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

import zoo
from tests.presets import of_families, over
from zoo.costs import sum_breakdowns
from zoo.model.module import Model

PASSES = [(0, 1), (0, 700), (699, 1), (300, 200)]  # past, new


def part_of(name: str) -> str:
    """The part that a parameter, of no norm, belongs to, by its path in the module tree alone."""
    if match := re.search(
        r"ffn\.block\.(?:routed\.)?(router|experts|shared|latent)\b", name.replace("latent_", "latent.")
    ):
        return {"experts": "routed", "latent": "routed"}.get(match[1], match[1])
    if name.startswith(("embed.", "positions.", "per_layer.embed.", "head.")):
        return "head" if name.startswith("head.") else "embedding"
    if name.startswith("per_layer.") or ".inputs.block." in name:
        return "inputs"
    if re.search(r"(?:^contraction|\b(?:attn|ffn))\.weights\.", name):
        return "streams"
    return "attn" if ".attn.block." in name else "ffn"


def counted(model: Model) -> Counter[str]:
    """Norms and layer scales are the modules that say at which value their weight changes nothing; the own norms of
    an indexer and of a router are theirs."""
    norms = {name for name, module in model.named_modules() if "weight" in getattr(module, "identity", {})}
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        of_norm = module in norms and ".router." not in name
        part = "indexer" if ".indexer." in name else "norm" if of_norm else part_of(name)
        parts[part] += parameter.numel()
    return parts


@over(zoo.names(), of_families())
def test_parameters_by_part_are_those_of_the_built_module(name: str) -> None:
    """A layer of each kind: equal layers are counted alike."""
    whole = zoo.spec(name)
    spec = replace(whole, layers=tuple(dict.fromkeys(whole.layers)))
    parts = spec.param_breakdown()
    assert +Counter(parts) == counted(zoo.build(spec, device="meta"))
    assert sum(parts.values()) == spec.params()
    assert ("head" in +Counter(parts)) != spec.tied


@pytest.mark.parametrize("causal", [True, False])
@over(zoo.names())
def test_flops_by_part_add_up(name: str, causal: bool) -> None:
    spec = zoo.spec(name)
    for past, new in PASSES:
        parts = spec.flop_breakdown(past, new, causal=causal)
        assert sum(parts.values()) == spec.flops(past, new, causal=causal)
        kept = dict(spec.flop_breakdown(past, new, logits=1, causal=causal))
        assert kept["head"] == 2 * spec.dim * spec.vocab
        if spec.streams:  # before the head they are added up
            kept["streams"] += spec.streams.flops(spec.dim, new) - spec.streams.flops(spec.dim, 1)
        assert {**kept, "head": 0} == {**parts, "head": 0}


@over(zoo.names())
def test_what_does_not_look_at_other_tokens_costs_the_same_in_any_context(name: str) -> None:
    """An indexer looks at all of them, where there is one."""
    early, late = (dict(zoo.spec(name).flop_breakdown(past, 1)) for past in (1, 5000))
    for part in {"scores", "indexer", "entries"} & early.keys():
        assert early.pop(part) < late.pop(part)
    assert early == late


@over(zoo.names())
def test_one_token_reads_the_active_parameters_and_many_all(name: str) -> None:
    spec = zoo.spec(name)
    rows = 0 if spec.tied else (spec.vocab - 1) * spec.dim
    rows += spec.per_layer.table_params(spec.vocab - 1, len(spec.layers)) if spec.per_layer else 0
    assert spec.read_params(1) == pytest.approx(spec.active_params() - rows, rel=1e-12)
    assert spec.read_params(10**6) == pytest.approx(spec.params(), rel=1e-12)
    assert all(spec.read_params(n) <= spec.read_params(n + 1) for n in range(1, 200, 7))


def test_experts_are_read_as_often_as_random_routing_hits_them() -> None:
    """The expectation against a simulation: 4 tokens that choose 2 of 8 experts each."""
    dim, moe = 16, zoo.MoE(experts=8, expert=zoo.GLU(32), router=zoo.SoftmaxTopK(k=2))
    chosen = torch.rand(20_000, 4, 8).topk(2).indices.flatten(1)
    hit = torch.zeros(20_000, 8).scatter_(1, chosen, 1.0).sum(1).mean().item()
    expected = moe.router.params(dim, 8) + hit * moe.expert.params(dim)
    assert moe.read_params(dim, 4) == pytest.approx(expected, rel=0.005)


def test_parts_of_equal_name_are_added() -> None:
    assert sum_breakdowns([(2, {"a": 1, "b": 3}), (3, {"b": 1})]) == {"a": 2, "b": 9}
