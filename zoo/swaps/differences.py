"""Differences between the structures of two models, in sentences: "norms after each block instead of before each
block". Numbers of the same field, such as widths, are not structure.

A structure is a table: for each aspect, such as the place of the norms, a phrase for every layer. Phrases come from the
blocks' own descriptions, so that a new block has its sentences too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from zoo.blocks import DenseAndMoE, EntryIndexer, Indexer, MoE, NoPE, RoPE, Router
from zoo.blocks.layer import Layer
from zoo.blocks.positions import Position
from zoo.costs import CacheSpec, Chunk, Window
from zoo.model.decoder import Decoder
from zoo.registry import Block, Spec
from zoo.swaps.rebuild import features, field_names

PLACEMENTS = {
    "pre": "before each block",
    "olmo": "after each block",
    "sandwich": "before and after each block",
    "post": "after each sum",
    "none": "nowhere",
    "hyper": "before each block (on a sum of several streams)",
}
# Optional fields that are numbers or rounding, or that another aspect covers.
DETAILS = frozenset(
    "act chunk compressor context expert fraction gain indexer latent min_step multiplier positions post pre q_norm "
    "qk_norm_over renormalise scale scale_in_fp32 scaling shares_choice v_dim weight window".split()
)
BRANCHES = {"attn": "attention", "ffn": "a feed-forward"}
PARTS_OF_MODEL = {"tied": "head", "logit_cap": "head", "logits_scaling": "head", "streams": "layers"}
# Aspect -> `detail` of its differences, where the names differ.
DETAIL_NAMES = {"position": "rope", "scaling": "rope", "activation": "act", "placement": "norm"}
MAX_PERIOD = 12  # longest period of a layer pattern, in layers
MIN_SHARE = 0.1  # share of the layers: a smaller difference is a difference in size


class Difference(NamedTuple):
    """A sentence, and the part of a model that it is about: attn, ffn, norm, layers, embedding or head. `detail` names
    the property of that part: rope, reach, router, act, ..., or a field."""

    part: str
    sentence: str
    detail: str = ""


class Aspect(NamedTuple):
    """A phrase for every layer: None where the aspect does not apply, "" where an option is off. `some` is the verb of
    a sentence about some of the layers ("see"), `every` the opening of one about all layers ("every layer sees"). In
    an `exact` aspect, phrases that differ only in a number count as different."""

    part: str
    phrases: tuple[str | None, ...]
    some: str = "have"
    every: str = ""
    is_option: bool = False
    exact: bool = False

    @property
    def keys(self) -> list[str]:
        """The keys by which the phrases are compared, for the layers that the aspect applies to."""
        return [self.key(phrase) for phrase in self.phrases if phrase is not None]

    def key(self, phrase: str) -> str:
        """Returns the key by which a phrase is compared: without its numbers, unless the aspect is `exact`."""
        return phrase if self.exact else re.sub(r"\d[\d.,]*", "", phrase)

    @property
    def shares(self) -> dict[str, float]:
        """Key -> the share of layers with such a phrase, among the layers that the aspect applies to."""
        keys = self.keys
        return {key: number / len(keys) for key, number in Counter(keys).items() if key}

    def phrase(self, key: str) -> str:
        """Returns the first phrase with this key."""
        return next(phrase for phrase in self.phrases if phrase is not None and self.key(phrase) == key)

    def layers(self, key: str) -> str:
        """Returns the number of layers with such a phrase, in one period of a repeating pattern ("5 of 6 layers"), else
        in all layers."""
        keys = [None if phrase is None else self.key(phrase) for phrase in self.phrases]
        repeats = (n for n in range(1, MAX_PERIOD + 1) if all(x == keys[i % n] for i, x in enumerate(keys)))
        period = next(repeats, len(keys))
        return f"{keys[:period].count(key):,} of {period:,} layers"

    def statement(self, keys: Iterable[str]) -> str:
        """Returns the phrases of these keys. The layers are named unless all layers that the aspect applies to have the
        phrase."""
        parts = []
        for key in keys:
            phrase, layers = self.phrase(key), self.layers(key)
            if set(self.keys) == {key}:
                parts.append(f"{self.every} {phrase}".strip())
            elif self.is_option:
                parts.append(f"{phrase} in {layers}")
            else:
                verb, _, rest = self.some.partition(" ")
                if layers.startswith("1 "):
                    verb = {"have": "has"}.get(verb, f"{verb}s")
                parts.append(" ".join(filter(None, (layers, verb, rest, phrase))))
        return ", ".join(parts)


def structure_differences(model: Decoder, other: Decoder) -> list[Difference]:
    """Returns the differences in structure of `model` from `other`, each as a sentence about `model`."""
    mine, theirs = structure(model), structure(other)
    fields = {name for node in model.walk() for name in field_names(type(node))}
    found: dict[str, Difference] = {}  # by sentence: blocks of two parts may say the same
    for name in dict.fromkeys([*mine, *theirs]):
        x, y = mine.get(name), theirs.get(name)
        if x is not None:
            sentence = _sentence(x, y)
        else:
            assert y is not None
            # The absence of an option is stated only if one of the model's blocks could have it.
            sentence = f"no {y.phrase(next(iter(y.shares)))}" if y.is_option and name.split()[-1] in fields else ""
        if sentence:
            detail = DETAIL_NAMES.get(name, name.split()[-1])
            found.setdefault(sentence, Difference((x or y or theirs[name]).part, sentence, detail))
    return list(found.values())


@lru_cache(maxsize=256)  # a page compares every model with every other
def structure(spec: Decoder) -> dict[str, Aspect]:
    """Returns the aspects of a model by name, without those that no layer has."""
    return {name: aspect for name, aspect in _aspects(spec) if any(aspect.phrases)}


def _sentence(mine: Aspect, theirs: Aspect | None) -> str:
    """Returns the sentence of an aspect about this model; "" if the other model is alike."""
    if theirs is None:
        return mine.statement(mine.shares)
    x, y = mine.shares, theirs.shares
    new, gone = [key for key in x if key not in y], [key for key in y if key not in x]
    if not new and not gone:
        rarest = min(x, key=lambda key: x[key])
        if abs(x[rarest] - y[rarest]) < MIN_SHARE:
            return ""
        return f"{mine.statement([rarest])} instead of {theirs.layers(rarest) if x[rarest] < 1 else 'some'}"
    if not new:
        return f"no layers that {theirs.some} {' or '.join(map(theirs.phrase, gone))}"
    several = len(y) > 1 and not mine.is_option
    before = [f"{theirs.layers(key)} {theirs.phrase(key)}" if several else theirs.phrase(key) for key in gone]
    return mine.statement(new) + (f" instead of {' or '.join(before)}" if before else "")


def _aspects(spec: Decoder) -> Iterator[tuple[str, Aspect]]:
    def of(read: Callable[[Layer], str | None]) -> tuple[str | None, ...]:
        return tuple(map(read, spec.layers))

    mixers = [[layer.mixer] if layer.mixer else [] for layer in spec.layers]
    feed_forwards = [[node for node in layer.walk() if node.role == "ffn"] for layer in spec.layers]
    yield "branches", Aspect("layers", of(_branches), "have", "every layer has")
    yield "placement", Aspect("norm", of(_placement), "have norms", "norms")
    yield "norm", Aspect("norm", of(_norm))
    yield "mixer", Aspect("attn", of(_mixer), "use")
    yield "reach", Aspect("attn", of(_reach), "see", "every layer sees", exact=True)
    yield "position", Aspect("attn", of(lambda layer: _position(layer, spec)), exact=True)
    yield "scaling", Aspect("attn", of(_scaling), is_option=True)
    yield from _options("attn", mixers)
    yield "experts", Aspect("ffn", of(_experts))
    yield "activation", Aspect("ffn", of(_activation), "use")
    yield "router", Aspect("ffn", of(_router), "use")
    yield from _options("ffn", feed_forwards)
    yield from _options("layers", [[layer] for layer in spec.layers])
    yield from _options("embedding", [[spec]])


def _options(part: str, parts: Sequence[Sequence[Spec]]) -> Iterator[tuple[str, Aspect]]:
    """Yields one aspect for each optional field that is in use in the parts of the layers."""
    used = [{name: _option(each, name, term) for each in of for name, term in features(each).items()} for of in parts]
    known = [{name for each in of for name in field_names(type(each))} for of in parts]
    for name in dict.fromkeys(name for fields in used for name in fields if name not in DETAILS):
        phrases = [fields.get(name, "" if name in names else None) for fields, names in zip(used, known, strict=True)]
        yield f"{part} {name}", Aspect(PARTS_OF_MODEL.get(name, part), tuple(phrases), is_option=True)


def _option(spec: Spec, name: str, term: str) -> str:
    """Returns the phrase of a field in use: its term, with its value if that is a number, or the spec's description."""
    value = getattr(spec, name)
    if name == "bias" and isinstance(value, str):
        return f"{term} on {', '.join(value)}"
    if isinstance(value, Spec):
        return value.describe() if value.role == name and not isinstance(value, Block) else term
    if value is None or isinstance(value, bool | tuple):
        return term
    return f"{term} {value:.4g}" if isinstance(value, float) else f"{term} {value}"


