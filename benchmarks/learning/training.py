"""One run: a small model is trained on text or on a synthetic task, and evaluated.

Text is evaluated by bits per byte on held-out files: during training, at the end, and beyond the training context. A
synthetic task is evaluated by the accuracy at each of its sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

import torch

import zoo
from benchmarks.learning.runs import TEXT, Outcome, Point, Run
from benchmarks.learning.tasks import TASKS, Task
from zoo.training.loop import DivergedError, Trainer, TrainingConfig, evaluate
from zoo.training.losses import IGNORED, Batch
from zoo.training.run import training_flops_per_token
from zoo.training.text.tokens import TokenFile, heldout_batches, training_batch

BITS_PER_BYTE = "bits_per_byte"
LENGTHS = (1, 2, 4)  # multiples of the training context
CURVE_POINTS, CURVE_TOKENS, FINAL_TOKENS, LENGTH_TOKENS = 6, 2**14, 2**16, 2**14


def beyond(times: int) -> str:
    """Returns a figure's name: bits per byte in the second half of a context `times` times the training context."""
    return f"{BITS_PER_BYTE}_at_{times}x"


def at_size(size: int) -> str:
    """Returns a figure's name: accuracy at one size of a synthetic task."""
    return f"accuracy_at_{size}"


def perform(run: Run, tokens: TokenFile | None) -> Outcome:
    """Trains and evaluates a run. If its loss becomes NaN, its outcome has no figures.

    Raises ZooError for a spec or sizes that cannot be trained.
    """
    try:
        if run.task == TEXT:
            assert tokens is not None
            return _learn_text(run, tokens)
        return _learn_task(run, TASKS[run.task])
    except DivergedError as error:
        return Outcome({}, diverged=str(error))


def config(run: Run) -> TrainingConfig:
    """Returns the training config of a run: a cosine schedule for text, warmup-stable-decay for synthetic tasks."""
    schedule = "cosine" if run.task == TEXT else "wsd"
    return TrainingConfig(run.steps, run.learning_rate, run.batch, run.context, schedule=schedule, seed=run.seed)


def _learn_text(run: Run, tokens: TokenFile) -> Outcome:
    trainer = Trainer(zoo.build(run.spec, seed=run.seed), config(run))
    marks = {round(run.steps * i / CURVE_POINTS) for i in range(1, CURVE_POINTS + 1)}
    curve, per_token = list[Point](), training_flops_per_token(run.spec, run.context)
    for seen, seconds in _steps(trainer, lambda step: training_batch(tokens, step, run.batch, run.context, run.seed)):
        if trainer.step in marks:
            limit = FINAL_TOKENS if trainer.step == run.steps else CURVE_TOKENS
            batches = heldout_batches(tokens, run.batch, run.context, limit, run.split)
            curve.append(Point(seen, round(seen * per_token), seconds, _bits_per_byte(trainer, tokens, run, batches)))
    figures = {BITS_PER_BYTE: curve[-1].bits_per_byte}
    if run.split == "heldout":
        figures |= {beyond(times): _beyond(trainer, tokens, run, times) for times in LENGTHS}
    return Outcome(figures, tuple(curve), seen, seconds)


def _learn_task(run: Run, task: Task) -> Outcome:
    trainer = Trainer(zoo.build(run.spec, seed=run.seed), config(run))
    *_, (seen, seconds) = _steps(trainer, lambda step: task.training_batch(step, run.seed))
    tests = {at_size(size): evaluate(trainer.model, task.test_batches(size)) for size in task.sizes}
    return Outcome({name: each.accuracy for name, each in tests.items()}, (), seen, seconds)


def _steps(trainer: Trainer, draw: Callable[[int], Batch]) -> Iterator[tuple[int, float]]:
    """Trains to the end. After each step, yields the tokens and the seconds of training so far."""
    seen, seconds = 0, 0.0
    while trainer.step < trainer.config.steps:
        batch = draw(trainer.step)
        start = perf_counter()
        trainer.train_step(batch)
        seconds += perf_counter() - start
        seen += batch.inputs.numel()
        yield seen, seconds


def _bits_per_byte(trainer: Trainer, tokens: TokenFile, run: Run, batches: Iterable[Batch]) -> float:
    """Returns bits per byte on batches of the run's evaluation split."""
    found = evaluate(trainer.model, batches)
    return tokens.bits_per_byte(found.nats, found.scored, run.split)


def _beyond(trainer: Trainer, tokens: TokenFile, run: Run, times: int) -> float:
    """Returns bits per byte in the second half of a context `times` times the training context."""
    context = times * run.context

    def second_halves() -> Iterator[Batch]:
        first_half = torch.arange(context) < context // 2
        for inputs, targets in heldout_batches(tokens, max(1, run.batch // times), context, LENGTH_TOKENS, run.split):
            second = torch.where(first_half, IGNORED, targets)
            if (second != IGNORED).any():  # at the end of the text, a context may have no second half
                yield Batch(inputs, second)

    return _bits_per_byte(trainer, tokens, run, second_halves())
