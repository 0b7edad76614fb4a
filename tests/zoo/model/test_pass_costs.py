"""Costs by layer and operation: they add up to the costs of the whole model, and to torch's own count of FLOPs."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import one
from benchmarks.analytic.roofline import PHASES, device, flop_row, forward_pass
from tests.presets import over, representatives
from zoo.catalog import sizes
from zoo.costs import Chunk, Full, Window
from zoo.errors import SpecError, UsageError
from zoo.model.pass_costs import OUTSIDE, Costs, PlainWeights, pass_costs
from zoo.sharding import Exchange

BF16 = PlainWeights(2)
PASSES = ((0, 1), (0, 600), (4095, 1), (700, 33))


@over(zoo.names(), by_default=representatives())
def test_rows_add_up_to_the_costs_of_the_model(name: str) -> None:
    spec = sizes()[name].spec
    for past, new in PASSES:
        for batch in (1, 5):
            found = pass_costs(spec, past, new, batch, BF16, 2)
            total = found.total
            assert total.flops == batch * spec.flops(past, new, logits=1)
            assert total.cache_bytes == spec.kv_bytes(past + new, batch)
            assert float(total.weight_bytes) == pytest.approx(2 * spec.read_params(batch * new), rel=1e-12)
            assert total.sent_bytes == 0
            for keys in ((), ("layer",), ("op",), ("layer", "op")):
                rows = found.by(*keys)
                assert sum(row["flops"] for row in rows) == total.flops
                assert sum(row["cache_bytes"] for row in rows) == total.cache_bytes
                assert sum(row["weight_bytes"] for row in rows) == pytest.approx(float(total.weight_bytes), rel=1e-12)
            flops = {row["op"]: row["flops"] for row in found.by("op") if row["flops"]}
            assert flops == {part: batch * n for part, n in spec.flop_breakdown(past, new, logits=1).items() if n}


@over(zoo.names(), by_default=representatives())
def test_layers_are_counted_and_the_rest_is_outside(name: str) -> None:
    spec = sizes()[name].spec
    rows = pass_costs(spec, 0, 8, 1, BF16, 2).by("layer")
    assert sum(row["layers"] for row in rows) == len(spec.layers)
    assert len({row["layer"] for row in rows}) == len(set(spec.layers)) + 1
    assert [row["layers"] for row in rows if row["layer"] == OUTSIDE] == [0]


@over(zoo.names(), by_default=representatives())
def test_cards_send_what_their_exchanges_send(name: str) -> None:
    spec = sizes()[name].spec
    for tp, ep in ((2, 1), (8, 1), (8, 8)):
        config = InferenceConfig(3, tp=tp, ep=ep)
        try:
            part, cut = config.part(spec), config.divided(spec)
        except SpecError:
            continue
        total = config.costs(spec, 31, 2).total
        exchanges: list[Exchange] = list(cut.exchanges(spec.dim, tp))
        sent = sum(each.sent(6, 2, tp) for each in exchanges) + cut.head_exchange(tp).sent(3, 2, tp)
        assert total.sent_bytes == pytest.approx(sent, rel=1e-12)
        assert total.flops == 3 * part.flops(31, 2, logits=1)
        assert total.cache_bytes == part.kv_bytes(33, 3)


@pytest.mark.parametrize("phase", PHASES)
def test_the_roofline_is_these_totals(phase: str) -> None:
    config, h100 = InferenceConfig(4), device("h100")
    row = flop_row(one("deepseek-v3"), phase, 512, config, h100)
    total = zoo.costs_of("deepseek-v3", *PHASES[phase](512), batch=4).total
    work = forward_pass(zoo.spec("deepseek-v3"), phase, 512, config)
    assert (row["flops"], row["kv_bytes"]) == (total.flops, total.cache_bytes) == (work.flops, work.kv_bytes)
    assert row["weight_bytes_read"] == round(float(total.weight_bytes))


@pytest.mark.parametrize("name", ["llama3", "gemma3", "gpt2", "qwen3"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    spec = zoo.spec(name, tiny=True)
    model = zoo.build(spec)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 20, dtype=torch.long))
    assert zoo.costs_of(spec, 0, 20, batch=3, logits=None, causal=False).total.flops == counter.get_total_flops()


def test_reads_and_writes_of_a_cache_by_hand() -> None:
    attn = zoo.GQA(4, 2, 8, rope=zoo.NoPE())
    token = 2 * 2 * 8 * 2  # bytes: keys and values of two heads of 8, in 16 bits
    for reach, field, past, new, read, written in (
        (Full(), {}, 10, 1, 10, 1),
        (Full(), {}, 10, 7, 10, 7),
        (Window(4), {"window": 4}, 10, 1, 3, 1),  # the window holds the new token too
        (Window(4), {"window": 4}, 2, 9, 2, 4),  # only the last four are kept
        (Chunk(4), {"chunk": 4}, 10, 1, 2, 1),  # two earlier tokens of its own chunk
        (Chunk(4), {"chunk": 4}, 12, 1, 0, 1),
    ):
        cache = zoo.GQA(4, 2, 8, rope=zoo.NoPE(), **field).cache_spec()  # type: ignore[arg-type]
        assert cache.reach == reach
        assert cache.read_bytes(past, new, 2) == read * token
        assert cache.written_bytes(past, new, 2) == written * token
    assert attn.cache_spec().read_bytes(5, 1, Fraction(1, 2)) == 5 * token // 4


def test_a_state_is_read_unless_it_is_new_and_always_written() -> None:
    cache = zoo.Mamba2(2, 8, 1, 16, 4, 1e-5).cache_spec()
    state = 2 * 8 * 16 * 4 + 3 * (2 * 8 + 2 * 16) * 2
    assert [cache.read_bytes(past, 1, 2) for past in (0, 9)] == [0, state]
    assert [cache.written_bytes(past, 1, 2) for past in (0, 9)] == [state, state]


@over(zoo.names())
def test_what_is_read_and_written_in_decode_is_the_cache_where_no_state_and_no_chunk_is(name: str) -> None:
    spec = sizes()[name].spec
    total = pass_costs(spec, 5000, 1, 2, BF16, 2).total
    caches = [layer.cache_spec() for layer in spec.layers]
    if not any(cache.state or cache.reach.period for cache in caches):
        assert total.cache_read_bytes + total.cache_written_bytes == total.cache_bytes


def test_activations_are_the_stream_of_each_branch_and_the_logits() -> None:
    spec = zoo.spec("llama3.1-8b")
    rows = {row["op"]: row["activation_bytes"] for row in zoo.costs_of(spec, 0, 10, batch=3).by("op")}
    stream = 2 * 32 * 30 * 4096 * 2
    assert (rows["projections"], rows["ffn"]) == (stream, stream)
    assert rows["head"] == 3 * (4096 + 128_256) * 2
    assert rows["embedding"] == 30 * 4096 * 2


def test_a_sum_of_costs_is_by_field_and_other_keys_are_refused() -> None:
    assert Costs(1, 2, 3) + Costs(10, 20, 30, sent_bytes=1.5) == Costs(11, 22, 33, sent_bytes=1.5)
    with pytest.raises(UsageError, match="unknown key of costs 'layr'; did you mean layer"):
        zoo.costs_of("qwen3", 0, 1).by("layr")
