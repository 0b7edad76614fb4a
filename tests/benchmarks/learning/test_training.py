"""One run: what a model can and cannot learn, and figures that follow from the seed."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch

import zoo
from benchmarks.learning.comparison import TASK_RATE, Entry, small_models
from benchmarks.learning.runs import TEXT, Run
from benchmarks.learning.tasks import FAR_PAIRS, HALF, TASKS, VALUES, VOCAB, generator_for
from benchmarks.learning.training import BITS_PER_BYTE, LENGTHS, at_size, beyond, perform
from zoo.training.text.data import read_text
from zoo.training.text.tokenizers import ByteTokenizer
from zoo.training.text.tokens import TokenFile, token_file


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text").write_text("".join(f"{i} and {i + 1} are {2 * i + 1}\n" for i in range(900)), encoding="utf-8")
    return token_file(folder, read_text(folder / "text"), ByteTokenizer())


@pytest.fixture(scope="module")
def models() -> list[Entry]:
    return small_models(["llama3"], ["GQA(window=4)"], params=40_000, context=16)


def test_a_text_run_follows_from_its_seed_and_learns(tokens: TokenFile, models: list[Entry]) -> None:
    run = Run(models[0].spec, TEXT, 1e-2, 3, 12, 4, 16, tokens.hash)
    first, again, other = (perform(each, tokens) for each in (run, run, replace(run, seed=4)))
    assert first.figures == again.figures
    assert first.figures != other.figures
    assert first.figures.keys() == {BITS_PER_BYTE, *map(beyond, LENGTHS)}
    assert first.tokens == 12 * 4 * 16 == first.curve[-1].tokens
    assert first.curve[-1].bits_per_byte == first.figures[BITS_PER_BYTE] < first.curve[0].bits_per_byte < 8.5
    assert [point.tokens for point in first.curve] == sorted({point.tokens for point in first.curve})
    assert first.curve[-1].flops == round(first.tokens * 3 * run.spec.flops(0, 16) / 16)


def test_a_sweep_run_is_evaluated_on_the_tuning_text(tokens: TokenFile, models: list[Entry]) -> None:
    run = Run(models[0].spec, TEXT, 1e-2, 0, 2, 4, 16, tokens.hash)
    tuning = perform(replace(run, split="tuning"), tokens).figures
    assert tuning.keys() == {BITS_PER_BYTE}
    assert tuning[BITS_PER_BYTE] != perform(run, tokens).figures[BITS_PER_BYTE]


def test_a_run_that_diverges_has_an_outcome_without_figures(tokens: TokenFile, models: list[Entry]) -> None:
    found = perform(Run(models[0].spec, TEXT, 1e30, 0, 6, 2, 16, tokens.hash), tokens)
    assert found.figures == {}
    assert found.diverged is not None
    assert found.diverged.startswith("step ")


@pytest.mark.parametrize(("distance", "reached"), [(16, True), (64, False), (192, False)])
def test_no_value_is_seen_from_beyond_layers_times_window_less_one(
    distance: int, reached: bool, models: list[Entry]
) -> None:
    """Other values change the logits of the questions exactly if layers x (window - 1) is at least the distance."""
    spec = replace(models[1].spec, vocab=VOCAB)
    reach = sum(layer.cache_spec().reach.limit - 1 for layer in spec.layers)  # type: ignore[misc, operator]
    assert reached == (reach >= distance)
    batch = TASKS["far-recall"].draw(distance, 4, generator_for("reach", "test", 0, 0))
    other = batch.inputs.clone()
    values = other[:, 1 : 2 * FAR_PAIRS : 2]
    other[:, 1 : 2 * FAR_PAIRS : 2] = HALF + (values - HALF + 1) % VALUES
    model = zoo.build(spec, seed=1)
    with torch.no_grad():
        first, second = (model(inputs)[:, -FAR_PAIRS:] for inputs in (batch.inputs, other))
    assert torch.equal(first, second) == (not reached)


@pytest.mark.slow
def test_full_attention_learns_recall() -> None:
    task, spec = TASKS["recall"], small_models(["llama3"])[0].on_tasks.spec
    found = perform(Run(spec, task.name, TASK_RATE, 0, task.steps, task.batch(16), 64), None)
    assert all(found.figures[at_size(pairs)] >= 0.95 for pairs in task.sizes)


@pytest.mark.slow
def test_beyond_the_windows_recall_is_a_guess() -> None:
    """Each key is asked once, 192 tokens or more after its value; two windows of 16 reach 30."""
    task, spec = TASKS["far-recall"], small_models(["llama3"], ["GQA(window=16)"])[1].on_tasks.spec
    found = perform(Run(spec, task.name, TASK_RATE, 0, 150, 1, 64), None)
    answers = 128 * FAR_PAIRS
    assert abs(found.figures[at_size(192)] - 1 / VALUES) < 4 * sqrt(1 / VALUES / answers)
