"""Specs: frozen descriptions of blocks, the registry of their kinds, and replacing one spec by another.

A spec holds everything known about a block without tensors, and builds its module. Equal specs describe equal blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache, lru_cache
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

from zoo.classes import add_kind, allowed_values, field_tests
from zoo.costs import Breakdown, CacheSpec, Reach, sum_breakdowns
from zoo.errors import SpecError, UsageError
from zoo.facts import Fact, fact_of_field
from zoo.sharding import Cut, Cuts, Divide, Exchange, Rank, Section, prefixed

if TYPE_CHECKING:
    from torch import nn

S = TypeVar("S", bound="Spec")


class Alias(NamedTuple):
    """Another name for a special case of a block, such as MQA for GQA with one key head. `--swap` accepts the name.
    Descriptions print it for each spec for which `holds` is true.

    `sets`: the fields that the name fixes, each as a function of the other fields. `needs`: required fields, each with
    an example value.
    """

    holds: Callable[[Any], bool]
    sets: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {}
    needs: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Spec(ABC):
    """A frozen description of a part of a model.

    `Spec.kinds` is the block registry: class name -> class, for each public, concrete subclass. Classes enter it when
    they are defined. `role` names the place that it can take in a model: attn, ffn, norm, rope, router, act, ...
    """

    # Computed once, since specs are walked and looked up often. Slots keep these values out of vars().
    __slots__ = ("_kept_children", "_kept_hash", "_kept_parts")

    kinds: ClassVar[dict[str, type[Spec]]] = {}
    role: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, Alias]] = {}  # names of special cases, such as MHA and MQA of GQA
    divides: ClassVar[Mapping[str, Divide]] = {}  # fields whose units ranks divide among them (zoo.sharding)
    keeps_hash: ClassVar[bool] = True  # caches the hash; False for small specs, whose hash is cheap
    toy: ClassVar[Mapping[str, Any]] = {}  # field -> largest value in tiny models, if not zoo.swaps.tiny's

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.keeps_hash:
            cls.__hash__ = Spec.__hash__  # type: ignore[method-assign]  # @dataclass would add an uncached one
        unsaid = sorted(name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False))
        if unsaid and not abstract:
            raise TypeError(f"{cls.__name__} must define {', '.join(unsaid)}")
        if not abstract and cls.describe is Spec.describe and cls.facts is Spec.facts:
            raise TypeError(f"{cls.__name__} must define describe or facts")
        if not abstract and not cls.__name__.startswith("_"):
            add_kind(Spec.kinds, cls)

    def __hash__(self) -> int:
        found: int = _kept(self, "_kept_hash", _hash_of)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __post_init__(self) -> None:
        for name, fits in field_tests(type(self)).items():
            if not fits(value := getattr(self, name)):
                allowed = f"{allowed_values(type(self), name)}{_example(fits)}"
                self.require(False, f"{name} must be {allowed}, not {_given(value)}")
        self.check()

    def check(self) -> None:
        """Raises SpecError if fields contradict each other. Types and ranges were already checked against the
        annotations: ints must be positive, floats positive and finite."""

    def check_width(self, width: int) -> None:
        """Raises SpecError if the fields do not allow a position table for heads of this width."""

    def require(self, holds: bool, message: str) -> None:
        """Raises SpecError, with this class's name and `message`, unless `holds` is true."""
        if not holds:
            raise SpecError(f"{type(self).__name__}: {message}")

    def facts(self) -> tuple[Fact, ...]:
        """Returns statements about this spec, in the order of its description. By default only its kind is stated;
        `stated` adds facts about the fields."""
        return (Fact("kind", self.names()[0]),)

    def in_use(self, *facts: Fact) -> tuple[Fact, ...]:
        """Returns the given facts, except facts about optional fields that have their default values."""
        unused = _defaults(type(self)).keys() - fields_in_use(self)
        return tuple(fact for fact in facts if fact.key not in unused)

    def describe(self) -> str:
        """One line of text for cards, tables and pictures: the facts by default."""
        return ", ".join(filter(None, map(str, self.facts())))

    def names(self) -> list[str]:
        """Returns the usual names of this block: its class name, and every alias that applies to it."""
        return [type(self).__name__, *(name for name, alias in self.aliases.items() if alias.holds(self))]

    def children(self) -> Iterator[tuple[str, Spec]]:
        """Yields (field name, spec) for each spec in the fields, in order. The members of a tuple share its field
        name."""
        return iter(_kept(self, "_kept_children", _children_of))

    def shard(self, rank: Rank) -> Self:
        """Returns the spec of one tensor-parallel rank's shard: the fields in `divides` are smaller. Raises SpecError
        if a field cannot be divided among this many ranks."""
        held = {name: len(rank.held(getattr(self, name), how, name)) for name, how in self.divides.items()}
        return self.map(lambda child: child.shard(rank), **held)

    def cuts(self) -> Cuts:
        """Returns the cuts of the module's parameters that ranks divide. By default these are the cuts of the inner
        specs, whose modules have the names of the fields."""
        inside = (prefixed(name, child.cuts()) for name, child in self.children())
        return {name: cut for cuts in inside for name, cut in cuts.items()}

    @property
    def sums_over_ranks(self) -> bool:
        """Whether the output is the sum of the partial outputs that ranks compute with their shards."""
        return bool(self.divides)

    def cut(self, field: str, dim: int = 0) -> Cut:
        """Returns the cut, along `dim`, of a parameter that is divided like a field."""
        return Cut(dim, (self.section(field),))

    def section(self, field: str, rows: int | None = None) -> Section:
        """Returns the section of a parameter's rows that is divided like a field."""
        return Section(getattr(self, field), self.divides[field], field, rows)

    def exchanges(self, dim: int, ranks: int) -> tuple[Exchange, ...]:
        """Returns the collective operations of `ranks` ranks in a forward pass, in order: the all-reduce of the output,
        or the operations of the inner specs."""
        if self.sums_over_ranks:
            return (Exchange("all-reduce", dim),)
        return tuple(each for _, child in self.children() for each in child.exchanges(dim, ranks))

    def walk(self) -> Iterator[Spec]:
        """Yields this spec and every spec inside it, outermost first."""
        return iter(_kept(self, "_kept_parts", _parts_of))

    def resized(self, to: Any) -> dict[str, Any]:
        """Returns the fields that change with the model's width, with their new values. `to` has the rules:
        zoo.swaps.proportions.Proportions for a scaled-down model, zoo.swaps.borrow.WidthRatio for another published
        width. Inner specs return their own changes."""
        return {}

    def map(self, change: Callable[[Spec], Spec], **others: Any) -> Self:
        """Returns this spec with `change` applied to each spec in its fields and with the fields `others` set, in one
        step."""

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(changed(item) for item in value)
            return change(value) if is_spec(value) else value

        values = {name: getattr(self, name) for name in field_names(type(self))}
        mapped = {name: changed(old) for name, old in values.items() if name not in others}
        updates = {name: new for name, new in (mapped | others).items() if new != values[name]}
        return replace(self, **updates) if updates else self


