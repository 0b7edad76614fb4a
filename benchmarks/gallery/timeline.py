"""The architectures in order of release: features to filter by, and the facts of each size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.analytic.models import NamedSpec, one
from benchmarks.gallery.overview import Group, groups, size_of
from zoo.blocks import MLA, RoPE
from zoo.catalog import about, counterpart
from zoo.cli.listing import used_names
from zoo.costs import CacheSpec
from zoo.hf.config import Size
from zoo.model.decoder import Decoder
from zoo.registry import options
from zoo.swaps.differences import Difference, structure_differences
from zoo.units import format_count

FLOPS_CONTEXT = 4096  # tokens of context in the explained FLOPs
SHOWN_SENTENCES = 6  # sentences in the list on the differences from the counterpart; the panel has the other ones
UNDATED = "9999-99"  # the month of an unpublished model, which sorts after all others


def _named(*names: str) -> Callable[[Decoder], bool]:
    """Returns a function that tests whether a spec uses a block, an alias or a norm placement of one of these names."""
    return lambda spec: not used_names(spec).isdisjoint(names)


def _states(key: str) -> Callable[[Decoder], bool]:
    """Returns a function that tests whether a block of a spec states an option with this key."""
    return lambda spec: any(key in options(node) for node in set(spec.walk()))


def _of_cache(holds: Callable[[CacheSpec], bool]) -> Callable[[Decoder], bool]:
    """Returns a function that tests whether `holds` is true for the cache of at least one layer of a spec."""
    return lambda spec: any(holds(layer.cache_spec()) for layer in spec.layers)


@dataclass(frozen=True)
class Feature:
    """A feature that a reader may filter by. `has` tests a spec for it; `section` is in the text on blocks."""

    has: Callable[[Decoder], bool]
    section: str


FEATURES = {  # in the order shown; all are derived from the specs
    "multi-head": Feature(_named("MHA"), "Many heads: MHA"),
    "grouped queries": Feature(_named("GQA"), "Shared keys: GQA and MQA"),
    "latents (MLA)": Feature(_named("MLA"), "One latent: MLA"),
    "windows": Feature(_of_cache(lambda cache: cache.reach.limit is not None), "A window, or a chunk"),
    "state": Feature(_of_cache(lambda cache: bool(cache.state) and not cache.per_token), "A state instead of a cache"),
    "sparse choice of keys": Feature(_named("Indexer", "EntryIndexer"), "A choice of tokens: sparse attention"),
    "compressed keys": Feature(_of_cache(lambda cache: bool(cache.entries)), "Compressed keys"),
    "experts": Feature(_named("MoE"), "Mixture of experts"),
    "shared expert": Feature(_states("shared"), "Mixture of experts"),
    "NoPE": Feature(_named("NoPE"), "Position: RoPE and NoPE"),
    "QK-norm": Feature(_states("qk_norm"), "Norms and their placement"),
    "sinks": Feature(_states("sinks"), "One head"),
    "output gate": Feature(_states("gate"), "Many heads: MHA"),
    "norms after blocks": Feature(_named("olmo", "sandwich", "post"), "Norms and their placement"),
    "several streams": Feature(_named("Streams"), "Several residual streams"),
    "tied head": Feature(_states("tied"), "A forward pass"),
}


def features(spec: Decoder) -> list[str]:
    """Returns the features of a model that a reader may filter by."""
    return [name for name, feature in FEATURES.items() if feature.has(spec)]


@dataclass(frozen=True)
class Entry:
    """An architecture in the list.

    `months`: months since the previous architecture. `compared_with`: an earlier architecture. `differences`: sentences
    on the structural differences from it.
    """

    group: Group
    released: str
    months: int
    features: tuple[str, ...]
    summary: str
    compared_with: Group | None
    differences: tuple[Difference, ...]

    @property
    def added(self) -> list[str]:
        """The first SHOWN_SENTENCES sentences on the differences."""
        return [each.sentence for each in self.differences[:SHOWN_SENTENCES]]


def entries(models: Sequence[NamedSpec]) -> list[Entry]:
    """Returns the architectures of these models, in order of the month in which the shown size was released."""
    found, before = list[Entry](), UNDATED
    for group in sorted(groups(models), key=_month):
        spec, month, earlier = group.typical.spec, _month(group), _compared_with(group)
        entry = Entry(
            group=group,
            released="" if month == UNDATED else month,
            months=0 if UNDATED in (month, before) else _count(month) - _count(before),
            features=tuple(features(spec)),
            summary=f"{size_of(spec)}; {len(spec.layers)} layers",
            compared_with=earlier,
            differences=tuple(structure_differences(spec, earlier.typical.spec)) if earlier else (),
        )
        found.append(entry)
        before = month
    return found


def _compared_with(group: Group) -> Group | None:
    """Returns the earlier architecture with which a published one is compared, with its best-known size; None if there
    is none."""
    earlier = counterpart(group.typical.name) if group.typical.size else None
    return groups([one(earlier)])[0] if earlier else None


def _month(group: Group) -> str:
    """Returns the release month of the size that stands for an architecture; its other sizes may be older."""
    return group.typical.size.released if group.typical.size else UNDATED


def _count(month: str) -> int:
    """Returns the months since year 0."""
    year, number = month.split("-")
    return 12 * int(year) + int(number)


def facts(model: NamedSpec) -> dict[str, Any]:
    """Returns the facts about a size that the page shows beside its costs. A text without content is empty."""
    spec, size = model.spec, model.size
    said = about(model.name) if size else None
    return {
        "licence": said.licence if said else "",
        "report": said.report if said else "",
        "left_out": (said.left_out or "") if said else "",
        "released": size.released if size else "",
        "hub": size.hub if size else "",
        "note": (size.note or "") if size else "",
        "vocabulary": spec.vocab,
        "why_active": _why_active(model),
        "why_flops": why_flops(spec, FLOPS_CONTEXT),
        "why_context": _why_context(spec, size),
        "why_cache": _why_cache(spec),
    }


def _why_active(model: NamedSpec) -> str:
    """Explains the publisher's count of active parameters and the zoo's rule; empty if no count is published."""
    if not model.size or not model.size.active:
        return ""
    published, rule = model.size.active
    return f"The publisher counts {format_count(published)}, {rule}; here each stored value that a token uses counts."


def why_flops(spec: Decoder, context: int) -> str:
    """Explains a decoded token's FLOPs: 2 per active parameter in products with weights, plus attention.

    The text is empty if attention over the context takes less than 5 % of the FLOPs.
    """
    whole, fixed = spec.flops(context - 1, 1), spec.flops(0, 1)
    attention = whole - fixed
    if attention < 0.05 * whole:
        return ""
    giga = "{:,.1f} GFLOPs".format
    text = (
        f"{giga(fixed / 1e9)} are products with weights, 2 for each active parameter that is multiplied; "
        f"{giga(attention / 1e9)} are attention over {context:,} tokens."
    )
    latent = next((node for node in spec.walk() if isinstance(node, MLA)), None)
    if latent:
        text += (
            f" Decoding multiplies each of {latent.heads} heads with the latents themselves ({latent.kv_rank} + "
            f"{latent.rope_dim} elements for a score, {latent.kv_rank} for the values), since that reads a small "
            f"cache; with keys of {latent.nope_dim + latent.rope_dim} and values of {latent.v_dim} elements it would "
            "be fewer FLOPs."
        )
    return text


def _why_context(spec: Decoder, size: Size | None) -> str:
    """Explains the max context: the publisher's number, and the original number if RoPE scaling extends it."""
    stated = ""
    if size and size.stated_context:
        stated = f"The publisher states {size.stated_context:,} tokens; this is the config's max_position_embeddings."
    for node in spec.walk():
        scaling = node.scaling if isinstance(node, RoPE) else None
        original = getattr(scaling, "original", None)
        if scaling is not None and original and spec.context and spec.context > original:
            extended = f"Trained on {original:,} tokens first, then extended: {scaling.describe()}."
            return f"{stated or 'The max_position_embeddings of the config.'} {extended}"
    return stated


def _why_cache(spec: Decoder) -> str:
    """Returns a sentence on the layers whose cache stops growing; empty if every layer's cache grows."""
    layers = [layer.cache_spec() for layer in spec.layers]
    windows = [each.reach.limit for each in layers if each.per_token and each.reach.limit is not None]
    states = sum(1 for each in layers if each.state and not each.per_token)
    growing = sum(1 for each in layers if each.entries or (each.per_token and each.reach.limit is None))
    if not windows and not states:
        return ""
    said = [f"{len(windows)} layers keep their last {max(windows):,} tokens"] if windows else []
    said += [f"{states} keep a state of a fixed size"] if states else []
    return f"Of {len(layers)} layers {' and '.join(said)}: fixed once full. {growing} keep every token."
