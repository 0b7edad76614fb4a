"""Synthetic tasks: what is asked can be answered from what is shown, the same in every process."""

from __future__ import annotations

import pytest
import torch

from benchmarks.learning.tasks import FAR_PAIRS, FILLER, HALF, SEPARATOR, TASKS, VOCAB, Task, generator_for
from tests.ranks import in_process
from zoo.training.losses import IGNORED, Batch

CASES = [(task, size) for task in TASKS.values() for size in task.sizes]
IDS = [f"{task.name}-{size}" for task, size in CASES]


def drawn(task: Task, size: int, seed: int = 0) -> Batch:
    return task.draw(size, 32, generator_for(task.name, "test", seed, 0))


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    return list(zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True))


@pytest.mark.parametrize(("task", "size"), CASES, ids=IDS)
def test_a_batch_has_ids_of_the_vocabulary_and_scores_something_in_every_sequence(task: Task, size: int) -> None:
    batch = drawn(task, size)
    assert batch.inputs.shape == batch.targets.shape
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    scored = batch.targets[batch.targets != IGNORED]
    assert len(scored)
    assert all(int(ids.min()) >= 0 and int(ids.max()) < VOCAB for ids in (batch.inputs, scored))


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_chance_is_what_the_best_guess_without_looking_scores(task: Task) -> None:
    """The most frequent answer over many sequences is right about as often as `chance` says."""
    targets = torch.cat(
        [task.draw(task.sizes[0], 4096, generator_for("chance", "test", i, 0)).targets for i in range(4)]
    )
    answers = targets[targets != IGNORED]
    counts = torch.bincount(answers, minlength=VOCAB)
    assert int((counts > 0).sum()) == round(1 / task.chance)
    assert float(counts.max()) / len(answers) == pytest.approx(task.chance, rel=0.15)


@pytest.mark.parametrize("size", TASKS["recall"].sizes)
def test_recall_asks_for_the_value_of_a_key_that_was_told_once(size: int) -> None:
    for inputs, targets in rows(drawn(TASKS["recall"], size)):
        told = dict(zip(inputs[: 2 * size : 2], inputs[1 : 2 * size : 2], strict=True))
        assert len(told) == size
        assert all(key < HALF <= value for key, value in told.items())
        assert targets[: 2 * size] == [IGNORED] * 2 * size
        assert targets[2 * size :] == [told[key] for key in inputs[2 * size :]]
        assert len(inputs) > 2 * size


@pytest.mark.parametrize("size", TASKS["far-recall"].sizes)
def test_far_recall_asks_each_key_once_at_the_distance_or_beyond(size: int) -> None:
    for inputs, targets in rows(drawn(TASKS["far-recall"], size)):
        told = dict(zip(inputs[: 2 * FAR_PAIRS : 2], inputs[1 : 2 * FAR_PAIRS : 2], strict=True))
        where = {inputs[i]: i + 1 for i in range(0, 2 * FAR_PAIRS, 2)}  # of each key's value
        asked = [i for i, target in enumerate(targets) if target != IGNORED]
        assert sorted(inputs[i] for i in asked) == sorted(told)
        assert [targets[i] for i in asked] == [told[inputs[i]] for i in asked]
        assert min(i - where[inputs[i]] for i in asked) >= size == asked[0] - max(where.values())
        assert {inputs[i] for i in range(2 * FAR_PAIRS, asked[0])} <= {FILLER}
        assert FILLER not in told


def test_copying_asks_for_what_stands_before_the_separator() -> None:
    for size in TASKS["copying"].sizes:
        for inputs, targets in rows(drawn(TASKS["copying"], size)):
            assert inputs[size] == SEPARATOR
            assert inputs.count(SEPARATOR) == 1
            assert targets == [IGNORED] * size + inputs[:size]
            assert inputs[size + 1 :] == inputs[: size - 1]


def test_selective_copying_leaves_out_the_filler() -> None:
    for size in TASKS["selective-copying"].sizes:
        for inputs, targets in rows(drawn(TASKS["selective-copying"], size)):
            at = inputs.index(SEPARATOR)
            kept = [token for token in inputs[:at] if token != FILLER]
            assert (at, len(kept)) == (4 * size, size)
            assert [target for target in targets if target != IGNORED] == kept
            assert targets[:at] == [IGNORED] * at


def test_induction_scores_what_followed_the_same_token_before() -> None:
    for size in TASKS["induction"].sizes:
        scored = 0
        for inputs, targets in rows(drawn(TASKS["induction"], size)):
            assert len(inputs) == size
            for i, target in enumerate(targets):
                if target != IGNORED:
                    earlier = [j for j in range(i) if inputs[j] == inputs[i]]
                    assert earlier
                    assert {inputs[j + 1] for j in earlier} == {target} == {inputs[i + 1]}
                    scored += 1
        assert scored > size


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_step_follows_from_the_seed_and_the_step_alone(task: Task) -> None:
    def flat(step: int, seed: int) -> list[int]:
        return [value for part in task.training_batch(step, seed) for value in part.flatten().tolist()]

    assert flat(3, 1) == flat(3, 1)
    assert flat(3, 1) != flat(4, 1)
    assert flat(3, 1) != flat(3, 2)
    shapes = {tuple(task.training_batch(step, 0).inputs.shape) for step in range(40)}
    assert shapes == {(task.batch(size), task.length(size)) for size in task.sizes}
    assert all(0.8 * task.tokens < batch * length <= task.tokens for batch, length in shapes)


def sums() -> list[int]:
    return [task.training_batch(7, 2).inputs.sum().item() for task in TASKS.values()]


def test_another_process_draws_the_same() -> None:
    assert in_process(sums) == sums()


def test_test_sequences_are_as_many_as_asked_and_never_those_of_training() -> None:
    task = TASKS["recall"]
    tested = [row for batch in task.test_batches(8, sequences=70) for row in batch.inputs.tolist()]
    assert len(tested) == 96  # whole batches
    trained = [row for step in range(50) for row in task.training_batch(step, 0).inputs.tolist()]
    assert not {tuple(row) for row in tested} & {tuple(row) for row in trained}
