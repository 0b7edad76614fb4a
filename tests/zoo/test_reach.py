"""A reach that nobody has seen, defined here alone: masks, caches, costs, pictures, words, the page's sums and
compiled code follow."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from benchmarks.gallery.cost_terms import model_terms
from benchmarks.gallery.files import STATIC
from tests.exact import assert_equal, differs
from tests.models import has_compiler, randomised, tokens_of
from zoo import GLU, GQA, Decoder, Layer, RMSNorm, RoPE, pre
from zoo.core.cache import Cache, prepare_forward
from zoo.core.forward_context import ReachMask, visible
from zoo.core.ops.attention import attention
from zoo.costs import Full, Reach, Window, reach_of
from zoo.diagram import svg
from zoo.errors import SpecError
from zoo.hf.config import layer_types
from zoo.swaps.differences import structure_differences

LENGTH = 23
NORM = RMSNorm(1e-5)
KINDS, Reach.kinds = Reach.kinds, dict(Reach.kinds)  # other tests draw and describe the kinds of the zoo alone


@dataclass(frozen=True)
class Strided(Reach):
    """Every `step`-th of the last `size` tokens (0: of all)."""

    step: int
    size: int

    name = "stride"
    colours = ("#123456", "#654321")

    @property
    def limit(self) -> int | None:
        return self.size or None

    @property
    def stride(self) -> int:
        return self.step


@dataclass(frozen=True)
class _StridedGQA(GQA):
    size: int | None = None

    @property
    def reach(self) -> Reach:
        return Strided(2, self.size or 0)


KINDS, Reach.kinds = Reach.kinds, KINDS
SIZES = {"of all": None, "of the last six": 6}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reach, "kinds", KINDS)


def model_of(size: int | None, **options: Any) -> Decoder:
    attn = _StridedGQA(4, 2, 8, RoPE(1e4), size=size, **options)
    full = GQA(4, 2, 8, RoPE(1e4))
    layers = (Layer(pre(NORM, attn), pre(NORM, GLU(24))), Layer(pre(NORM, full), pre(NORM, GLU(24))))
    return Decoder(vocab=40, dim=20, layers=layers, norm=NORM)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@given(past=st.integers(0, 30), new=st.integers(1, 30))
def test_counts(size: int | None, past: int, new: int) -> None:
    reach = Strided(2, size or 0)
    seen = [[k for k in range(q + 1) if reach.sees(q, k)] for q in range(past, past + new)]
    assert seen[0] == [k for k in range(max(0, past + 1 - (size or past + 1)), past + 1) if (past - k) % 2 == 0]
    assert [reach.seen(past + i + 1) for i in range(new)] == list(map(len, seen))
    assert reach.pairs(past, new) == sum(map(len, seen)) <= reach.dense_pairs(past, new)
    assert reach_of(*reach.arguments) == reach


@torch.no_grad()
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_one_pass_equals_chunks_and_single_tokens(size: int | None, sinks: bool) -> None:
    spec = model_of(size, sinks=sinks)
    model, tokens = randomised(spec), tokens_of(spec, 2, LENGTH)
    whole = model(tokens)
    everything = Decoder(40, 20, (replace(spec.layers[1], attn=pre(NORM, GQA(**_fields(spec)))), spec.layers[1]), NORM)
    assert differs(randomised(everything)(tokens), whole)
    for sizes in ([LENGTH], [5, 7, 11], [1] * LENGTH, [9, *[1] * 14]):
        kv = model.new_cache(2, LENGTH)
        assert kv.nbytes == spec.kv_bytes(LENGTH, 2, torch.float64)
        assert_equal(torch.cat([model(part, kv) for part in tokens.split(sizes, dim=1)], dim=1), whole, sizes)
    static = Cache(model.new_cache(2, LENGTH).cache_specs, 2, LENGTH, torch.float64, torch.device("cpu"), static=True)
    model(tokens[:, :5], static)
    for i in range(5, LENGTH):
        ctx = prepare_forward(i, 1, model._tables, static.layers, dtype=torch.float64, position=torch.tensor([i]))
        logits = model._run(tokens[:, i : i + 1], ctx, static.layers, model._eager)
        assert_equal(logits, whole[:, i : i + 1], i)


def _fields(spec: Decoder) -> dict[str, Any]:
    mixer = spec.layers[0].mixer
    return {name: value for name, value in vars(mixer).items() if name != "size"}


@torch.no_grad()
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_compiled_equals_uncompiled(size: int | None) -> None:
    plain, fast = randomised(model_of(size)), randomised(model_of(size))
    fast.compile(backend="aot_eager")
    tokens = tokens_of(plain.spec, 1, LENGTH)
    whole = plain(tokens)
    assert_equal(fast(tokens), whole)
    for sizes in ([9, 1, 1, 7, 1, 4], [1] * LENGTH):
        kv = fast.new_cache(1, LENGTH)
        assert_equal(torch.cat([fast(part, kv) for part in tokens.split(sizes, dim=1)], dim=1), whole, sizes)


@pytest.mark.parametrize("sinks", [None, 4], ids=["", "sinks"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_gradients_are_those_of_the_whole_mask(size: int | None, sinks: int | None) -> None:
    reach, positions = Strided(2, size or 0), torch.arange(LENGTH)
    given = [torch.randn(1, heads, LENGTH, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    sink = None if sinks is None else torch.randn(sinks, dtype=torch.float64, requires_grad=True)
    inputs = given if sink is None else [*given, sink]
    masks = ReachMask(positions, positions, reach), visible(positions, positions, reach)
    outs = [attention(*given, mask, 0.3, sink) for mask in masks]
    assert_equal(*outs)
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in outs), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_costs_and_the_sums_of_the_page(size: int | None) -> None:
    spec = model_of(size)
    terms, cache = model_terms(spec), spec.layers[0].cache_spec()
    for context in (1, 2, 5, 6, 7, 99, 100, 4096):
        assert sum(n * each.flops(context) for n, each in terms) == spec.flops(context - 1, 1)
        assert cache.tokens(context) == (context if size is None else min(context, 6))
    grown = spec.flop_breakdown(99, 1)["scores"] - model_of(None).flop_breakdown(0, 1)["scores"]
    seen = Strided(2, size or 0).seen(100) + 100 - 2
    assert grown == 2 * 4 * 16 * seen


@pytest.mark.browser
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_script_of_the_page_adds_up_the_same(size: int | None, browser: Any) -> None:
    spec, contexts = model_of(size), [1, 2, 5, 6, 7, 99, 100, 4096]
    terms = model_terms(spec)
    packed = {"data": {"models": [], "terms": [asdict(each) for _, each in terms]}}
    page = browser.new_page()
    script = (STATIC / "sums.js").read_text(encoding="utf-8")
    page.add_script_tag(content=f"const PACKED = {json.dumps(packed)};\n{script}")
    layers = [[n, i] for i, (n, _) in enumerate(terms)]
    sums = "([layers, all]) => all.map(each => [sums.flops(layers, each), sums.cacheBytes(layers, each, 1, 2)])"
    found = page.evaluate(sums, [layers, contexts])
    assert found == [[spec.flops(context - 1, 1), spec.kv_bytes(context)] for context in contexts]


def test_pictures_and_words() -> None:
    spec, other = model_of(6), model_of(None)
    layer = spec.layers[0]
    assert "stride 2 6" in layer.describe()
    assert layer_types(other)[1] == "full_attention"
    drawn = svg(spec, "", theme="auto")
    assert "--zoo-reach-stride:#123456" in drawn
    assert 'class="reach-stride' in drawn
    assert ">stride<" in drawn
    plain = Decoder(40, 20, (spec.layers[1],) * 2, NORM)
    sentences = [each.sentence for each in structure_differences(spec, plain)]
    assert "1 of 2 layers sees tokens by stride 2 6" in sentences
    assert "reach-stride" not in svg(plain, "", theme="light")


def test_a_kind_has_a_name_of_its_own() -> None:
    with pytest.raises(TypeError, match=r"two kinds are called Window: zoo.costs.Window and .*Window"):
        type("Window", (Reach,), {"__module__": __name__})
    with pytest.raises(TypeError, match="two kinds are called GQA"):
        type("GQA", (GQA,), {"__module__": __name__})
    assert Reach.kinds["Window"] is Window
    assert zoo.Spec.kinds["GQA"] is GQA
    again = type("Strided", (Reach,), {"__module__": __name__, "__qualname__": "Strided"})  # as importlib.reload does
    assert Reach.kinds["Strided"] is again
    Reach.kinds["Strided"] = Strided


def test_a_ring_begins_with_a_stretch() -> None:
    kind = type("_Odd", (Full,), {"period": 10, "limit": 4})
    with pytest.raises(SpecError, match="limit=4 must divide period=10"):
        kind()