def _branches(layer: Layer) -> str:
    held = [name for role, name in BRANCHES.items() if getattr(layer, role)]
    return " and ".join(held) if len(held) > 1 else f"{held[0]} alone" if held else ""


def _placement(layer: Layer) -> str:
    places = [PLACEMENTS.get(branch.placement, f"as in {branch.formula}") for _, branch in layer.branches()]
    return " and ".join(dict.fromkeys(places))


def _norm(layer: Layer) -> str | None:
    norms = [norm for _, branch in layer.branches() for norm in branch.norms()]
    return " and ".join(dict.fromkeys(type(norm).__name__ for norm in norms)) or None


def _name(block: Spec) -> str:
    """Returns the name in a block's description, without its numbers."""
    return re.sub(r" of \d.*", "", block.describe().split(", ")[0])


def _mixer(layer: Layer) -> str | None:
    if layer.mixer is None:
        return None
    return f"{_name(layer.mixer)} (a state of fixed size)" if _keeps_a_state(layer) else _name(layer.mixer)


def _keeps_a_state(layer: Layer) -> bool:
    """Whether a layer keeps a state and no tokens, neither its own nor those of another layer."""
    return not layer.cache_spec().per_token and not layer.takes()


def _reach(layer: Layer) -> str | None:
    if layer.mixer is None or _keeps_a_state(layer):
        return None
    cache, chosen = layer.cache_spec(), next((node for node in layer.walk() if node.role == "indexer"), None)
    seen = [_tokens(cache), *dict.fromkeys(f"an entry for every {each.every:,}" for each in cache.entries)]
    if isinstance(chosen, Indexer | EntryIndexer):
        seen[-1] += f" (an indexer chooses {chosen.k:,})"
    return " and ".join(seen)