def _kept(spec: Spec, name: str, find: Callable[[Any], Any]) -> Any:
    """Returns `find(spec)`, computed once: a spec never changes."""
    try:
        return getattr(spec, name)
    except AttributeError:
        object.__setattr__(spec, name, found := find(spec))
        return found


def _hash_of(spec: Spec) -> int:
    return hash((type(spec), *(getattr(spec, name) for name in field_names(type(spec)))))


def _children_of(spec: Spec) -> tuple[tuple[str, Spec], ...]:
    found: list[tuple[str, Spec]] = []
    for name in field_names(type(spec)):
        value = getattr(spec, name)
        items = value if isinstance(value, tuple) else (value,)
        found += [(name, item) for item in items if is_spec(item)]
    return tuple(found)


def _parts_of(spec: Spec) -> tuple[Spec, ...]:
    found = [spec]
    for _, child in spec.children():
        found += child.walk()
    return tuple(found)


@cache
def field_names(kind: type[Spec]) -> tuple[str, ...]:
    """Returns the field names of a kind of spec, in order."""
    return tuple(field.name for field in fields(kind))


@lru_cache(maxsize=4096)
def stated(spec: Spec) -> Mapping[str, Fact]:
    """Returns key -> fact: the facts of a spec, and a fact for each optional field in use that they do not mention."""
    found = {fact.key: fact for fact in spec.facts()}
    used = {name: fact_of_field(name, getattr(spec, name)) for name in fields_in_use(spec) if name not in found}
    return found | used


def options(spec: Spec) -> dict[str, Fact]:
    """Returns key -> fact for the optional facts of a spec: all except its kind and its required fields."""
    fixed = {"kind", *field_names(type(spec))} - _defaults(type(spec)).keys()
    return {key: fact for key, fact in stated(spec).items() if key not in fixed and str(fact)}


