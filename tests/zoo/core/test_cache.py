"""The cache: its results, its memory, and its errors."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import product
from random import Random

import pytest
import torch
from torch import Tensor

import zoo
from tests.exact import BOUND, assert_equal
from tests.models import chunks, randomised, tokens_of
from tests.presets import distinct, representatives, screen, split
from zoo.catalog import allocate
from zoo.core.cache import Cache, prepare_forward
from zoo.errors import CacheFullError, NotAvailable, UsageError
from zoo.model.module import Model
from zoo.units import format_bytes

NAME = distinct()[0]
WINDOW = 16  # of every tiny layer that has one; a length like any other for the rest
LENGTH = 3 * WINDOW + 9  # after the longest prefill, too, there are chunks
PREFILLS, CHUNKS = (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW), (1, 7, WINDOW, LENGTH)
# By default each prefill and each chunk: single tokens across the end of the window and past it.
ACROSS = (WINDOW - 1, *[1] * 5, LENGTH)
FEW = [(1, 7), ACROSS, (WINDOW, WINDOW), (WINDOW + 1, LENGTH), (3 * WINDOW, 1)]
MANY = [each for each in product(PREFILLS, CHUNKS) if each not in FEW]


@cache
def model_of(name: str) -> Model:
    return randomised(zoo.spec(name, tiny=True))


@cache
@torch.no_grad()
def whole(name: str) -> Tensor:
    """Logits (2, LENGTH, vocab) of one pass without a cache."""
    return model_of(name)(tokens_of(model_of(name).spec, 2, LENGTH))


@pytest.mark.parametrize("name", screen())
@pytest.mark.parametrize("new", [1, 3])
def test_a_pass_over_a_cache_is_differentiated(name: str, new: int) -> None:
    """It is differentiated like a pass without a cache; the cached tensors are constants. States are overwritten only
    after they were read."""
    model = model_of(name)
    kv = model.new_cache(2, LENGTH)
    tokens = tokens_of(model.spec, 2, 5 + new)
    with torch.no_grad():
        model(tokens[:, :5], kv)
    model.zero_grad()
    model(tokens[:, 5:], kv).square().mean().backward()
    gradient = model.embed.weight.grad
    model.zero_grad(set_to_none=True)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("passes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("name", screen())
def test_cached_equals_uncached(name: str, passes: list[tuple[int, ...]]) -> None:
    """A prefill, then the rest in chunks, the last of these sizes repeated."""
    model = model_of(name)
    for sizes in passes:
        kv = model.new_cache(2, LENGTH)
        parts = [model(part, kv) for part in chunks(tokens_of(model.spec, 2, LENGTH), [*sizes])]
        assert_equal(torch.cat(parts, dim=1), whole(name), f"passes of {sizes}")
        assert kv.length == LENGTH


@torch.no_grad()
@pytest.mark.parametrize("prefill", split([1, WINDOW, LENGTH - WINDOW - 1], [WINDOW]))
@pytest.mark.parametrize("name", screen())
def test_static_caches_decode_what_one_pass_computes(name: str, prefill: int) -> None:
    """Decode runs from a tensor of positions, and no shape ever changes."""
    model, tokens = model_of(name), tokens_of(model_of(name).spec, 2, LENGTH)
    plain = model.new_cache(2, LENGTH)
    static = Cache(plain.cache_specs, 2, LENGTH, torch.float64, torch.device("cpu"), static=True)
    assert static.nbytes == plain.nbytes
    shapes = set()
    model(tokens[:, :prefill], static)
    for i in range(prefill, LENGTH):
        token, position = tokens[:, i : i + 1], torch.tensor([i])
        ctx = prepare_forward(prefill, 1, model._tables, static.layers, dtype=torch.float64, position=position)
        shapes.add(
            tuple(part.shape for view in ctx.views.values() for part in view if part is not None)
        )  # of states: None
        logits = model._run(token, ctx, static.layers, model._eager)
        assert_equal(logits, whole(name)[:, i : i + 1], i)
    assert len(shapes) == 1


@pytest.mark.parametrize("batch", split([1, 3], [3]))
@pytest.mark.parametrize("name", screen())
def test_the_allocated_bytes_equal_the_formula(name: str, batch: int) -> None:
    """Contexts are below, at and above the window; the bytes stay the same once the cache has been filled."""
    spec = zoo.spec(name, tiny=True)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model = allocate(spec, dtype=dtype) if dtype != torch.float32 else zoo.build(spec)
        for context in (1, WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW):
            kv = model.new_cache(batch, context)
            streams = [kept for each in kv.layers for kept in each.kept()]
            storages = {stream.untyped_storage().data_ptr(): stream.untyped_storage().nbytes() for stream in streams}
            assert sum(storages.values()) == kv.nbytes == spec.kv_bytes(context, batch, dtype), dtype
            if dtype == torch.float32:
                with torch.no_grad():
                    model(tokens_of(spec, batch, context), kv)
                assert [stream.untyped_storage().data_ptr() for stream in streams] == list(storages)
                assert kv.nbytes == spec.kv_bytes(context, batch, dtype)


@pytest.mark.parametrize("name", split(zoo.names(), representatives()))
def test_full_sizes_allocate_the_bytes_of_the_formula_too(name: str) -> None:
    """They are allocated on the meta device, where a storage has a size but no memory."""
    spec = zoo.spec(name)
    model = zoo.build(spec, device="meta", dtype=torch.bfloat16)
    for context in (1000, spec.context):
        assert model.new_cache(2, context).nbytes == spec.kv_bytes(context, batch=2)


@torch.no_grad()
@pytest.mark.parametrize("name", screen())
def test_a_full_cache_raises_and_stays_as_it_was(name: str) -> None:
    model, expected = model_of(name), whole(name)
    tokens = tokens_of(model.spec, 2, LENGTH)
    kv = model.new_cache(2, LENGTH)
    model(tokens[:, : LENGTH - 3], kv)
    with pytest.raises(CacheFullError, match=rf"holds {LENGTH - 3} of {LENGTH} tokens and 4 more do not fit") as caught:
        model(tokens[:, :4], kv)
    assert f"new_cache(batch, tokens={LENGTH + 1})" in str(caught.value)
    assert caught.value.exit_code == 2
    assert kv.length == LENGTH - 3
    logits = model(tokens[:, LENGTH - 3 :], kv)
    assert_equal(logits, expected[:, LENGTH - 3 :])
    with pytest.raises(CacheFullError, match="1 more do not fit"):
        model(tokens[:, :1], kv)


@torch.no_grad()
def test_a_batch_of_another_size_is_refused() -> None:
    model = model_of(NAME)
    kv = model.new_cache(2, 8)
    with pytest.raises(UsageError, match="the cache holds 2 sequences, the tokens 3"):
        model(tokens_of(model.spec, 3, 4), kv)
    assert kv.length == 0


@pytest.mark.parametrize(("batch", "tokens"), [(0, 8), (1, 0), (-1, 8), (1, -8)])
def test_an_empty_cache_is_refused(batch: int, tokens: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        model_of(NAME).new_cache(batch, tokens)


def test_a_cache_too_large_for_memory_is_refused_with_its_bytes() -> None:
    model = model_of(NAME)
    needed = format_bytes(model.spec.kv_bytes(10**12, 1, torch.float64))
    with pytest.raises(
        NotAvailable, match=f"a cache for 1 x {10**12} tokens needs {needed}, which cpu cannot"
    ) as caught:
        model.new_cache(1, 10**12)
    assert isinstance(caught.value.__cause__, RuntimeError)


@torch.no_grad()
def test_a_cache_of_another_model_is_refused() -> None:
    """The model has other cache specs. A model with equal layers may use the cache."""
    model, window = model_of(NAME), max(distinct(), key=lambda name: len(zoo.spec(name, tiny=True).layers))
    with pytest.raises(UsageError, match="made for another model; make one with this model's new_cache"):
        model(tokens_of(model.spec, 1, 4), model_of(window).new_cache(1, 8))
    model(tokens_of(model.spec, 1, 4), randomised(model.spec, seed=1).new_cache(1, 8))


@torch.no_grad()
@pytest.mark.parametrize("name", screen())
def test_rows_of_a_batch_do_not_see_each_other(name: str) -> None:
    model, expected = model_of(name), whole(name)
    kv = model.new_cache(1, LENGTH)
    alone = [model(part, kv) for part in chunks(tokens_of(model.spec, 2, LENGTH)[1:], [11])]
    assert_equal(torch.cat(alone, dim=1), expected[1:])


@torch.no_grad()
@pytest.mark.parametrize("name", screen())
def test_logits_to_keep_returns_the_last_logits(name: str) -> None:
    model, expected = model_of(name), whole(name)
    kv = model.new_cache(2, LENGTH)
    logits = model(tokens_of(model.spec, 2, LENGTH), kv, logits_to_keep=2)
    assert logits.shape == (2, 2, model.spec.vocab)
    assert_equal(logits, expected[:, -2:])


def is_bounded(layer: zoo.Layer) -> bool:
    """Whether the layer's tokens see at most a window or chunk."""
    cache = layer.cache_spec()
    return bool(cache.reach.limit) and not cache.entries


