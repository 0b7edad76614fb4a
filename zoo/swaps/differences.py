"""Describes differences between the structures of two models in sentences: "norms after each block instead of before
each block". Different values of the same numeric field, such as a width, are not a difference in structure.

A structure maps each aspect, such as the placement of norms, to a phrase for every layer. The phrases are made from the
facts that blocks state, so that new kinds of blocks need no code here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from zoo.blocks.layer import Layer
from zoo.facts import Fact
from zoo.model.decoder import Decoder
from zoo.registry import Spec, field_names, options, stated

PLACEMENTS = {
    "pre": "before {}",
    "olmo": "after {}",
    "sandwich": "before and after {}",
    "post": "after the sum with {}",
    "none": "nowhere",
    "hyper": "before {} (on a sum of several streams)",
}
# Placement -> the equivalent placement, for a block that itself begins with a norm.
NORMED_BY_BLOCK = {"none": "pre", "olmo": "sandwich"}
# Facts about sizes or rounding, and facts that another aspect covers.
DETAILS = frozenset(
    "act chunk compressor context expert fraction gain indexer latent min_step multiplier positions post pre q_norm "
    "qk_norm_over reach renormalise scale scale_in_fp32 scaling shares_choice v_dim weight window".split()
)
BRANCH_NAMES = {"attn": "attention", "ffn": "the feed-forward"}
PARTS_OF_MODEL = {"tied": "head", "logit_cap": "head", "logits_scaling": "head", "streams": "layers"}
# Aspect -> `detail` of its differences, if that is not the name of the aspect.
DETAIL_NAMES = {"position": "rope", "scaling": "rope", "activation": "act", "placement": "norm"}
MAX_PERIOD = 12  # longest period of a layer pattern, in layers
MIN_SHARE = 0.1  # of the layers; smaller differences between two shares are ignored


class Difference(NamedTuple):
    """A sentence on how two models differ. `part` is the part of the model that it is about: attn, ffn, norm, layers,
    embedding or head. `detail` names the property of that part: rope, reach, router, act, ..., or a field. `layers` are
    the indices of the layers that the sentence is about; empty if it is about something that this model lacks."""

    part: str
    sentence: str
    detail: str = ""
    layers: tuple[int, ...] = ()


class Phrase(NamedTuple):
    """The words for one aspect of a layer, such as the placement of its norms. Phrases with the same `key` count as
    equal, even if the numbers in their texts differ. `name` is the noun for an option."""

    text: str
    key: Hashable
    name: str = ""


OFF = Phrase("", "")  # the phrase for an option that the layer's block has but does not use


def in_words(text: str) -> Phrase:
    """Returns a phrase with its text as the key: it equals only phrases with the same text."""
    return Phrase(text, text)


def joined(phrases: Iterable[Phrase]) -> Phrase | None:
    """Returns the distinct phrases joined into one; None for no phrases."""
    found = list(dict.fromkeys(phrases))
    text = " and ".join(each.text for each in found)
    return Phrase(text, tuple(each.key for each in found), text) if found else None


class Aspect(NamedTuple):
    """A phrase for every layer: None if the aspect does not apply to the layer, OFF if an option is off. Sentences
    about some of the layers use the verbs in `some` ("see", or "sees" for one layer). Sentences about all layers use
    `every` ("every layer sees")."""

    part: str
    detail: str
    phrases: tuple[Phrase | None, ...]
    some: tuple[str, str] = ("have", "has")
    noun: str = ""
    every: str = ""
    is_option: bool = False

    @property
    def keys(self) -> list[Hashable]:
        """The key of every layer's phrase, in the order of the layers. Layers without a phrase are left out."""
        return [phrase.key for phrase in self.phrases if phrase is not None]

    @property
    def shares(self) -> dict[Hashable, float]:
        """Key -> the share of layers with this key, among the layers to which the aspect applies."""
        keys = self.keys
        return {key: number / len(keys) for key, number in Counter(keys).items() if key != OFF.key}

    def phrase(self, key: Hashable) -> Phrase:
        """Returns the first phrase with this key."""
        return next(phrase for phrase in self.phrases if phrase is not None and phrase.key == key)

    def frequency(self, key: Hashable) -> tuple[int, int]:
        """Returns (layers with this key, layers). Both are counted in one period of the layer pattern; without a
        repeating pattern, in all layers."""
        keys = [None if phrase is None else phrase.key for phrase in self.phrases]
        repeats = (n for n in range(1, MAX_PERIOD + 1) if all(x == keys[i % n] for i, x in enumerate(keys)))
        period = next(repeats, len(keys))
        return keys[:period].count(key), period

    def indices(self, keys: Iterable[Hashable]) -> tuple[int, ...]:
        """Returns the indices of the layers that have a phrase with one of these keys."""
        wanted = set(keys)
        return tuple(i for i, phrase in enumerate(self.phrases) if phrase is not None and phrase.key in wanted)

    def layers(self, key: Hashable) -> str:
        """Returns how many layers have a phrase with this key, in words: "5 of 6 layers"."""
        return "{:,} of {:,} layers".format(*self.frequency(key))

    def statement(self, keys: Iterable[Hashable]) -> str:
        """Returns the phrases with these keys as one text. A phrase that holds for some layers says for how many."""
        parts = []
        for key in keys:
            text, layers = self.phrase(key).text, self.layers(key)
            if set(self.keys) == {key}:
                parts.append(f"{self.every} {text}".strip())
            elif self.is_option:
                parts.append(f"{text} in {layers}")
            else:
                verb = self.some[self.frequency(key)[0] == 1]
                parts.append(" ".join(filter(None, (layers, verb, self.noun, text))))
        return ", ".join(parts)