def fields_in_use(spec: Spec) -> list[str]:
    """Returns the optional fields with a value other than the default."""
    return [name for name, default in _defaults(type(spec)).items() if getattr(spec, name) != default]


@cache
def _defaults(kind: type[Spec]) -> dict[str, Any]:
    """Returns optional field -> its default."""
    given = {each.name: each.default for each in fields(kind) if each.default is not MISSING}
    made = {each.name: each.default_factory() for each in fields(kind) if each.default_factory is not MISSING}
    return {name: (given | made)[name] for name in field_names(kind) if name in given or name in made}


def is_spec(value: object) -> bool:
    """Whether `value` is a Spec. isinstance is several times slower for a class with abstract methods."""
    kind: Any = type(value)
    return _is_kind(kind)


@cache
def _is_kind(kind: Any) -> bool:
    return issubclass(kind, Spec)


class Block(Spec, abstract=True):
    """A part with parameters. `dim`, the width of the residual stream, is an argument and never a field.

    A subclass defines `params` or `param_breakdown`, and `flops` or `flop_breakdown`: the other of each pair follows.
    """

    input_norm: ClassVar[str | None] = None  # the name of a norm inside its module that reads x first

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(abstract=abstract, **kwargs)
        for total, parts in (("params", "param_breakdown"), ("flops", "flop_breakdown")):
            if not abstract and all(getattr(cls, name) is getattr(Block, name) for name in (total, parts)):
                raise TypeError(f"{cls.__name__} must define {total} or {parts}")

    @abstractmethod
    def build(self, dim: int) -> nn.Module:
        """Returns the module, allocated and not initialised."""

    def params(self, dim: int) -> int:
        """The number of parameters."""
        return sum(self.param_breakdown(dim).values())

    def active_params(self, dim: int) -> int:
        """The number of parameters that one token uses: all but those of experts that the token is not routed to."""
        return round(self.read_params(dim, 1))

    def read_params(self, dim: int, tokens: int) -> float:
        """The expected number of parameters that a forward pass of `tokens` tokens reads: all but those of experts that
        no token is routed to. Every expert is assumed to be equally likely."""
        return self.params(dim) - self.idle_params(dim, tokens)

    def idle_params(self, dim: int, tokens: int) -> float:
        """The expected number of parameters that a pass of `tokens` tokens does not read: the sum over inner blocks."""
        return sum(block.idle_params(dim, tokens) for block in self.blocks())

    def blocks(self) -> Iterator[Block]:
        """Returns the blocks in the fields, in order."""
        return (child for _, child in self.children() if isinstance(child, Block))

    def param_breakdown(self, dim: int) -> Breakdown:
        """Returns `params` by part: attn, norm, ffn, routed, shared, router. By default, one part: the block's role."""
        return {self.role: self.params(dim)}

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        """The FLOPs of a forward pass of `new` tokens after `past`, by the convention of zoo.costs. `causal=False`
        counts every pair that a dense masked kernel computes, not only the visible pairs."""
        return sum(self.flop_breakdown(dim, past, new, causal).values())

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        """Returns `flops` by part: projections, scores (with the weighted values), ffn, routed, shared, router."""
        return {self.role: self.flops(dim, past, new, causal)}


class Composite(Block, abstract=True):
    """A block made of inner blocks of the same `dim`. Each cost is the sum over the inner blocks."""

    def param_breakdown(self, dim: int) -> Breakdown:
        return sum_breakdowns((1, block.param_breakdown(dim)) for block in self.blocks())

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return sum_breakdowns((1, block.flop_breakdown(dim, past, new, causal)) for block in self.blocks())


class FlopGrowth(NamedTuple):
    """The growth of one token's FLOPs with the number of tokens in `reach`. The FLOPs are constant up to `start`
    visible tokens. Then they grow after every `every` tokens: more than 1 if an entry stands for several tokens."""

    reach: Reach
    start: int = 0
    every: int = 1