WINDOWED = [name for name in distinct() if any(map(is_bounded, zoo.spec(name, tiny=True).layers))]


def within(layer: zoo.Layer) -> list[bool]:
    """Returns whether the last of LENGTH tokens attends to each token: to 16 in a window of 16, to 9 in a chunk of
    16."""
    return [layer.cache_spec().reach.sees(LENGTH - 1, i) for i in range(LENGTH)]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", split(WINDOWED, representatives()))
def test_a_token_out_of_reach_changes_nothing_and_one_within_does(name: str, cached: bool) -> None:
    """By perturbation, on a model of one layer: its last token depends on those in its window or chunk. One expert
    stands for a mixture of them; the two tests below look at mixtures too."""
    spec = zoo.spec(name, tiny=True)
    layer = windowed(spec)
    if isinstance(layer.ffn.block, zoo.DenseAndMoE):
        layer = zoo.swap(layer, zoo.DenseAndMoE, lambda block: block.dense)
    if isinstance(layer.ffn.block, zoo.MoE):
        layer = zoo.swap(layer, zoo.MoE, lambda mixture: mixture.expert)
    model = randomised(of_one(spec, layer))
    tokens = changed_one_by_one(spec)
    with torch.no_grad():
        kv = model.new_cache(len(tokens), LENGTH) if cached else None
        parts = chunks(tokens, [LENGTH - 9, 8, 1] if cached else [LENGTH])
        *_, logits = (model(part, kv) for part in parts)
    assert moved(logits[:, -1]) == within(layer)


