"""The whole model run: its forward pass, continuing prompts, and sampling from logits."""

from __future__ import annotations

import inspect
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tests.exact import assert_as_near, assert_equal, differs
from tests.models import choosing_all, is_differentiated, one_layer_of_each, randomised, tokens_of
from tests.presets import distinct, screen, screen_by_family, split
from zoo.errors import CacheFullError, UsageError
from zoo.model.module import Model
from zoo.model.sampling import GenerationConfig, Sampler

NAME = distinct()[0]
PROMPT, NEW = 20, 24  # past a tiny window of 16


@cache
def model_of(name: str) -> Model:
    return randomised(zoo.spec(name, tiny=True))


@cache
def greedy(name: str) -> Tensor:
    """(3, NEW) most likely tokens after three prompts."""
    return model_of(name).generate(tokens_of(model_of(name).spec, 3, PROMPT), NEW)


@torch.no_grad()
@pytest.mark.parametrize("name", screen())
def test_a_later_token_changes_nothing_before_it(name: str) -> None:
    model = model_of(name)
    tokens = tokens_of(model.spec, 2, PROMPT)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.spec.vocab
    before, after = model(tokens), model(changed)
    assert_equal(after[:, :-1], before[:, :-1])
    assert differs(after[:, -1], before[:, -1])


@torch.no_grad()
@pytest.mark.parametrize("name", screen())
def test_narrow_dtypes_are_as_near_to_float64_over_a_cache_and_under_autocast(name: str) -> None:
    """As in one pass: in chunks and token by token; and a float32 model under autocast as near as one in bfloat16.
    Rounding decides between no experts and no keys, since all are chosen."""
    spec = one_layer_of_each(choosing_all(zoo.spec(name, tiny=True)))
    tokens = tokens_of(spec, 6, 30)  # three draws of two rows

    def both_forms(model: Model) -> list[tuple[Tensor, ...]]:
        """The logits of each draw, of one pass and of several over a cache."""
        cache = model.new_cache(6, 30)
        parts = [model(part, cache) for part in tokens.split([20, 8, 1, 1], dim=1)]
        return [logits.chunk(3) for logits in (model(tokens), torch.cat(parts, dim=1))]

    for dtype in (torch.float16, torch.bfloat16):
        model = randomised(spec, dtype=dtype)
        whole, cached = both_forms(model)
        exact = deepcopy(model).double()(tokens).chunk(3)
        assert whole[0].dtype == dtype
        assert_as_near(cached, whole, exact, "cached")
    with torch.autocast("cpu", dtype):
        for logits in both_forms(model.float()):
            assert_as_near(logits, whole, exact, "under autocast")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_scaled_in_their_own_dtype(dtype: torch.dtype) -> None:
    """As if the embedding held the products; sqrt(dim) is rounded to the dtype before it multiplies (Gemma)."""
    spec = replace(zoo.spec(NAME, tiny=True), tied=False, embed_scale=640**0.5)
    one, other = randomised(spec, dtype=dtype), randomised(replace(spec, embed_scale=1.0), dtype=dtype)
    other.load_state_dict(one.state_dict())
    other.embed.weight *= torch.tensor(640**0.5, dtype=dtype)
    tokens = tokens_of(spec, 2, PROMPT)
    assert torch.equal(one(tokens), other(tokens))


