"""Synthetic tasks: sequences that a small model learns in minutes if its blocks can solve the task.

A sequence depends on (task, split, seed, step) alone. So equal seeds see equal data in the same order, and a run
resumes without state. A task is trained at all its sizes, one per step, and tested at each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.training.losses import IGNORED, Batch

VOCAB = 64
RECALL_TOKENS = 64  # tokens of a sequence
HALF = VOCAB // 2
VALUES = VOCAB - HALF  # values are the upper half of the vocabulary: HALF, HALF + 1, ...
FILLER, SEPARATOR = 0, 1
FAR_PAIRS, TRIGGERS, NOISE_PER_TOKEN = 8, 4, 3


@dataclass(frozen=True)
class Task:
    """A synthetic task.

    `draw(size, batch, generator)` returns its sequences. `chance`: the accuracy of a guess without any input.
    `size_word`: the unit of a size.
    """

    name: str
    title: str
    sizes: tuple[int, ...]
    size_word: str
    chance: float
    draw: Callable[[int, int, torch.Generator], Batch]
    tokens: int = 3072  # approximate tokens per step: a model needs many short sequences to find their common rule
    steps: int = 500

    def length(self, size: int) -> int:
        """Returns the number of tokens in a sequence."""
        return self.draw(size, 1, generator_for(self.name, "length", 0, 0)).inputs.shape[1]

    def batch(self, size: int) -> int:
        """Returns the number of sequences per step."""
        return max(1, self.tokens // self.length(size))

    def training_batch(self, step: int, seed: int) -> Batch:
        """Returns the sequences of a step, all of one size that the seed and the step determine."""
        generator = generator_for(self.name, "train", seed, step)
        size = self.sizes[int(torch.randint(len(self.sizes), (), generator=generator))]
        return self.draw(size, self.batch(size), generator)

    def test_batches(self, size: int, sequences: int = 128, split: str = "test") -> Iterator[Batch]:
        """Yields at least `sequences` sequences of one size, the same for every model and seed."""
        batch = self.batch(size)
        for step in range(-(-sequences // batch)):
            yield self.draw(size, batch, generator_for(self.name, split, size, step))


def generator_for(task: str, split: str, seed: int, step: int) -> torch.Generator:
    """Returns a random generator that depends only on the arguments, in every process and on every machine."""
    digest = hashlib.sha256(f"{task}/{split}/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def distinct(count: int, low: int, high: int, batch: int, generator: torch.Generator) -> Tensor:
    """Returns (batch, count) token ids of [low, high), all different within a row, in random order."""
    return torch.rand(batch, high - low, generator=generator).argsort(dim=1)[:, :count] + low


def recall(pairs: int, batch: int, generator: torch.Generator) -> Batch:
    """Draws sequences of multi-query associative recall (Arora et al. 2023, "Zoology", section 3).

    Pairs of a key and a value come first. Every later position, up to RECALL_TOKENS, holds one of the keys; its target
    is the key's value.
    """
    keys = distinct(pairs, 0, HALF, batch, generator)
    values = torch.randint(HALF, VOCAB, (batch, pairs), generator=generator)
    asked = torch.randint(pairs, (batch, RECALL_TOKENS - 2 * pairs), generator=generator)
    return _asked(_interleaved(keys, values), keys.gather(1, asked), values.gather(1, asked))


def far_recall(distance: int, batch: int, generator: torch.Generator) -> Batch:
    """Draws recall sequences that ask each key once, at least `distance` tokens after its value, with filler between.

    Information moves at most window - 1 tokens per layer: if layers x (window - 1) < distance, a model can only guess.
    """
    keys = distinct(FAR_PAIRS, FILLER + 1, HALF, batch, generator)
    values = torch.randint(HALF, VOCAB, (batch, FAR_PAIRS), generator=generator)
    order = distinct(FAR_PAIRS, 0, FAR_PAIRS, batch, generator)
    filler = torch.full((batch, distance - 1), FILLER)
    return _asked(
        torch.cat([_interleaved(keys, values), filler], dim=1), keys.gather(1, order), values.gather(1, order)
    )


def copying(length: int, batch: int, generator: torch.Generator) -> Batch:
    """Draws copying sequences (Arjovsky et al. 2015, section 4.1, as next-token prediction).

    A sequence is random tokens, a separator, and the same tokens again. Only the repetition is scored.
    """
    tokens = torch.randint(SEPARATOR + 1, VOCAB, (batch, length), generator=generator)
    return _repeated(tokens, tokens)


def selective_copying(count: int, batch: int, generator: torch.Generator) -> Batch:
    """Draws sequences of selective copying (Jing et al. 2019; Gu and Dao 2023, section 3.1).

    Tokens stand at random positions among filler, which takes three of four positions. After a separator, the tokens
    follow without the filler, and are scored.
    """
    tokens = torch.randint(SEPARATOR + 1, VOCAB, (batch, count), generator=generator)
    places = distinct(count, 0, count * (1 + NOISE_PER_TOKEN), batch, generator).sort(dim=1).values
    scattered = torch.full((batch, count * (1 + NOISE_PER_TOKEN)), FILLER).scatter(1, places, tokens)
    return _repeated(scattered, tokens)


def induction(length: int, batch: int, generator: torch.Generator) -> Batch:
    """Draws induction sequences (Olsson et al. 2022).

    A few trigger tokens stand among noise. In a sequence, a trigger is always followed by the same token, which is
    scored from the trigger's second occurrence on.
    """
    followed = distinct(TRIGGERS, HALF, VOCAB, batch, generator)
    following = torch.randint(HALF, (batch, TRIGGERS), generator=generator)
    noise = torch.randint(HALF, (batch, length // 2, 2), generator=generator)
    # Kind of each pair of tokens: 0 .. TRIGGERS - 1 is that trigger with its follower, a larger number is noise.
    kind = torch.randint(2 * TRIGGERS, (batch, length // 2), generator=generator)
    which, is_trigger = kind.clamp(max=TRIGGERS - 1), kind < TRIGGERS
    pairs = torch.stack([followed.gather(1, which), following.gather(1, which)], dim=2)
    inputs = torch.where(is_trigger[:, :, None], pairs, noise)
    shown = torch.nn.functional.one_hot(kind, 2 * TRIGGERS)
    before = (shown.cumsum(dim=1) - shown).gather(2, kind[:, :, None])[:, :, 0]
    targets = torch.full_like(inputs, IGNORED)
    targets[:, :, 0] = torch.where(is_trigger & (before > 0), pairs[:, :, 1], IGNORED)
    return Batch(inputs.flatten(1), targets.flatten(1))


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], dim=2).flatten(1)


def _asked(told: Tensor, questions: Tensor, answers: Tensor) -> Batch:
    """Returns the `told` tokens followed by the questions, with the answers as targets. No answer is an input."""
    return Batch(torch.cat([told, questions], dim=1), torch.cat([torch.full_like(told, IGNORED), answers], dim=1))


def _repeated(shown: Tensor, repeated: Tensor) -> Batch:
    """Returns the `shown` tokens, a separator and the `repeated` tokens. The next repeated token is the target."""
    separator = torch.full((len(shown), 1), SEPARATOR)
    inputs = torch.cat([shown, separator, repeated[:, :-1]], dim=1)
    return Batch(inputs, torch.cat([torch.full_like(shown, IGNORED), repeated], dim=1))


TASKS = {
    task.name: task
    for task in (
        Task("recall", "multi-query associative recall", (4, 8, 16), "pairs", 1 / VALUES, recall),
        Task("copying", "copying", (8, 16, 32), "tokens", 1 / (VOCAB - 2), copying),
        Task("selective-copying", "selective copying", (4, 8, 16), "tokens", 1 / (VOCAB - 2), selective_copying),
        Task("induction", "induction", (32, 64, 128), "tokens", 1 / HALF, induction),
        Task("far-recall", "recall at a distance", (16, 64, 192), "tokens away", 1 / VALUES, far_recall),
    )
}