class Mixer(Block, abstract=True):
    """A block in which tokens exchange information: attention, a recurrent state, a convolution.

    Its module takes x (b, t, dim), a ForwardContext and the layer's cache (zoo.core.forward_context).
    """

    role = "attn"
    cache_width: ClassVar[str] = ""  # the field that cache bytes per token grow with: a head's width, a latent's rank

    def __post_init__(self) -> None:
        super().__post_init__()
        for spec, width in self.tables():
            spec.check_width(width)

    @abstractmethod
    def resized(self, to: Any) -> dict[str, Any]:
        """Returns the fields that change with the model's width, as in Spec. Every mixer must define this."""

    @abstractmethod
    def cache_spec(self) -> CacheSpec:
        """Returns the contents of the layer's cache."""

    def hands_on(self) -> tuple[Hashable, ...]:
        """Returns the keys of the tensors that the module gives to later layers with `ctx.hand_on(key, value)`. Keys
        are tuples of strings and integers."""
        return ()

    def takes(self) -> Mapping[Hashable, str]:
        """Returns key -> description for each tensor that the module reads from the nearest earlier layer that gives
        it, as `ctx.shared[key]`."""
        return {}

    @property
    def sink_heads(self) -> int:
        """The number of query heads with a learned sink in their scores."""
        return 0

    def flop_growth(self, part: str) -> FlopGrowth:
        """Returns the growth of one token's FLOPs in one part of `flop_breakdown`."""
        return FlopGrowth(self.cache_spec().reach)

    def tables(self) -> tuple[tuple[Spec, int], ...]:
        """Returns (spec, width) for each table that a forward pass looks up: `spec.table(positions, width, dtype)`."""
        return ()


def _example(fits: Callable[[Any], bool]) -> str:
    """Returns ", such as KIND()" with the first kind without required fields that a field may hold; "" for none."""
    simple = (kind for kind in Spec.kinds.values() if len(_defaults(kind)) == len(field_names(kind)))
    return next((f", such as {kind.__name__}()" for kind in simple if fits(kind())), "")


def _given(value: Any) -> str:
    """Returns the value for an error message: a number or a string itself, otherwise the name of its type."""
    return brief(value) if isinstance(value, int | float | str | None) else type(value).__name__


def swap(spec: S, kind: type[Spec], change: Spec | Callable[[Any], Spec]) -> S:
    """Returns `spec` with each outermost spec of `kind` replaced by `change`, a spec or a function of the old spec.

    Raises SpecError if there is no spec of that kind, so that a swap never silently does nothing.
    """
    require_spec(spec, "swap", kind)
    swapped = _swap(spec, kind, change if callable(change) else lambda _: change)
    if not any(isinstance(node, kind) for node in spec.walk()):
        held = sorted({type(node).__name__ for node in spec.walk() if type(node).__name__ in Spec.kinds})
        raise SpecError(f"nothing to swap: no {kind.__name__} here, only {', '.join(held)}")
    return swapped


def require_spec(spec: object, function: str, kind: object = None) -> None:
    """Raises UsageError unless `spec` is a spec and `kind`, if given, is a class, instead of their names."""
    if not isinstance(spec, Spec):
        found = f"zoo.spec({spec!r:.80})" if isinstance(spec, str) else "zoo.spec(NAME) or model.spec"
        raise UsageError(f"zoo.{function} changes a spec, not a {type(spec).__name__}: give it {found}")
    if kind is not None and not isinstance(kind, type):
        raise UsageError(f"zoo.{function} needs a kind of block such as zoo.GQA, not {kind!r:.80}")


def _swap(spec: Any, kind: type[Spec], change: Callable[[Any], Spec]) -> Any:
    return change(spec) if isinstance(spec, kind) else spec.map(lambda child: _swap(child, kind, change))


def differences(here: Spec, there: Spec, path: str = "") -> dict[str, int]:
    """Returns a line of text for every field in which two specs of one kind differ, with a weight: 10 if the field
    holds another kind of block, else 1. Among equal pairs of layers, only the first is compared."""
    found: dict[str, int] = {}
    for field in fields(here):
        one, other = getattr(here, field.name), getattr(there, field.name)
        inside = f"{path}.{field.name}" if path else field.name
        if isinstance(one, Spec) and type(one) is type(other):
            found |= differences(one, other, inside)
        elif one != other and not (_of_specs(one) and len(one) == len(other)):
            where = f"{path}: " if path else ""
            line = f"{where}{type(here).__name__}.{field.name} is {_shown(one)} here, {_shown(other)} there"
            found[line] = 10 if isinstance(one or other, Spec) else 1
        if _of_specs(one):
            pairs = list(zip(one, other, strict=False))
            for pair in dict.fromkeys(pairs):
                found |= differences(*pair, f"{inside}[{pairs.index(pair)}]")
    return found


def _of_specs(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, Spec) for item in value)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} of them" if _of_specs(value) else brief(value)
    return type(value).__name__ if isinstance(value, Spec) else repr(value)