@pytest.mark.parametrize("name", screen())
def test_every_parameter_gets_a_gradient(name: str) -> None:
    """Also after a pass without gradients, whose tables are kept. What chooses experts or tokens gets none."""
    model = randomised(zoo.spec(name, tiny=True))
    tokens = tokens_of(model.spec, 2, 2 * PROMPT)
    with torch.inference_mode():
        model(tokens)
    model(tokens).square().mean().backward()
    for key, weight in model.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad == is_differentiated(key), key
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(4, dtype=torch.long),
        torch.zeros(1, 2, 3, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
        torch.zeros(0, 2, dtype=torch.long),
        torch.zeros(1, 4),
        torch.zeros(1, 4, dtype=torch.bool),
        torch.zeros(1, 4, dtype=torch.complex64),
    ],
    ids=lambda tokens: f"{tokens.dtype}{tuple(tokens.shape)}",
)
def test_tokens_of_another_dtype_or_shape_are_refused(tokens: Tensor) -> None:
    model = model_of(NAME)
    with pytest.raises(UsageError, match=r"tokens must be integers of shape \(batch, new\), not "):
        model(tokens)
    with pytest.raises(UsageError, match=r"tokens must be integers of shape \(batch, new\), not "):
        model.generate(tokens, 1)


def test_arguments_out_of_range_are_refused() -> None:
    model, vocab = model_of(NAME), model_of(NAME).spec.vocab
    tokens = tokens_of(model.spec, 2, 4)
    with pytest.raises(UsageError, match="logits_to_keep=-1 is below 0"):
        model(tokens, logits_to_keep=-1)
    for count in (0, -3):
        with pytest.raises(UsageError, match=f"max_new_tokens must be an integer, at least 1, got {count}"):
            model.generate(tokens, count)
    for wrong in (-1, vocab):
        with pytest.raises(UsageError, match=f"token ids must be from 0 to {vocab - 1}, not "):
            model.generate(torch.full_like(tokens, wrong), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"tokens": torch.zeros(1, 0, dtype=torch.long)},
        {"tokens": torch.full((1, 3), -1)},
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_streaming_refuses_arguments_before_the_first_token_is_asked_for(options: dict[str, Any]) -> None:
    model = model_of(NAME)
    with pytest.raises(UsageError):
        model.stream(**{"tokens": tokens_of(model.spec, 1, 3), "max_new_tokens": 1} | options)


@torch.no_grad()
@pytest.mark.parametrize("name", split(distinct(), [NAME]))
def test_greedy_takes_the_argmax_of_the_full_forward(name: str) -> None:
    """Each new token by one forward over all before it, without a cache."""
    model, prompts, new = model_of(name), tokens_of(model_of(name).spec, 3, PROMPT), greedy(name)
    assert new.shape == (3, NEW)
    logits = model(torch.cat([prompts, new], dim=1))[:, PROMPT - 1 : -1]
    assert torch.equal(logits.argmax(-1), new)


@pytest.mark.parametrize("name", split(distinct(), [NAME]))
def test_streaming_yields_each_step_at_once(name: str) -> None:
    model = model_of(name)
    stream = model.stream(tokens_of(model.spec, 3, PROMPT), NEW)
    assert torch.equal(next(stream), greedy(name)[:, 0])
    assert torch.equal(torch.stack(list(stream), dim=1), greedy(name)[:, 1:])
    assert torch.is_grad_enabled()


def test_streaming_takes_no_gradients_and_leaves_the_mode_alone_between_steps() -> None:
    """Whichever mode each of its tokens is asked for in."""
    name, taken = NAME, []
    model = randomised(zoo.spec(name, tiny=True))
    model.register_forward_hook(lambda *_: taken.append(torch.is_grad_enabled()))
    stream = model.stream(tokens_of(model.spec, 3, PROMPT), NEW, stop=iter([model.spec.vocab]))
    for i, mode in enumerate([torch.enable_grad, torch.no_grad, torch.inference_mode, torch.enable_grad]):
        with mode():
            before = torch.is_grad_enabled()
            assert torch.equal(next(stream), greedy(name)[:, i])
            assert torch.is_grad_enabled() == before
    assert taken == [False] * 4