def _tokens(cache: CacheSpec) -> str:
    match cache.reach:
        case Window(size):
            return f"the last {size:,} tokens"
        case Chunk(size):
            return f"their chunk of {size:,} tokens"
        case reach:
            return "all tokens" if reach.limit is None else reach.describe()


def _position(layer: Layer, spec: Decoder) -> str | None:
    found = next((node for node in layer.walk() if node.role == "rope"), None)
    if not isinstance(found, Position):
        return None
    if isinstance(found, NoPE):
        return "learned positions" if spec.positions else "no position encoding (NoPE)"
    return re.sub(r"^(\S+) \d\S*", r"\1", re.sub(r" \(.*?\)", "", found.describe()))  # without base and scaling


def _scaling(layer: Layer) -> str | None:
    ropes = [node for node in layer.walk() if isinstance(node, RoPE)]
    names = [rope.scaling.describe().split(" x")[0] if rope.scaling else "" for rope in ropes]
    return " and ".join(f"{name} scaling of RoPE" for name in dict.fromkeys(names) if name) if ropes else None


def _experts(layer: Layer) -> str | None:
    if layer.ffn is None:
        return None
    nodes = list(layer.ffn.walk())
    routed = next((node for node in nodes if isinstance(node, MoE)), None)
    if routed is None:
        return "a dense feed-forward"
    beside = " beside a dense feed-forward" if any(isinstance(node, DenseAndMoE) for node in nodes) else ""
    return f"{routed.experts:,} experts ({routed.router.k:,} active){beside}"


def _activation(layer: Layer) -> str | None:
    """Returns the name in the description of the feed-forward, or of one routed expert."""
    if layer.ffn is None:
        return None
    routed = next((node for node in layer.ffn.walk() if isinstance(node, MoE)), None)
    return _name(routed.expert if routed else layer.ffn.block)


def _router(layer: Layer) -> str | None:
    found = next((node for node in layer.walk() if isinstance(node, Router)), None)
    if found is None:
        return None
    return re.sub(r"top-\d+", "top-k", re.sub(r" of \d+ experts", "", found.describe().split(", ")[0]))
