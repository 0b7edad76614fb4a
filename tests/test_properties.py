"""Random compositions of every block in the registry hold to the same checks as the released models.

Specs are drawn by their annotations, so a new block is composed with the others without an edit here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from math import lcm, prod
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import Phase, assume, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.exact import assert_equal
from tests.models import chunks, is_well_conditioned, randomised, tokens_of
from zoo.blocks.feed_forward import FeedForward
from zoo.blocks.layer import PLACEMENTS
from zoo.blocks.norms import Norm
from zoo.errors import SpecError
from zoo.model.module import Model
from zoo.registry import Mixer
from zoo.swaps.tiny import tiny

# When a test fails, hypothesis prints the spec itself.
zoo.Spec._repr_pretty_ = lambda spec, printer, cycle: printer.text(repr(spec))

# By field name, or that of a kind's field, where not every value makes sense. Other numbers are 0.3 to 1.5, other
# integers 2 to 6: a product over one number alone is a multiplication to torch, which its counter does not see.
VALUES: dict[str, list[Any]] = {
    "heads": [1, 2, 3, 4],
    "kv_heads": [1, 2, 3],
    "head_dim": [2, 4, 6],
    "rope_dim": [2, 4],
    "window": [1, 2, 3, 5, 8],
    "chunk": [1, 2, 3, 5, 8],
    "LearnedPositions.count": [200],  # no test is longer
    "Streams.count": [2, 3, 4],
    "step": [1, 2, 5],
    "fraction": [0.5, 1.0],
    "experts": [4, 6, 8],
    "k": [1, 2, 3],
    "groups": [1, 2],
    "keep": [1, 2],
    "original": [4, 8],
    "LongRoPE.original": [1, 200],  # all passes rotate alike: by the long factors, or by the short ones
    "short": [(1.5,), (1.0, 3.0), (1.0, 1.5, 3.0)],
    "long": [(2.0,), (2.0, 0.5), (8.0, 0.5, 2.0)],
    "eps": [1e-6, 1e-2],
    "norm_eps": [1e-6, 1e-2],
    "theta": [10.0, 1e4],
    "factor": [1.5, 8.0],
    "high": [2.0, 4.0],
    "fast": [2.0, 32.0],
    "every": [2, 3, 5],
    "iterations": [1, 2, 4],
    "vocab": [30],  # of a table: as many as any model here has
    "min_step": [1e-9],  # single tokens have none (Nemotron 3): one that is reached makes passes differ
}


def of(hint: Any, name: str) -> st.SearchStrategy[Any]:
    """Values for a field of this name and annotation."""
    if get_origin(hint) in (Union, UnionType):
        return st.one_of(*(of(option, name) for option in get_args(hint)))
    if hint is type(None):
        return st.none()
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint is bool:
        return st.booleans()
    if name in VALUES:
        return st.sampled_from(VALUES[name])
    if hint in (int, float):
        return st.integers(2, 6) if hint is int else st.floats(0.3, 1.5)
    return specs(hint, dense=name in ("expert", "shared", "dense"))


@cache
def values_of(kind: type[zoo.Spec]) -> dict[str, st.SearchStrategy[Any]]:
    """Values for each field of a kind."""
    hints = get_type_hints(kind)
    names = {field.name: f"{kind.__name__}.{field.name}" for field in fields(kind)}
    return {name: of(hints[name], own if own in VALUES else name) for name, own in names.items()}


@cache
def kinds(base: type[zoo.Spec], dense: bool = False) -> list[type[zoo.Spec]]:
    """The kinds that are a `base`; of `dense` ones, those that hold no experts."""
    found = [kind for kind in zoo.Spec.kinds.values() if issubclass(kind, base)]
    return [kind for kind in found if not (dense and {zoo.MoE, zoo.Router} & set(get_type_hints(kind).values()))]


@st.composite
def specs(draw: st.DrawFn, base: type[zoo.Spec], dense: bool = False) -> Any:
    """A spec of any kind derived from `base`. Fields are drawn again until they are valid."""
    kind = draw(st.sampled_from(kinds(base, dense)))
    for _ in range(20):
        try:
            return kind(**{name: draw(values) for name, values in values_of(kind).items()})
        except SpecError:
            continue
    return assume(False)


@st.composite
def layers(draw: st.DrawFn, streams: zoo.Streams | None) -> zoo.Layer:
    """A layer of a model of these residual streams."""
    plain = [place for name, place in PLACEMENTS.items() if name != "hyper"]
    placements = st.sampled_from([*plain, lambda norm, block: zoo.Branch(block)])
    if streams is not None:
        iterations = draw(st.sampled_from(VALUES["iterations"]))
        normed = draw(st.booleans())
        placements = st.just(lambda norm, block: zoo.HyperBranch(block, norm if normed else None, streams, iterations))
    blocks = draw(st.sampled_from([(Mixer, FeedForward)] * 3 + [(Mixer, None), (None, FeedForward)]))
    branches = (kind and draw(placements)(draw(specs(Norm)), draw(specs(kind))) for kind in blocks)
    return zoo.Layer(*branches, output_scale=draw(st.none() | st.just(zoo.LayerScale())))


def supplied(layers: list[zoo.Layer]) -> tuple[zoo.Layer, ...]:
    """The layers; each layer that takes keys and values is preceded by a layer that hands them on."""
    found: list[zoo.Layer] = []
    for layer in layers:
        if set(layer.takes()) - {name for earlier in found for name in earlier.hands_on()}:
            assert layer.attn
            found.append(replace(layer, attn=replace(layer.attn, block=zoo.KVSource(**vars(layer.mixer)))))
        found.append(layer)
    return tuple(found)


@st.composite
def decoders(draw: st.DrawFn) -> zoo.Decoder:
    """A model of up to five layers of up to three kinds."""
    streams = draw(st.sampled_from([None, None]) | specs(zoo.Streams))
    drawn = draw(st.lists(layers(streams), min_size=1, max_size=3))
    kinds = [kind for kind in drawn if not kind.takes() or isinstance(kind.mixer, zoo.SharedKV)]
    assume(kinds)
    if (per_layer := draw(st.none() | specs(zoo.PerLayerInputs))) is not None:
        block = replace(draw(specs(zoo.LayerInput)), width=per_layer.width)
        inputs = zoo.HyperBranch(block, streams=streams) if streams else zoo.olmo(draw(specs(Norm)), block)
        kinds = [replace(kind, inputs=inputs) for kind in kinds]
    return zoo.Decoder(
        vocab=draw(st.integers(2, 30)),
        dim=draw(st.integers(2, 20)),
        layers=supplied(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))),
        norm=draw(specs(Norm)),
        tied=draw(st.booleans()),
        embed_scale=draw(st.sampled_from([1.0, 3.5])),
        positions=draw(st.none() | specs(zoo.LearnedPositions)),
        logits_scaling=draw(st.sampled_from([1.0, 4.0])),
        logit_cap=draw(st.sampled_from([None, 0.7])),
        per_layer=per_layer,
        streams=streams,
    )


thoroughly = settings(max_examples=4 * settings().max_examples)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def reachable() -> set[type[zoo.Spec]]:
    """The kinds that a field of a model, or of a block in it, can hold by its annotation."""
    bases: list[type[zoo.Spec]] = [Mixer, FeedForward, Norm, zoo.PerLayerInputs, zoo.LayerInput, zoo.Streams]
    bases += [zoo.LearnedPositions, zoo.Layer, zoo.LayerScale, zoo.Branch, zoo.PostNorm, zoo.HyperBranch, zoo.Decoder]
    found: set[type[zoo.Spec]] = set()
    while bases:
        for kind in {*kinds(bases.pop())} - found:
            found.add(kind)
            held = [hint for each in get_type_hints(kind).values() for hint in (each, *get_args(each))]
            bases += [hint for hint in held if isinstance(hint, type) and issubclass(hint, zoo.Spec)]
    return found


def test_every_block_is_composed() -> None:
    """Each kind in the registry is one that the strategies can reach: in the first models, or by itself where few
    models have it."""
    reached: set[str] = set()

    def was_the_last(spec: zoo.Decoder) -> bool:
        reached.update(type(part).__name__ for part in spec.walk())
        return reached == zoo.Spec.kinds.keys()

    drawn = settings(max_examples=150, database=None, phases=[Phase.generate])
    with suppress(NoSuchExample):
        find(decoders(), was_the_last, settings=drawn)
    assert len(reached) > 0.8 * len(zoo.Spec.kinds)
    for name in zoo.Spec.kinds.keys() - reached:
        kind = zoo.Spec.kinds[name]
        assert type(find(specs(kind), lambda spec: True, settings=drawn)) is kind
        assert kind in reachable()


@thoroughly
@given(decoders(), st.integers(1, 3), st.integers(1, 12), st.integers(0, 40), st.integers(1, 40))
def test_formulas_are_the_built_modules(spec: zoo.Decoder, batch: int, context: int, past: int, new: int) -> None:
    for made in (spec, tiny(spec)):
        model = zoo.build(made, device="meta")
        assert made.params() == sum(weight.numel() for weight in model.parameters())
        assert 0 < made.active_params() <= made.params()
    assert spec.map(lambda part: part) is spec
    assert all(part.describe().isprintable() for part in spec.walk())
    check_bytes(spec, batch, context)
    check_causal_flops(spec, past, new)


def check_bytes(spec: zoo.Decoder, batch: int, context: int) -> None:
    """Checks that the allocated bytes equal the formula, and grow by whole blocks as it states."""
    for dtype in (torch.float32, torch.bfloat16):
        cache = zoo.build(spec, device="meta", dtype=dtype).new_cache(batch, context)
        assert cache.nbytes == spec.kv_bytes(context, batch, dtype)
        fixed, slope = spec.kv_growth(dtype)
        block = lcm(*(layer.cache_spec().block for layer in spec.layers))
        length = block * -(-(8 + context) // block)
        assert spec.kv_bytes(length, dtype=dtype) == pytest.approx(fixed + slope * length, rel=1e-12)


def check_causal_flops(spec: zoo.Decoder, past: int, new: int) -> None:
    """Scores and weighted values: 2 FLOPs per multiply-add, pair by pair. A recurrence's step adds an outer product to
    a state that is a matrix, which torch does not count."""
    recurrent = (layer.cache_spec() for layer in spec.layers if not layer.cache_spec().per_token)
    states = [state for cache in recurrent for state in cache.state if state.in_float32]
    outer = sum(2 * prod(state.shape) for state in states if len(state.shape) > 1)
    latent = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, zoo.MLA)]
    read = {mixer: min(past + 1, mixer.indexer.k if isinstance(mixer, zoo.SparseMLA) else past + 1) for mixer in latent}
    along = sum(2 * read[mixer] * mixer.heads * mixer.rope_dim for mixer in latent)  # rotary keys computed as values
    assert spec.flops(past, 1) == spec.flops(past, 1, causal=False) - along + outer
    assert spec.flops(past, new) <= spec.flops(past, new, causal=False) + (outer if new == 1 else 0)
    for layer in spec.layers:
        mixer, dim = layer.mixer, spec.dim
        if isinstance(mixer, zoo.GQA):  # prefill costs as much as its tokens one by one
            assert mixer.flops(dim, past, new) == sum(mixer.flops(dim, i, 1) for i in range(past, past + new))
            pair = 2 * mixer.heads * (mixer.head_dim + mixer.value_dim)
            assert (mixer.flops(dim, past, new) - new * mixer.flops(dim, 0, 1)) == pair * (
                mixer.reach.pairs(past, new) - new
            )


@thoroughly
@given(decoders(), SIZES, st.integers(0, 12), st.integers(1, 12), st.integers(0, 2**31))
@torch.no_grad()
def test_passes_over_a_cache(spec: zoo.Decoder, sizes: list[int], past: int, new: int, seed: int) -> None:
    """They compute the same as one pass, with the FLOPs of the formula."""
    model, tokens = randomised(spec, seed), tokens_of(spec, 2, 24, seed)
    check_flops(model, past, new)
    expected, cache = model(tokens), model.new_cache(2, 24)
    assume(expected.isfinite().all())  # products of products, without norms between them, overflow
    assume(is_well_conditioned(model, tokens, expected))
    logits = torch.cat([model(part, cache) for part in chunks(tokens, sizes)], dim=1)
    assert_equal(logits, expected)
    assert cache.length == 24


def check_flops(model: Model, past: int, new: int) -> None:
    """Checks that the FLOPs of a prefill, of a chunk after cached tokens and of a single token are those that torch
    counts, also for dense kernels, which compute masked pairs too."""
    spec, tokens = model.spec, tokens_of(model.spec, 1, past + new)
    cache = model.new_cache(1, past + new)
    with sdpa_kernel(SDPBackend.MATH):
        if past:
            model(tokens[:, :past], cache)
        with FlopCounterMode(display=False) as counted:
            model(tokens[:, past:], cache)
        assert counted.get_total_flops() == spec.flops(past, new, causal=False)
        with FlopCounterMode(display=False) as counted:
            model(tokens, logits_to_keep=1)
        assert counted.get_total_flops() == spec.flops(0, past + new, logits=1, causal=False)