@pytest.mark.parametrize("name", split(distinct(), [NAME]))
def test_a_row_that_met_a_stop_token_repeats_it_and_all_stop_together(name: str) -> None:
    model = model_of(name)

    def sampled(stop: list[int]) -> Tensor:
        return model.generate(tokens_of(model.spec, 3, PROMPT), NEW, temperature=2.0, seed=0, stop=stop)

    free = sampled([])
    stop = [int(free[row, 3 * row + 1]) for row in range(3)]  # ids that end the rows one after another
    ends = [next(i for i, token in enumerate(row) if token in stop) for row in free.tolist()]
    assert max(ends) > min(ends)
    new = sampled(stop)
    assert new.shape == (3, max(ends) + 1)
    for row, whole, end in zip(new.tolist(), free.tolist(), ends, strict=True):
        assert row == whole[: end + 1] + [whole[end]] * (max(ends) - end)
    assert sampled(stop[:1]).shape == (3, NEW), "one row goes on"


def test_a_seed_repeats_a_sample_and_leaves_other_randomness_alone() -> None:
    model = model_of(NAME)
    tokens = tokens_of(model.spec, 2, 5)

    def sample(seed: int | None) -> Tensor:
        return model.generate(tokens, 12, temperature=1.0, seed=seed)

    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    one = sample(7)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(sample(7), one)
    assert not torch.equal(sample(8), one)
    assert not torch.equal(sample(None), sample(None))


def test_temperature_near_zero_and_top_k_1_are_greedy() -> None:
    name = NAME
    tokens = tokens_of(model_of(name).spec, 3, PROMPT)
    for options in ({"temperature": 1e-6}, {"temperature": 5.0, "top_k": 1}, {"temperature": 5.0, "top_p": 1e-9}):
        assert torch.equal(model_of(name).generate(tokens, NEW, **options), greedy(name))


@torch.no_grad()
@pytest.mark.parametrize("name", screen_by_family(1))
def test_generation_over_a_cache_is_one_whole_generation(name: str) -> None:
    """In turns, of which the next begins with the last token: the cache holds everything before it. So does a prompt in
    two parts, and the cache is as after one pass over all."""
    model, prompts = model_of(name), tokens_of(model_of(name).spec, 3, PROMPT)
    cache = model.new_cache(3, PROMPT + NEW)
    model(prompts[:, :7], cache)
    first = model.generate(prompts[:, 7:], 5, cache=cache)
    assert cache.length == PROMPT + 4
    turn = torch.cat([first[:, -1:], prompts[:, :3]], dim=1)  # the answer's last token and a question
    second = model.generate(turn, 5, cache=cache)
    said = torch.cat([prompts, first, turn[:, 1:], second], dim=1)
    assert cache.length == said.shape[1] - 1
    assert torch.equal(first, greedy(name)[:, :5])
    assert torch.equal(second, model.generate(said[:, : -second.shape[1]], second.shape[1]))
    assert_equal(model(said[:, -1:], cache), model(said)[:, -1:])


def test_a_cache_that_does_not_fit_is_refused_before_the_first_token() -> None:
    model = model_of(NAME)
    tokens, cache = tokens_of(model.spec, 2, 5), model.new_cache(2, 12)
    model.generate(tokens, 8, cache=cache)  # the last token is not stored
    with pytest.raises(CacheFullError, match="holds 12 of 12 tokens and 1 more do not fit"):
        model.stream(tokens[:, :1], 1, cache=cache)
    cache.truncate(0)
    with pytest.raises(CacheFullError, match="holds 0 of 12 tokens and 13 more do not fit"):
        model.stream(tokens, 9, cache=cache)
    with pytest.raises(UsageError, match="the cache holds 2 sequences, the tokens 1"):
        model.stream(tokens[:1], 1, cache=cache)


def reads_ids(spec: zoo.Decoder) -> bool:
    return spec.per_layer is not None or any(layer.reads_tokens for layer in spec.layers)