def structure_differences(model: Decoder, other: Decoder) -> list[Difference]:
    """Returns the differences in structure between two models, each as a sentence about `model`."""
    mine, theirs = structure(model), structure(other)
    fields = {name for node in model.walk() for name in field_names(type(node))}
    found: dict[str, Difference] = {}  # sentence -> difference: two parts may have the same sentence
    for name in dict.fromkeys([*mine, *theirs]):
        x, y = mine.get(name), theirs.get(name)
        indices: tuple[int, ...] = ()
        if x is not None:
            sentence, keys = _sentence(x, y)
            indices = x.indices(keys)
        else:
            assert y is not None
            # Only an option that a block of this model could have is called missing.
            sentence = f"no {y.phrase(next(iter(y.shares))).name}" if y.is_option and y.detail in fields else ""
        if sentence:
            part, detail, *_ = x or y or theirs[name]
            found.setdefault(sentence, Difference(part, sentence, DETAIL_NAMES.get(detail, detail), indices))
    return list(found.values())


@lru_cache(maxsize=256)  # a page compares every model with every other
def structure(spec: Decoder) -> dict[tuple[str, str], Aspect]:
    """Maps (part, detail) to each aspect of a model that applies to at least one layer."""
    return {aspect[:2]: aspect for aspect in _aspects(spec) if aspect.shares}


def _sentence(mine: Aspect, theirs: Aspect | None) -> tuple[str, Iterable[Hashable]]:
    """Returns a sentence on how this model differs in an aspect, and the keys of the phrases that it is about. The
    sentence is "" if the models do not differ."""
    if theirs is None:
        return mine.statement(mine.shares), mine.shares
    x, y = mine.shares, theirs.shares
    new, gone = [key for key in x if key not in y], [key for key in y if key not in x]
    if not new and not gone:
        rarest = min(x, key=lambda key: x[key])
        if abs(x[rarest] - y[rarest]) < MIN_SHARE:
            return "", ()
        before = theirs.layers(rarest) if x[rarest] < 1 else "some"
        return f"{mine.statement([rarest])} instead of {before}", [rarest]
    if not new:
        verb = " ".join(filter(None, (theirs.some[0], theirs.noun)))
        return f"no layers that {verb} {' or '.join(theirs.phrase(key).text for key in gone)}", ()
    several = len(y) > 1 and not mine.is_option
    replaced = " or ".join(f"{theirs.layers(key)} " * several + theirs.phrase(key).text for key in gone)
    return mine.statement(new) + (f" instead of {replaced}" if replaced else ""), new


def _aspects(spec: Decoder) -> Iterator[Aspect]:
    def of(read: Callable[[Layer], Phrase | None]) -> tuple[Phrase | None, ...]:
        return tuple(map(read, spec.layers))

    mixers = [[layer.mixer] if layer.mixer else [] for layer in spec.layers]
    feed_forwards = [[node for node in layer.walk() if node.role == "ffn"] for layer in spec.layers]
    is_mixed = any(layer.mixer and _keeps_a_state(layer) for layer in spec.layers)
    both = "a token mixer and a feed-forward" if is_mixed else "attention and a feed-forward"
    uses = ("use", "uses")
    yield Aspect("layers", "branches", of(lambda layer: _branches(layer, both)), every="every layer has")
    yield Aspect("norm", "placement", of(_placement), noun="norms", every="norms")
    yield Aspect("norm", "norm", of(_norm))
    yield Aspect("attn", "mixer", of(_mixer), uses)
    yield Aspect("attn", "reach", of(_reach), ("see", "sees"), every="every layer sees")
    yield Aspect("attn", "position", of(lambda layer: _position(layer, spec)))
    yield Aspect("attn", "scaling", of(_scaling), is_option=True)
    yield from _options("attn", mixers)
    yield Aspect("ffn", "experts", of(_experts))
    yield Aspect("ffn", "activation", of(_activation), uses)
    yield Aspect("ffn", "router", of(_router), uses)
    yield from _options("ffn", feed_forwards)
    yield from _options("layers", [[layer] for layer in spec.layers])
    yield from _options("embedding", [[spec]])


