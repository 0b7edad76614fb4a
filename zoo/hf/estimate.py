"""Estimates the model that a config.json of an unknown model_type describes, as a Decoder of the zoo's own blocks.

The fields that many families share give the widths and the pattern of layers (zoo/hf/layer_plan.py). The shapes of
stored tensors, if they are known, correct them (zoo/hf/stored_shapes.py). All costs then follow from the Decoder, as
for a known family. A question that the fields leave open has several answers: each answer gives a Decoder, and the
smallest and the largest of their costs are bounds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from typing import Any

from zoo.blocks.layer import Layer
from zoo.errors import MalformedError, SpecError
from zoo.hf.estimated_blocks import Blocks
from zoo.hf.layer_plan import LAYERS, layer_count, layer_plan
from zoo.hf.shared_fields import SharedFields
from zoo.hf.stored_shapes import StoredShapes
from zoo.model.decoder import Decoder

MAX_ANSWERS = 64  # combinations of answers that bounds are computed from
MAX_UNREAD = 200  # fields


@dataclass(frozen=True)
class Estimate:
    """A Decoder that estimates a model, and what it rests on.

    `used`: (field, its meaning) for each field that was read. `unread`: (field, its value) for each field that was
    not understood and may change a number. `questions`: (question, its answers in words, the best guess first).
    `others`: the Decoders that other answers give. `notes`: sentences on parts that were read as the nearest block.
    `stored`: the stored tensors that corrected the widths, if there are any.
    """

    model_type: str
    spec: Decoder
    used: tuple[tuple[str, str], ...]
    unread: tuple[tuple[str, str], ...]
    questions: tuple[tuple[str, tuple[str, ...]], ...]
    others: tuple[Decoder, ...]
    notes: tuple[str, ...]
    stored: StoredShapes | None = None

    @property
    def specs(self) -> tuple[Decoder, ...]:
        """The best guess, then the Decoders of all other answers: the bounds of a cost are its least and its greatest
        value among them."""
        return self.spec, *self.others


def estimate(config: Mapping[str, Any], stored: StoredShapes | None = None) -> Estimate:
    """Returns the estimate for a config of any model_type, known or not.

    Raises MalformedError, with the field and its value, for a field of the wrong type, for sizes that contradict each
    other, and for a config without a width, a number of layers or heads, or a vocabulary.
    """
    shapes = stored
    try:
        fields, spec = _read(config, shapes)
    except MalformedError as error:
        if shapes is None:
            raise
        shapes = None
        fields, spec = _read(config, shapes)
        fields.note(f"the stored shapes do not fit the fields, and correct no width ({error})")
    others: dict[Decoder, None] = {}
    for chosen in _other_answers({question: len(words) for question, words in fields.questions.items()}):
        others[_read(config, shapes, chosen)[1]] = None
    unread = fields.unread()
    if len(unread) > MAX_UNREAD:
        unread = [*unread[:MAX_UNREAD], ("...", f"{len(unread) - MAX_UNREAD} more fields")]
    return Estimate(
        model_type=str(config.get("model_type"))[:80],
        spec=spec,
        used=tuple(fields.used.items()),
        unread=tuple(unread),
        questions=tuple(fields.questions.items()),
        others=tuple(other for other in others if other != spec),
        notes=tuple(fields.notes),
        stored=stored,
    )


def _other_answers(counts: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yields the answers to try besides the first ones: all combinations or, if there are too many, other answers to
    one question at a time, and the last answers to all."""
    if prod(counts.values()) <= MAX_ANSWERS:
        for chosen in islice(product(*map(range, counts.values())), 1, None):
            yield dict(zip(counts, chosen, strict=True))
        return
    yield {question: count - 1 for question, count in counts.items()}
    yield from islice(({question: i} for question, count in counts.items() for i in range(1, count)), MAX_ANSWERS)


def _read(
    config: Mapping[str, Any], stored: StoredShapes | None, choices: Mapping[str, int] = {}
) -> tuple[SharedFields, Decoder]:
    fields = SharedFields(config, choices)
    try:
        return fields, _decoder(fields, stored)
    except SpecError as error:
        raise MalformedError(f"config.json: {error}") from error


def _decoder(fields: SharedFields, stored: StoredShapes | None) -> Decoder:
    layers = layer_count(fields)
    held = stored.layers if stored else []
    if held and len(held) < layers:
        raise fields.error(f"{fields.shown(*LAYERS)}, but the files hold {len(held)} layers")
    blocks = Blocks(fields, stored)
    plan = layer_plan(fields, layers, held)
    made: dict[Hashable, tuple[Layer, ...]] = {}
    found: list[Layer] = []
    for i, kind in enumerate(plan):
        key = kind, blocks.layer_key(i)
        if key not in made:
            made[key] = tuple(blocks.layers(kind, i))
        found += made[key]
    return Decoder(
        vocab=blocks.vocab,
        dim=blocks.dim,
        layers=tuple(blocks.sharing(found)),
        norm=blocks.norm,
        tied=_tied(fields, stored),
        context=blocks.context,
        positions=blocks.positions(),
    )


def _tied(fields: SharedFields, stored: StoredShapes | None) -> bool:
    said = fields.flag("whether the head is the embedding", "tie_word_embeddings", "tie_embeddings")
    if stored is not None:
        return not stored.has_head or bool(said)
    if said is None:
        return fields.ask("tie_word_embeddings is absent: is the head the embedding", [("no", False), ("yes", True)])
    return said