@torch.no_grad()
@pytest.mark.parametrize("name", screen())
def test_embeddings_replace_those_of_the_tokens(name: str) -> None:
    """In a pass, over a cache and in generation. Models that read token ids elsewhere need them beside."""
    model, tokens = model_of(name), tokens_of(model_of(name).spec, 3, PROMPT)
    embeds, without = model.embed(tokens), None
    if reads_ids(model.spec):
        for call in (model, lambda tokens, **given: model.generate(tokens, 2, **given)):
            with pytest.raises(UsageError, match="layers of this model read token ids: give tokens as well as"):
                call(None, inputs_embeds=embeds)
        without = tokens
    assert_equal(model(without, inputs_embeds=embeds), model(tokens))
    moved = embeds + 0.1 * torch.randn(embeds.shape, dtype=embeds.dtype)
    assert_equal(model(tokens, inputs_embeds=moved), model(without, inputs_embeds=moved))
    assert differs(model(tokens, inputs_embeds=moved), model(tokens))
    cache = model.new_cache(3, PROMPT)
    parts = [model(None if without is None else tokens[:, p], cache, 0, embeds[:, p]) for p in (slice(9), slice(9, 20))]
    assert_equal(torch.cat(parts, dim=1), model(tokens))
    assert torch.equal(model.generate(without, 4, inputs_embeds=embeds), greedy(name)[:, :4])
    if without is None:
        assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=4), greedy(name)[:, :4])


def test_embeddings_have_gradients() -> None:
    """As a trained prompt needs."""
    model = model_of(NAME)
    embeds = model.embed(tokens_of(model.spec, 2, 6)).detach().requires_grad_()
    model(inputs_embeds=embeds).square().mean().backward()
    assert (embeds.grad.abs().amax(-1) > 0).all()


def test_embeddings_of_another_shape_or_dtype_are_refused() -> None:
    model = model_of(NAME)
    tokens, dim = tokens_of(model.spec, 2, 4), model.spec.dim
    for embeds in (
        torch.zeros(4, dim, dtype=torch.float64),
        torch.zeros(2, 4, dim + 1, dtype=torch.float64),
        torch.zeros(2, 0, dim, dtype=torch.float64),
        torch.zeros(2, 4, dim),
    ):
        with pytest.raises(UsageError, match=rf"inputs_embeds must be torch.float64 of shape .* dim {dim}, not "):
            model(inputs_embeds=embeds)
    with pytest.raises(UsageError, match=r"inputs_embeds must be .* with a row for each token and dim 64, not"):
        model(tokens, inputs_embeds=torch.zeros(2, 5, dim, dtype=torch.float64))
    with pytest.raises(UsageError, match="a pass needs tokens, inputs_embeds or both"):
        model()


def test_a_model_stops_at_its_own_ids_unless_told_otherwise() -> None:
    model = randomised(zoo.spec(NAME, tiny=True))
    tokens = tokens_of(model.spec, 1, PROMPT)
    free = model.generate(tokens, NEW)[0].tolist()
    assert model.generation == GenerationConfig(stop=())
    assert len(free) == NEW
    model.generation = GenerationConfig(stop=(free[3],))
    first = free.index(free[3])
    assert model.generate(tokens, NEW)[0].tolist() == free[: first + 1]
    assert model.generate(tokens, NEW, stop=())[0].tolist() == free
    assert model.generate(tokens, NEW, stop=[free[0]])[0].tolist() == free[:1]


def test_published_sampling_is_used_only_if_asked_for() -> None:
    model = randomised(zoo.spec(NAME, tiny=True))
    tokens = tokens_of(model.spec, 3, PROMPT)
    model.generation = GenerationConfig(temperature=2.0, top_k=40, top_p=0.9)
    assert torch.equal(model.generate(tokens, NEW), greedy(NAME))
    sampled = model.generate(tokens, NEW, seed=1, **model.generation.sampling)
    assert torch.equal(sampled, model.generate(tokens, NEW, 2.0, 40, 0.9, 1))
    assert not torch.equal(sampled, greedy(NAME))


def test_streaming_and_generating_take_the_same_options() -> None:
    stream, generate = (inspect.signature(each).parameters for each in (Model.stream, Model.generate))
    assert stream == generate
    assert "cache" in stream