def _options(part: str, parts: Sequence[Sequence[Spec]]) -> Iterator[Aspect]:
    """Yields an aspect for each option that a block states. The option is off in a block that has a field for it but
    does not state it. If no block has such a field, the option is off in all blocks that do not state it."""
    used = [{key: fact for each in of for key, fact in options(each).items()} for of in parts]
    known = [{name for each in of for name in field_names(type(each))} for of in parts]
    every_field = set().union(*known)
    for key in dict.fromkeys(key for facts in used for key in facts if key not in DETAILS):
        phrases = [
            _phrase(facts[key]) if key in facts else OFF if key in names or (names and key not in every_field) else None
            for facts, names in zip(used, known, strict=True)
        ]
        yield Aspect(PARTS_OF_MODEL.get(key, part), key, tuple(phrases), is_option=True)


def _phrase(fact: Fact) -> Phrase:
    return Phrase(str(fact), fact.structure, fact.name)


def _kind(block: Spec) -> Phrase:
    """Returns the kind of a block, without its sizes."""
    return _phrase(stated(block)["kind"])


def _branches(layer: Layer, both: str) -> Phrase:
    if layer.attn and layer.ffn:
        return Phrase(both, "both")
    if layer.mixer is None:
        return in_words("a feed-forward alone")
    return in_words(f"{_kind(layer.mixer).text if _keeps_a_state(layer) else 'attention'} alone")


def _placement(layer: Layer) -> Phrase:
    """Returns the placement of norms around attention and feed-forward. Other branches are not described here."""
    branches = {role: branch for role, branch in layer.branches() if role in BRANCH_NAMES}
    places = {}
    for role, branch in branches.items():
        place = branch.placement
        if branch.block.input_norm is not None:
            place = NORMED_BY_BLOCK.get(place, place)
        places[PLACEMENTS.get(place, f"as in {branch.formula} for {{}}")] = role
    if len(places) == 1:
        return in_words(next(iter(places)).format("each block"))
    return in_words(" and ".join(place.format(BRANCH_NAMES[role]) for place, role in places.items()))


def _norm(layer: Layer) -> Phrase | None:
    return joined(_kind(norm) for _, branch in layer.branches() for norm in branch.norms())


def _mixer(layer: Layer) -> Phrase | None:
    if layer.mixer is None:
        return None
    kind = _kind(layer.mixer)
    return kind._replace(text=f"{kind.text} (a state of fixed size)") if _keeps_a_state(layer) else kind


def _keeps_a_state(layer: Layer) -> bool:
    """Whether a layer keeps a state but no tokens, and reads no tokens that another layer keeps."""
    return not layer.cache_spec().per_token and not layer.takes()


def _reach(layer: Layer) -> Phrase | None:
    if layer.mixer is None or _keeps_a_state(layer):
        return None
    cache, chosen = layer.cache_spec(), next((node for node in layer.walk() if node.role == "indexer"), None)
    seen = [cache.reach.clause(), *dict.fromkeys(f"an entry for every {each.every:,}" for each in cache.entries)]
    if chosen and "k" in stated(chosen):
        seen[-1] += f" (an indexer chooses {stated(chosen)['k'].values[0]:,})"
    return in_words(" and ".join(seen))


def _position(layer: Layer, spec: Decoder) -> Phrase | None:
    found = layer.position_encoding
    if found is None:
        return None
    if not found.encodes:
        return in_words("learned positions" if spec.positions else "no position encoding (NoPE)")
    facts = stated(found)
    return in_words(" ".join(str(facts[key]) for key in ("kind", "fraction") if key in facts))


def _scaling(layer: Layer) -> Phrase | None:
    ropes = [stated(node) for node in layer.walk() if node.role == "rope"]
    kinds = (_kind(rope["scaling"].value) for rope in ropes if "scaling" in rope)
    found = joined(Phrase(f"{kind.text} scaling of RoPE", kind.key) for kind in kinds)
    return found or (OFF if any("theta" in rope for rope in ropes) else None)


def _experts(layer: Layer) -> Phrase | None:
    if layer.ffn is None:
        return None
    routed = layer.mixture
    if routed is None:
        return in_words("a dense feed-forward")
    experts = _phrase(stated(routed)["experts"])
    if layer.ffn.block is not routed:
        return Phrase(f"{experts.text} beside a dense feed-forward", (experts.key, "beside"))
    return experts


def _activation(layer: Layer) -> Phrase | None:
    """Returns the kind of the feed-forward, or of one expert in a mixture."""
    if layer.ffn is None:
        return None
    routed = layer.mixture
    return _kind(routed.expert if routed else layer.ffn.block)


def _router(layer: Layer) -> Phrase | None:
    found = next((node for node in layer.walk() if node.role == "router"), None)
    if found is None:
        return None
    facts = stated(found)
    kind = facts["kind"]
    text = kind.template.format("k" if isinstance(kind.value, int) else kind.value)  # leaves out the number of experts
    groups = [facts["grouped"]] if "grouped" in facts else []
    return Phrase(" ".join([text, *map(str, groups)]), (kind.structure, *(each.structure for each in groups)))