def windowed(spec: zoo.Decoder) -> zoo.Layer:
    """The first layer with a window or chunk, without an input of its own."""
    return replace(next(filter(is_bounded, spec.layers)), inputs=None)


def of_one(spec: zoo.Decoder, layer: zoo.Layer) -> zoo.Decoder:
    """A model of this layer alone."""
    return zoo.Decoder(spec.vocab, spec.dim, (layer,), spec.norm, spec.tied, spec.embed_scale, streams=spec.streams)


def changed_one_by_one(spec: zoo.Decoder) -> Tensor:
    """(LENGTH + 1, LENGTH) random tokens: row i differs from the last row in token i."""
    tokens = tokens_of(spec, 1, LENGTH)
    rows = tokens + torch.eye(LENGTH + 1, LENGTH, dtype=torch.long)
    return rows % spec.vocab


def moved(last: Tensor) -> list[bool]:
    """Returns whether each row differs from the last row by more than rounding."""
    return ((last[:-1] - last[-1]).abs().flatten(1).amax(-1) > BOUND * last.abs().max()).tolist()


def lengths_to_go_on_from(spec: zoo.Decoder, held: int) -> set[int]:
    """Returns the lengths to which a cache may be truncated by definition: every layer still holds all tokens that the
    token at that position sees. A ring of W tokens holds the last W. A state, or an unfinished block of entries, is
    only known at the end and before the beginning."""
    found = set()
    for length in range(held + 1):
        fits = True
        for layer in spec.layers:
            kept = layer.cache_spec()
            seen = [at for at in range(length) if kept.reach.sees(length, at)] if kept.per_token else []
            is_held = all(at >= held - kept.tokens(LENGTH) for at in seen)
            fits &= is_held and (length in (0, held) or not kept.state)
        if fits:
            found.add(length)
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", screen())
def test_a_truncated_cache_goes_on_as_if_the_dropped_tokens_had_never_been(name: str) -> None:
    """It is truncated to each possible length, and to no other: after few tokens, none of which a window has
    overwritten, and after many."""
    model = model_of(name)
    tokens, others = (tokens_of(model.spec, 2, LENGTH, seed)[:1] for seed in (0, 1))
    for held in (WINDOW - 3, LENGTH - 4):
        possible = lengths_to_go_on_from(model.spec, held)
        assert {0, held} <= possible
        for length in possible & {0, held - 5, held - 1}:
            kv = model.new_cache(1, LENGTH)
            model(torch.cat([tokens[:, :length], others[:, length:held]], dim=1), kv)
            kv.truncate(length)
            before = kv.snapshot()
            for sizes in ([1, 3], [4]):
                parts = [model(part, kv) for part in chunks(tokens[:, length : length + 4], sizes)]
                assert_equal(torch.cat(parts, dim=1), whole(name)[:1, length : length + 4], (held, length, sizes))
                kv.restore(before)
        kv = model.new_cache(1, LENGTH)
        model(tokens[:, :held], kv)
        for length in {*range(held)} - possible:
            with pytest.raises(UsageError, match=f"cannot be truncated to {length} tokens, only to 0"):
                kv.truncate(length)
        assert kv.length == held


