"""`to_hf`, the inverse of every architecture's `from_hf`: a spec -> the published config.json that says it.

Nothing is written by hand for an architecture. zoo/hf/published.py says each field of a spec; which of them a
model_type has is seen from what its `from_hf` reads; and what that makes of them must be the very spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from zoo.architectures import families
from zoo.errors import MalformedError, SpecError
from zoo.hf.config import Config
from zoo.hf.fields import MOST
from zoo.hf.published import Words, published
from zoo.model.decoder import Decoder
from zoo.registry import Spec

# A spec knows no tokenizer. Left out, these would be the model_type's own, which may lie outside the vocabulary.
TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
NO_SCALING = {"rope_type": "default"}  # where a file that says nothing of it gets the model_type's own


def to_hf(spec: Decoder) -> Words:
    """The published config.json of this model: `zoo.from_hf` of it is the spec again.

    It is in the older spelling (`rope_theta`, `rope_scaling`), which every version of the reference reads. Of several
    model_types that can say it, the one with the nearest released size. Raises SpecError, naming each block that
    differs from what can be said, for a model that none can say.
    """
    drafts = []
    for draft in (draft for family in _by_nearness(spec) for draft in _drafts(family, spec)):
        if draft.spec == spec == draft.family.from_hf(draft.config):
            return draft.config
        drafts.append(draft)
    if not drafts:
        raise SpecError("no published config says this model, nor any like it")
    told = {draft.config["model_type"]: list(differences(spec, draft.spec)) for draft in drafts}
    nearest = min(told, key=lambda model_type: _distance(told[model_type]))
    listed = "; ".join(map(str, told[nearest]))
    raise SpecError(f"no published config says this model. The nearest, of {nearest}: {listed}")


class Difference(NamedTuple):
    """A field in which two specs differ: "layers[3].attn.block", "GQA.window", and what it is in each."""

    path: str
    field: str
    here: Any
    there: Any

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.field} is {_word(self.here)} here, {_word(self.there)} there"


class Draft(NamedTuple):
    """What a family can say of a spec, and the spec that this says."""

    family: ModuleType
    config: Words
    spec: Decoder


class Agreeable(Config):
    """A config that is whatever it is expected to be. What `said` lacks is as in the `released` sizes."""

    def __init__(self, said: Words, released: Words, defaults: Words) -> None:
        super().__init__(released | said, defaults)
        self.released = released

    def expect(self, **only: Any) -> None:
        self.unused(*only)

    def agrees(self, name: str, plan: Iterable[Any]) -> None:
        self.unused(name)

    def integer(self, name: str, most: int = MOST) -> int:
        if not self.values.get(name) and self.released.get(name):  # none, where the architecture must have some
            self.values[name] = self.released[name]
        return super().integer(name, most)


def _drafts(family: ModuleType, spec: Decoder) -> Iterator[Draft]:
    """One for each model_type that the family reads, in that order."""
    words, released = published(spec), _released(family)
    for model_type in family.from_hf.model_types:
        defaults = family.from_hf.defaults(model_type)
        said_so = {"rope_scaling": words.get("rope_scaling") or NO_SCALING} if "rope_scaling" in defaults else {}
        agreeable = Agreeable(words | {"model_type": model_type} | said_so, released, defaults)
        try:
            said = family.from_hf.read(agreeable)
        except (MalformedError, SpecError):
            continue  # it has no model of these widths
        config = {"architectures": [family.from_hf.classes[model_type]], "model_type": model_type, **TOKENS}
        config |= {name: value for name, value in agreeable.values.items() if name in agreeable.read}
        yield Draft(family, config, said)


@cache
def _released(family: ModuleType) -> Words:
    """Every published field of the family's sizes; of several values, the first size's."""
    words: Words = {}
    for size in family.SIZES.values():
        words = published(size.spec) | words
    return words


def _by_nearness(spec: Decoder) -> list[ModuleType]:
    """The families, that of the most similar released size first."""

    def distance(family: ModuleType) -> int:
        return min(_distance(differences(spec, size.spec)) for size in family.SIZES.values())

    return sorted(families().values(), key=distance)


def _distance(differences: Iterable[Difference]) -> int:
    """How many fields differ, all those of a block that is of another kind among them."""
    return sum(max(map(_size, (difference.here, difference.there))) for difference in differences)


def _size(value: Any) -> int:
    return 1 + sum(len(fields(part)) for part in value.walk()) if isinstance(value, Spec) else 1


def differences(here: Spec, there: Spec, path: str = "") -> Iterator[Difference]:
    """Every field in which two specs of one kind differ; of equal pairs of layers, in the first alone."""
    for field in fields(here):
        one, other = getattr(here, field.name), getattr(there, field.name)
        inside = f"{path}.{field.name}" if path else field.name
        if one == other:
            continue
        if isinstance(one, Spec) and type(one) is type(other):
            yield from differences(one, other, inside)
            continue
        if not isinstance(one, tuple) or len(one) != len(other):
            yield Difference(path, f"{type(here).__name__}.{field.name}", one, other)
        if isinstance(one, tuple):
            pairs = {pair: i for i, pair in reversed(list(enumerate(zip(one, other, strict=False))))}
            for (ours, theirs), i in sorted(pairs.items(), key=lambda item: item[1]):
                yield from differences(ours, theirs, f"{inside}[{i}]")


def _word(value: Any) -> str:
    """A field's value for an error's line: of a block its kind, since a block of the same kind is looked into."""
    if isinstance(value, tuple):
        return f"{len(value)} of them"
    return type(value).__name__ if isinstance(value, Spec) else repr(value)