CPU = torch.device("cpu")
LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0]])


def sampler(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0) -> Sampler:
    return Sampler(temperature, top_k, top_p, seed, CPU)


def drawn(sample: Sampler, logits: Tensor = LOGITS, times: int = 4000) -> dict[int, float]:
    """Token id -> how often it was drawn."""
    counts = Counter(sample(logits.expand(times, -1)).tolist())
    return {token: count / times for token, count in counts.items()}


def test_draws_follow_the_softmax() -> None:
    for temperature in (0.5, 1.0, 3.0):
        frequencies, expected = drawn(sampler(temperature)), (LOGITS[0] / temperature).softmax(-1)
        for token, probability in enumerate(expected.tolist()):
            spread = 5 * (probability * (1 - probability) / 4000) ** 0.5
            assert abs(frequencies.get(token, 0.0) - probability) < spread + 1e-9


@pytest.mark.parametrize(
    ("top_k", "left"), [(1, {1}), (2, {1, 3}), (3, {1, 3, 2}), (5, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})]
)
def test_top_k_keeps_the_k_most_likely(top_k: int, left: set[int]) -> None:
    assert drawn(sampler(temperature=5.0, top_k=top_k)).keys() == left


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.125]])  # exact in binary
    logits = probabilities.log()
    for top_p, left in (
        (1e-50, {0}),
        (0.5, {0}),
        (0.51, {0, 1}),
        (0.75, {0, 1}),
        (0.87, {0, 1, 2}),  # of two that are equally likely the first
        (0.9, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ):
        assert drawn(sampler(top_p=top_p), logits).keys() == left


def test_top_p_comes_after_top_k() -> None:
    """Among the 2 most likely of 0.4, 0.3, 0.3 the first holds 4/7 of the probability."""
    logits = torch.tensor([[0.4, 0.32, 0.28]]).log()
    assert drawn(sampler(top_k=2, top_p=0.5), logits).keys() == {0}
    assert drawn(sampler(top_p=0.5), logits).keys() == {0, 1}


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9),
    temperature=st.floats(0, 100),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
)
def test_a_sampled_token_is_one_that_was_kept(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    scores = torch.tensor([logits])
    drawn = logits[int(sampler(temperature, top_k, top_p)(scores))]
    assert sum(score > drawn for score in logits) < min(top_k or len(logits), len(logits))
    if top_k is None and top_p is not None:
        above = ((scores - scores.max()) / max(temperature, 1e-30)).softmax(-1)[scores > drawn].sum()
        assert above < top_p + 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is below 0"),
        ({"temperature": float("nan")}, "temperature nan is below 0"),
        ({"top_k": 0}, "top_k 0 is below 1"),
        ({"top_k": -5}, "top_k -5 is below 1"),
        ({"top_p": 0.0}, r"top_p 0.0 is not in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p 1.1 is not in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p nan is not in \(0, 1\]"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler(**options)


def test_arguments_of_another_kind_are_refused_by_what_was_expected() -> None:
    model: Any = model_of(NAME)
    for call, message in (
        (lambda: model([[1, 2, 3]]), r"tokens must be a torch.Tensor of integers \(batch, new\), not a list"),
        (lambda: model.generate([[1, 2]], 3), "tokens must be a torch.Tensor"),
        (lambda: model.generate(torch.tensor([[1, 2]])), "max_new_tokens must be an integer, at least 1, got None"),
        (lambda: model.generate(max_new_tokens=3), "a pass needs tokens, inputs_embeds or both"),
        (lambda: model.new_cache(0, 5), "batch must be an integer, at least 1, got 0"),
        (lambda: model.new_cache(1, "long"), "tokens: 'long' is not a number of tokens; write 4096 or 4k"),
        (lambda: zoo.spec(3), "unknown model '3'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=message):
            call()
    assert model.new_cache(1, "1k").tokens == 1024
