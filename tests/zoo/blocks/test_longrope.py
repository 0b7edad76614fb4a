"""LongRoPE against the reference: within the original context and beyond, in passes of any length, and exported."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weights
import zoo
from tests.configs import newer, older
from tests.exact import assert_equal, differs, in_float64
from tests.models import has_compiler
from tests.reference import toy_config, toy_reference
from zoo.blocks import LongRoPE, longrope_gain
from zoo.errors import MalformedError, SpecError, UsageError
from zoo.model.module import Model
from zoo.swaps.grammar import apply_swap

ORIGINAL, PAIRS, BEYOND = 24, 6, 40
NAME = "phi4-mini-3.8b"


def factors(seed: int) -> list[float]:
    """Random factors from 0.5 to 8."""
    return (0.5 + 7.5 * torch.rand(PAIRS, generator=torch.Generator().manual_seed(seed))).tolist()


def config(**changes: Any) -> dict[str, Any]:
    """Phi-4-mini at toy widths, tied, three quarters of each head rotated, with random factors."""
    scaling = {"type": "longrope", "short_factor": factors(1), "long_factor": factors(2)}
    toy = toy_config(NAME, 2) | {"rope_scaling": scaling, "original_max_position_embeddings": ORIGINAL}
    return toy | changes


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    with in_float64():
        return toy_reference(config()).double()


@pytest.fixture(scope="module")
def folder(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longrope")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path) -> Model:
    return weights.load(folder, dtype=torch.float64)


def tokens_of(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 512, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def logits_of(reference: nn.Module, tokens: Tensor) -> Tensor:
    with in_float64():
        return reference(tokens).logits


@torch.no_grad()
def in_passes(model: nn.Module, tokens: Tensor, lengths: list[int]) -> Tensor:
    """Returns the reference's logits for passes of these lengths over its cache."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with in_float64():
        parts = [model(part, cache=cache, use_cache=True).logits for part in tokens.split(lengths, dim=1)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def our_passes(model: Model, tokens: Tensor, lengths: list[int]) -> Tensor:
    cache = model.new_cache(*tokens.shape)
    return torch.cat([model(part, cache) for part in tokens.split(lengths, dim=1)], dim=1)


def test_the_loaded_model_has_all_that_is_compared(model: Model) -> None:
    rope = model.spec.layers[0].mixer.rope
    gain = longrope_gain(1024 / ORIGINAL, ORIGINAL)
    scaling = LongRoPE(tuple(factors(1)), tuple(factors(2)), ORIGINAL, gain)
    assert rope == zoo.RoPE(1e4, scaling, fraction=0.75)
    assert model.spec.tied
    assert gain > 1.4
    assert model.spec.params() == zoo.swap(model.spec, zoo.RoPE, zoo.NoPE()).params()  # it has none of its own


@torch.no_grad()
@pytest.mark.parametrize("length", [1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, BEYOND])
def test_one_pass_equals_the_reference(model: Model, reference: nn.Module, length: int) -> None:
    tokens = tokens_of(length)
    theirs = logits_of(reference, tokens)
    assert theirs.abs().max() > 1
    assert_equal(model(tokens), theirs)


# Lengths of passes, and whether the reference agrees with its own single pass: not where keys that a pass within the
# original context rotated are still in the cache beyond it.
PASSES = {
    "token by token within the context": ([1] * ORIGINAL, True),
    "chunks within the context": ([7, 9, ORIGINAL - 16], True),
    "chunks and tokens after a long one": ([ORIGINAL + 1, 5, *[1] * 10], True),
    "token by token beyond the context": ([1] * BEYOND, False),
    "a chunk across the end": ([ORIGINAL - 4, BEYOND - ORIGINAL + 4], False),
    "a token across the end": ([ORIGINAL, 1], False),
}


@pytest.mark.parametrize("case", PASSES)
def test_passes_over_a_cache_equal_the_references(model: Model, reference: nn.Module, case: str) -> None:
    lengths, agree = PASSES[case]
    tokens = tokens_of(sum(lengths))
    theirs = in_passes(reference, tokens, lengths)
    assert_equal(our_passes(model, tokens, lengths), theirs)
    whole = in_passes(reference, tokens, [sum(lengths)])
    if agree:
        assert_equal(theirs, whole)
    else:
        assert differs(theirs, whole)


@pytest.mark.parametrize("prompt", [5, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1])
def test_generated_tokens_equal_the_references(model: Model, reference: nn.Module, prompt: int) -> None:
    """Both the reference's `generate` and `stream` recompute the cache at the first token beyond the original
    context."""
    tokens, new = tokens_of(prompt), BEYOND - prompt
    with in_float64():
        theirs = reference.generate(tokens, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    ours = model.generate(tokens, new)
    assert torch.equal(ours, theirs[:, prompt:])
    whole = model(torch.cat([tokens, ours], dim=1)[:, :-1])[:, -1]  # as if computed in one pass
    assert torch.equal(whole.argmax(-1), ours[:, -1])


@torch.no_grad()
def test_generation_over_a_cache_beyond_the_original_context(model: Model) -> None:
    """A cache that began empty is recomputed, from token ids or embeddings. A cache with earlier tokens is refused,
    since these are not known. So is truncating a cache to a length within that context."""
    tokens, new = tokens_of(ORIGINAL - 2), 6
    expected, cache = model.generate(tokens, new), model.new_cache(tokens.shape[0], BEYOND)
    assert torch.equal(model.generate(tokens, new, cache=cache), expected)
    assert torch.equal(model.generate(None, new, inputs_embeds=model.embed(tokens)), expected)
    whole = torch.cat([tokens, expected], dim=1)
    assert_equal(model(whole[:, -1:], cache), model(whole)[:, -1:])
    with pytest.raises(UsageError, match=f"cannot be truncated to 5 tokens, only to 0, or {ORIGINAL + 1} to "):
        cache.truncate(5)
    cache.truncate(0)
    model(tokens[:, :4], cache)
    with pytest.raises(UsageError, match=rf"beyond {ORIGINAL} tokens \(LongRoPE\), and the cache holds 4: generate"):
        model.generate(tokens[:, 4:], new, cache=cache)
    assert torch.equal(model.generate(tokens[:, 4:], 3, cache=cache), expected[:, :3])  # within that context


def mutants(scaling: LongRoPE) -> dict[str, dict[str, Any]]:
    """Returns {description of the change: the fields of the RoPE}."""
    return {
        "short and long exchanged": {"scaling": replace(scaling, short=scaling.long, long=scaling.short)},
        "the gain left out": {"scaling": replace(scaling, gain=1.0)},
        "twice the factors": {
            "scaling": replace(
                scaling, short=tuple(2 * each for each in scaling.short), long=tuple(2 * each for each in scaling.long)
            )
        },
        "factors in the opposite order": {
            "scaling": replace(scaling, short=scaling.short[::-1], long=scaling.long[::-1])
        },
        "no scaling": {"scaling": None},
        "half of a head rotated": {"fraction": 0.5, "scaling": scaling.at_rotated(8)},
        "another base": {"theta": 1e3},
    }


@torch.no_grad()
@pytest.mark.parametrize("length", [ORIGINAL, BEYOND])
@pytest.mark.parametrize("case", [*mutants(LongRoPE((1.0,) * 6, (2.0,) * 6, 4, 1.0)), "another original context"])
def test_every_mutant_is_found(model: Model, reference: nn.Module, case: str, length: int) -> None:
    rope = model.spec.layers[0].mixer.rope
    if case == "another original context":  # one token less, or one more than there are
        other = ORIGINAL - 1 if length == ORIGINAL else length
        changed = replace(rope, scaling=replace(rope.scaling, original=other))
    else:
        changed = replace(rope, **mutants(rope.scaling)[case])
    mutant = Model(zoo.swap(model.spec, zoo.RoPE, changed))
    mutant.load_state_dict(model.state_dict())
    tokens = tokens_of(length)
    assert differs(mutant(tokens), logits_of(reference, tokens))


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_both_names_and_both_spellings_are_read(kind: str) -> None:
    from transformers import AutoConfig

    given = config()
    spec = zoo.from_hf(given)
    given["rope_scaling"]["type"] = kind
    assert zoo.from_hf(given) == spec
    assert zoo.from_hf(given | {"rope_scaling": given["rope_scaling"] | {"rope_type": kind}}) == spec
    given["rope_scaling"]["original_max_position_embeddings"] = ORIGINAL  # without it the reference refuses "su"
    assert zoo.from_hf(given) == spec
    written = AutoConfig.for_model(**deepcopy(given)).to_dict()
    assert written["rope_parameters"]["rope_type"] == "longrope"
    assert zoo.from_hf({name: value for name, value in written.items() if name != "rope_scaling"}) == spec
    assert zoo.from_hf(zoo.to_hf(spec)) == spec


def test_an_older_name_is_that_of_phi_alone() -> None:
    given = older("llama3-8b", rope_scaling=config()["rope_scaling"] | {"type": "su"})
    with pytest.raises(MalformedError, match=r"rope_scaling\.type='su' is unknown; known: default, linear"):
        zoo.from_hf(given)


@torch.no_grad()
@pytest.mark.parametrize(
    ("scaling", "fields"),
    [
        ({"attention_factor": 1.3}, {}),
        ({"factor": 4.0}, {}),
        ({"factor": 1.0}, {}),
        ({"attention_factor": 1.3, "factor": 4.0}, {}),
        ({}, {"max_position_embeddings": ORIGINAL}),
        ({}, {"sliding_window": 5}),
        ({}, {"partial_rotary_factor": 1.0}),
    ],
)
def test_other_configs_equal_the_reference(scaling: dict[str, float], fields: dict[str, Any], tmp_path: Path) -> None:
    given = config(**fields)
    given["rope_scaling"] |= scaling
    if "partial_rotary_factor" in fields:
        given["rope_scaling"] |= {"short_factor": [*factors(1), 1.0, 2.0], "long_factor": [*factors(2), 3.0, 0.5]}
    with in_float64():
        made = toy_reference(deepcopy(given)).double()
    made.save_pretrained(tmp_path)
    model = weights.load(tmp_path, dtype=torch.float64)
    assert zoo.from_hf(zoo.to_hf(model.spec)) == model.spec == zoo.from_hf(given)
    for length in (ORIGINAL, BEYOND):
        assert_equal(model(tokens_of(length)), logits_of(made, tokens_of(length)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_factor": [1.0] * 5}, "LongRoPE: short has 5 factors, long 6"),
        (dict.fromkeys(("short_factor", "long_factor"), (1.0,) * 5), "must be a list of positive numbers"),
        ({"short_factor": [1.0] * 5, "long_factor": [1.0] * 5}, "LongRoPE: 5 factors for 12 rotated elements"),
        (
            {"short_factor": [1.0, 0.0, *[1.0] * 4]},
            r"short_factor\[1\] must be a positive number, got 0.0",
        ),
        ({"long_factor": [1.0, "2", *[1.0] * 4]}, r"long_factor\[1\] must be a positive number, got '2'"),
        ({"long_factor": []}, r"long_factor must be a list of positive numbers, got \[\]"),
        ({"original_max_position_embeddings": 48}, "original_max_position_embeddings is 24, but 48 in the scaling"),
        ({"mscale": 1.0}, "not understood: rope_scaling.mscale=1.0"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    given = config()
    given["rope_scaling"] |= changes
    with pytest.raises(MalformedError, match=message):
        zoo.from_hf(given)


def test_a_gain_that_does_not_follow_must_be_given() -> None:
    with pytest.raises(MalformedError, match="attention_factor is missing"):
        zoo.from_hf(config(original_max_position_embeddings=1))


def test_the_gain_is_the_papers() -> None:
    """sqrt(1 + ln s / ln L) for a context s times L; Phi-4-mini's of 131,072 from 4,096 tokens is sqrt(17 / 12)."""
    assert longrope_gain(32, 4096) == pytest.approx((17 / 12) ** 0.5, rel=1e-15)
    assert longrope_gain(1.0, 4096) == longrope_gain(0.5, 4096) == 1.0
    assert newer(NAME)["rope_parameters"].keys() >= {"short_factor", "long_factor"}


def test_a_swap_names_the_factors() -> None:
    spec = zoo.spec("qwen3", tiny=True)
    pairs = spec.layers[0].mixer.head_dim // 2
    short, long = (1.0,) * pairs, tuple(map(float, range(1, pairs + 1)))
    after, dropped = apply_swap(spec, f"RoPE(scaling=LongRoPE(short={short}, long={long}, original=9, gain=1.25))")
    scaling = LongRoPE(short, long, 9, 1.25)
    assert after == zoo.swap(spec, zoo.RoPE, lambda rope: replace(rope, scaling=scaling))
    assert not dropped
    assert apply_swap(after, "LongRoPE(original=10)")[0].layers[0].mixer.rope.scaling == replace(scaling, original=10)
    narrow = apply_swap(after, "GQA(head_dim=8)")[0].layers[0].mixer.rope.scaling  # every third pair, as fast
    assert narrow == replace(scaling, short=short[::3], long=long[::3])
    with pytest.raises(SpecError, match=f"LongRoPE: {pairs} factors for {pairs} rotated elements"):
        apply_swap(after, "RoPE(fraction=0.5)")
    with pytest.raises(UsageError, match=re.escape("LongRoPE needs short, long, original")):
        apply_swap(spec, "RoPE(scaling=LongRoPE(gain=1.2))")
    with pytest.raises(SpecError, match="short must be a tuple of a positive number"):
        apply_swap(after, "LongRoPE(short=(1, none))")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_a_compiled_model_equals_the_reference(model: Model, reference: nn.Module) -> None:
    """The passes are those of the uncompiled test: a prefill, and single tokens across the end of the original
    context."""
    lengths = [ORIGINAL - 2, *[1] * 4]
    tokens = tokens_of(sum(lengths))
    theirs = in_passes(reference, tokens, lengths)
    model.compile()
    assert_equal(our_passes(model, tokens, lengths), theirs)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it exports
def test_exported_for_any_length(model: Model) -> None:
    """One exported program switches to the long factors by itself."""
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(model, (tokens_of(9),), dynamic_shapes=({1: length},)).module()
    for tokens in (tokens_of(ORIGINAL), tokens_of(ORIGINAL + 1)):
        expected = model(tokens)
        assert_equal(exported(tokens), expected)