@torch.no_grad()
@pytest.mark.parametrize("seed", split(range(6), [0]))
@pytest.mark.parametrize("name", screen())
def test_any_sequence_of_truncations_and_passes_equals_a_fresh_cache(name: str, seed: int) -> None:
    """This holds wherever a truncation is accepted. Dropped tokens differ from those that replace them."""
    model, random = model_of(name), Random(seed)
    tokens, others = (tokens_of(model.spec, 2, LENGTH, each)[:1] for each in (0, 1))
    for held in (WINDOW - 3, 40):
        kv = model.new_cache(1, LENGTH)
        model(tokens[:, :held], kv)
        for _ in range(4):
            with suppress(UsageError):
                kv.truncate(random.choice([kv.length - 1, random.randrange(kv.length)]))
            length, point, new = kv.length, kv.snapshot(), random.choice([1, 2, WINDOW])
            logits = model(tokens[:, length : length + new], kv)
            assert_equal(logits, whole(name)[:1, length : length + new], (held, length, new))
            kv.restore(point)
            model(others[:, length : length + random.randint(1, 4)], kv)
            with suppress(UsageError):
                kv.truncate(length)
            if kv.length > length:  # the other tokens could not be dropped
                kv.restore(point)
            if length == 0:
                model(tokens[:, :held], kv)


@torch.no_grad()
def test_what_a_window_has_overwritten_stays_lost() -> None:
    """It stays lost through truncations, passes and snapshots, until the cache is empty."""
    windows = next(name for name in distinct() if zoo.spec(name, tiny=True).layers[0].cache_spec().reach.limit)
    model = model_of(windows)
    tokens, kv = tokens_of(model.spec, 1, LENGTH), model.new_cache(1, LENGTH)
    model(tokens[:, :40], kv)
    kv.truncate(39)
    point = kv.snapshot()
    for _ in range(2):
        with pytest.raises(UsageError, match="cannot be truncated to 38 tokens, only to 0, or 39: windows have"):
            kv.truncate(38)
        model(tokens[:, 39:40], kv)
        kv.truncate(39)
        kv.restore(point)
    model(tokens[:, 39:41], kv)
    with pytest.raises(UsageError, match="cannot be truncated to 39 tokens, only to 0, or 40 to 41: windows have"):
        kv.truncate(39)
    kv.truncate(0)
    model(tokens[:, :WINDOW], kv)
    kv.truncate(WINDOW - 2)
    kv.truncate(WINDOW - 5)


@torch.no_grad()
def test_what_a_cache_can_be_truncated_to_is_said() -> None:
    windows = next(name for name in distinct() if zoo.spec(name, tiny=True).layers[0].cache_spec().reach.limit)
    kv = model_of(windows).new_cache(1, LENGTH)
    model_of(windows)(tokens_of(model_of(windows).spec, 1, 40), kv)
    with pytest.raises(UsageError, match=r"cannot be truncated to 7 tokens, only to 0, or 39 to 40: windows have"):
        kv.truncate(7)
    with pytest.raises(UsageError, match="the cache holds 40 tokens and cannot be truncated to 41"):
        kv.truncate(41)
    for wrong in (-1, 1.0, None):
        with pytest.raises(UsageError, match=f"length must be an integer, at least 0, got {wrong}"):
            kv.truncate(wrong)


@torch.no_grad()
def test_a_snapshot_is_not_restored_over_other_tokens() -> None:
    model = model_of(NAME)
    tokens, kv = tokens_of(model.spec, 1, 40), model.new_cache(1, 40)
    model(tokens[:, :10], kv)
    early = kv.snapshot()
    model(tokens[:, 10:20], kv)
    late = kv.snapshot()
    kv.restore(late)
    kv.truncate(kv.length)
    kv.restore(late)
    kv.restore(early)
    model(tokens[:, 25:30], kv)
    with pytest.raises(UsageError, match="snapshot of 20 tokens cannot be restored: the cache went back to 10 tokens"):
        kv.restore(late)
    kv.restore(early)
    assert_equal(model(tokens[:, 10:20], kv), model(tokens[:, :20])[:, 10:])
