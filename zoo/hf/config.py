"""Describes published models, and reads a published config.json strictly, in its older and its newer spelling.

Every field is read by the architecture or has no effect on a forward pass (zoo/hf/fields.py). Any other field is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from reprlib import repr as brief
from types import MappingProxyType
from typing import Any

from zoo.blocks import (
    GLU,
    LinearScaling,
    Llama3Scaling,
    LogTemperature,
    LongRoPE,
    MoE,
    RoPE,
    Router,
    Scaling,
    YarnScaling,
    longrope_gain,
    yarn_gain,
)
from zoo.errors import MalformedError, SpecError
from zoo.hf.fields import MAX_INTEGER, MAX_NAME_CHARACTERS, NEUTRAL, VISION, Fields, is_inert
from zoo.model.decoder import Decoder
from zoo.units import parse_month


@dataclass(frozen=True)
class About:
    """Facts from the publisher of an architecture, which no tensor can confirm. Licences may differ between versions.

    `title`: the family's name as its publisher spells it. `source`: the authors and the year. `compared_with`: the
    earlier family whose blocks it shares most, with which tables and figures compare it; publishers seldom say what
    they started from. `report`: the URL of the paper or, if there is no paper, of the announcement. `left_out`: parts
    of the released model that the zoo does not build.
    """

    title: str
    source: str
    _: KW_ONLY
    licence: str
    report: str
    compared_with: str | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class Size:
    """A released model: its hub id, its published number of parameters (text part, tied weights once) and its spec.

    `active`: the published number of active parameters and its counting rule, if this rule differs from the zoo's.
    `released`: the month in which the weights were published: "2024-07". `stated_context`: the context that the
    publisher states, in tokens, if the config states another. `note`: what is uncertain about this size.
    """

    hub: str
    params: int
    spec: Decoder
    active: tuple[int, str] | None = None
    released: str = field(kw_only=True)
    note: str | None = field(default=None, kw_only=True)
    stated_context: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        parse_month(self.released)


# The zoo's name of a quantity -> its usual name in config.json. Some architectures use other names.
COMMON = dict(vocab="vocab_size", dim="hidden_size", layers="num_hidden_layers", heads="num_attention_heads")
COMMON |= dict(context="max_position_embeddings")
EPS = "rms_norm_eps"
MAX_LAYERS = 1_000  # a spec holds every layer, so a corrupt number could fill the memory
# rope_type -> the kind of scaling and the published names of its fields. Several fields define a gain: see `_gain`.
ORIGINAL, PARTIAL = "original_max_position_embeddings", "partial_rotary_factor"
YARN = dict(factor="factor", original=ORIGINAL, fast="beta_fast", slow="beta_slow", truncate="truncate")
SCALINGS: dict[str, tuple[type[Scaling], dict[str, str]]] = {
    "linear": (LinearScaling, dict(factor="factor")),
    "llama3": (
        Llama3Scaling,
        dict(factor="factor", original=ORIGINAL, low="low_freq_factor", high="high_freq_factor"),
    ),
    "yarn": (YarnScaling, YARN),
    "longrope": (LongRoPE, dict(short="short_factor", long="long_factor", original=ORIGINAL)),
}
ROPE_DEFAULTS: dict[str, Any] = dict(attention_factor=None, mscale=None, mscale_all_dim=None)
ROPE_DEFAULTS |= dict(beta_fast=32.0, beta_slow=1.0, truncate=True)


class Config(Fields):
    """The fields of one config.json. A method reads each group of fields that many architectures share."""

    @property
    def model_type(self) -> Any:
        """The model_type, which names the published code for this config."""
        return self.values.get("model_type")

    def common(self, eps: str = EPS, **names: str) -> dict[str, Any]:
        """Returns the arguments that every architecture's `decoder` takes. `eps` and `names` are published names, for
        fields that are not under their usual names: common(dim="n_embd")."""
        most = {"layers": MAX_LAYERS}
        integers = (COMMON | names).items()
        return {field: self.integer(name, most.get(field, MAX_INTEGER)) for field, name in integers} | {
            "eps": self.number(eps),
            "tied": self.flag("tie_word_embeddings"),
        }

    def dense(self, heads_divide: bool = True, **rope: Any) -> dict[str, Any]:
        """Returns the arguments in `common` and those for grouped-query attention with a dense feed-forward.
        `heads_divide` is passed to `head_dim`, and `rope` to the method `rope`."""
        kv_heads = self.optional("num_key_value_heads") or self.integer("num_attention_heads")
        shape = self.common() | {"kv_heads": kv_heads, "hidden": self.integer("intermediate_size")}
        return shape | {"head_dim": self.head_dim(heads_divide), "rope": self.rope(**rope)}

    def mixture(self, router: Router, experts: str, hidden: str, shared: str | None = None) -> MoE:
        """Returns a mixture of experts. `experts`, `hidden` and `shared` are published names of fields: the number of
        experts, their width, and the ratio of the shared expert's width to it."""
        expert = GLU(self.integer(hidden))
        beside = GLU(self.integer(shared) * expert.hidden) if shared else None
        return MoE(self.integer(experts), expert, router, shared=beside)

    def head_dim(self, heads_divide: bool = True) -> int:
        """Returns the width of a head. If the field is null, this is hidden_size / num_attention_heads; with
        `heads_divide`, raises MalformedError if that is not a whole number."""
        given = self.optional("head_dim")
        dim, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        if given is None and heads_divide and dim % heads:
            raise self.error(f"hidden_size={dim} must be a multiple of num_attention_heads={heads}")
        return given or dim // heads

    def rope(
        self,
        kind: str | None = None,
        theta: str = "rope_theta",
        scaled: bool = True,
        fraction: float | None = None,
        synonyms: Mapping[str, str] = MappingProxyType({}),
    ) -> RoPE:
        """Returns the rotary encoding of the model, or of one `kind` of layer.

        Newer files hold `rope_parameters`, per kind of layer or for all layers. Older files hold the base under the
        name `theta`, and `rope_scaling`, which has an effect only if `scaled` is true. Fields of the other spelling
        must be null or agree. `fraction` is the default for the rotated share of a head's width; with None, the whole
        head must rotate. `synonyms` maps other names of a rope_type to the usual one.
        """
        given = self.rope_fields
        if self._newer and kind is not None:
            given = given.object(kind, given.defaults)
        elif not self._newer and not scaled:
            given = Fields({})
        inner = given.values.get("rope_theta")
        base = self.number(theta) if inner is None else given.number("rope_theta")
        if self.values.get(theta) in (None, base):
            self.unused(theta)
        share = 1.0 if fraction is None else self._fraction(given, fraction)
        return RoPE(base, self._scaling(given, synonyms), share)

    def _fraction(self, given: Fields, default: float) -> float:
        """Returns the rotated share of a head's width: from the `given` rope fields, else from the config's own field,
        else the default."""
        inside, outside = given.values.get(PARTIAL), self.values.get(PARTIAL)
        if inside is None:
            return default if outside is None else self.number(PARTIAL)
        if outside == inside:
            self.unused(PARTIAL)
        return given.number(PARTIAL)

    def rope_field(self, name: str) -> float | None:
        """Returns a number from rope_parameters or rope_scaling; None if the field is absent."""
        given = self.rope_fields
        return None if given.values.get(name) is None else given.number(name)

    def temperature(self) -> LogTemperature | None:
        """Returns the scaling of queries by position, from `llama_4_scaling_beta` in the rope fields (Ministral 3).

        Its original context is that of the rope scaling. The copy in `max_position_embeddings` of the rope fields is
        not used.
        """
        beta = self.rope_field("llama_4_scaling_beta")
        self.rope_field("max_position_embeddings")
        return None if beta is None else LogTemperature(beta, self.rope_fields.integer(ORIGINAL))

    @property
    def _newer(self) -> bool:
        return self.values.get("rope_parameters") not in (None, {})

    @property
    def rope_fields(self) -> Fields:
        """The object with the scaling of positions. If it has no original context, the config's own field is used, or
        else the model's context, as in the reference."""
        plain = self.values.get("rope_parameters") == {} and not self.values.get("rope_scaling")  # no default applies
        used, other = ("rope_parameters", "rope_scaling")[:: 1 if self._newer or plain else -1]
        if self.values.get(other) in (None, {}):
            self.unused(other)
        given = self.defaults | self.values
        context = given.get(ORIGINAL) or given.get("max_position_embeddings")
        return self.object(used, ROPE_DEFAULTS | {ORIGINAL: context})

    def _scaling(self, given: Fields, synonyms: Mapping[str, str]) -> Scaling | None:
        """Returns the scaling in rope_parameters or rope_scaling; None for the type "default" or an empty object."""
        spellings = ("rope_type", "type")  # newer spelling, older spelling
        said = {name: given.values[name] for name in spellings if name in given.values}
        known = {name: synonyms.get(text, text) if isinstance(text, str) else text for name, text in said.items()}
        used, rope_type = next(iter(known.items()), ("rope_type", "default"))
        if rope_type not in ("default", *SCALINGS):
            raise given.error(f"{used}={brief(rope_type)} is unknown; known: default, {', '.join(SCALINGS)}")
        given.expect(**{name: said[name] if known.get(name) == rope_type else rope_type for name in spellings})
        given.neutral(**{PARTIAL: NEUTRAL[PARTIAL]})
        if rope_type == "default":
            return None
        kind, names = SCALINGS[rope_type]
        values = given.typed(kind, **names)
        if kind is YarnScaling:
            values["gain"] = _gain(given)
        if kind is LongRoPE:
            values["gain"] = self._longrope_gain(given, values["original"])
        return kind(**values)

    def _longrope_gain(self, given: Fields, original: int) -> float:
        """Returns `attention_factor`, or else the usual gain for `factor`, or else the gain for the ratio of the
        contexts."""
        gain = given.optional_number("attention_factor")
        if gain is not None:
            given.unused("factor")
            return gain
        if original == 1:
            raise given.error("attention_factor is missing, and does not follow from an original context of one token")
        stated = given.values.get("factor") is not None
        factor = given.number("factor") if stated else self.integer("max_position_embeddings") / original
        return longrope_gain(factor, original)

    def check_released(self, kinds: Sequence[ModelType], ignore: Iterable[str] = ()) -> None:
        """Checks that `architectures` and `auto_map` name released classes. Only for these is the layout of the weights
        known.

        Models with another head (a classifier's, a draft model's) or none compute something else from the same fields.
        Raises MalformedError for other `architectures`; `finish` refuses an `auto_map` that is not accepted here.
        """
        self.read.add("architectures")
        given, classes = self.values.get("architectures"), sorted({kind.reference for kind in kinds})
        named = given if isinstance(given, list) else [given]
        if given is not None and "architectures" not in set(ignore) and any(name not in classes for name in named):
            shown = repr(given) if len(repr(given)) <= MAX_NAME_CHARACTERS else brief(given)
            raise self.error(
                f"architectures={shown} is not read, only {' or '.join(classes)}: another class has another head, or "
                "none; pass --ignore-field architectures (ignore_fields=) to ignore it"
            )
        if any(kind.remote and kind.remote.released(self.values.get("auto_map")) for kind in kinds):
            self.unused("auto_map")

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Raises MalformedError with every unread field that affects a forward pass, except those in `ignore`."""
        self.neutral(**{name: value for name, value in NEUTRAL.items() if name not in self.read})
        self.unused(*filter(is_inert, self.values))
        super().finish(ignore)


def layer_types(spec: Decoder) -> list[str]:
    """Returns the published name of each layer's reach: sliding_attention, chunked_attention, full_attention. A layer
    that keeps only a state has linear_attention."""
    caches = [layer.cache_spec() for layer in spec.layers]
    return ["linear_attention" if c.state and not c.per_token else c.reach.layer_type for c in caches]


def _gain(given: Fields) -> float:
    """Returns YaRN's gain on cos and sin: `attention_factor`, or else the ratio of two gains (DeepSeek), or else the
    usual gain."""
    factor, mscale = given.number("factor"), given.optional_number("mscale")
    all_dim, gain = given.optional_number("mscale_all_dim"), given.optional_number("attention_factor")
    if gain is not None:
        return gain
    return yarn_gain(factor, mscale) / yarn_gain(factor, all_dim) if mscale and all_dim else yarn_gain(factor)


@dataclass(frozen=True)
class Remote:
    """The code with which a family was released before the reference supported it. `file` is the end of its file names
    (modeling_deepseek.py), `classes` the beginning of its class names."""

    file: str
    classes: str
    publishers: tuple[str, ...]

    def released(self, auto_map: Any) -> bool:
        """Whether an `auto_map` names only these classes, each in the model's own repository or in a publisher's
        ("org/name--"). The code of a tokenizer does not count, since it computes no logits."""
        if not isinstance(auto_map, dict) or not all(isinstance(code, str) for code in auto_map.values()):
            return False
        model = (
            rf"configuration_{self.file}\.{self.classes}Config|modeling_{self.file}\.{self.classes}(Model|ForCausalLM)"
        )
        code = re.compile(rf"(({'|'.join(self.publishers)})/[A-Za-z0-9._-]+--)?({model})")
        return all(code.fullmatch(name) for key, name in auto_map.items() if key != "AutoTokenizer")


@dataclass(frozen=True)
class ModelType:
    """A model_type: its name in config.json, the reference's class, its defaults, and the code with which it was
    released. `class_name` is only needed if the class is not the name in CamelCase followed by "ForCausalLM"."""

    name: str
    class_name: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    remote: Remote | None = None

    @property
    def reference(self) -> str:
        """The name of the class in the reference."""
        return self.class_name or "".join(word.capitalize() for word in self.name.split("_")) + "ForCausalLM"


class FromHF:
    """The `from_hf` of an architecture, which converts a published config to a spec. `reads` creates it.

    `classes` maps each accepted model_type to the class of the reference. `expected` holds fields that have a single
    supported value, the same in all configs of the family.
    """

    def __init__(
        self,
        read: Callable[[Config], Decoder],
        kinds: Sequence[ModelType],
        expected: Mapping[str, Any],
        defaults: dict[str, Any],
    ) -> None:
        self._read, self._kinds, self._defaults = read, {kind.name: kind for kind in kinds}, defaults
        self.expected = expected
        self.model_types = tuple(self._kinds)
        self.classes = {kind.name: kind.reference for kind in kinds}

    def __call__(self, config: dict[str, Any], ignore_fields: Iterable[str] = ()) -> Decoder:
        """Converts a config. Raises MalformedError if it is malformed, or if the architecture does not support it."""
        ignore, text = set(ignore_fields), config
        if "text_config" in config:
            wrapper = Config(config)
            wrapper.check_released(self._candidates(wrapper.model_type), ignore)
            text = text_part(wrapper, ignore)
        own = self._candidates(text.get("model_type"))
        fields = Config(text, self._defaults | (dict(own[0].defaults) if len(own) == 1 else {}))
        if fields.model_type not in (None, *self.model_types):
            raise fields.error(f"model_type={brief(fields.model_type)} is not {' or '.join(self.model_types)}")
        fields.check_released(own if text is config else list(self._kinds.values()), ignore)
        fields.expect(**self.expected)
        try:
            spec = self._read(fields)
        except SpecError as error:
            raise MalformedError(f"config.json: {error}") from error
        if "layer_types" not in fields.read:
            fields.agrees("layer_types", layer_types(spec))
        fields.finish(ignore)
        return spec

    def _candidates(self, model_type: Any) -> list[ModelType]:
        """Returns the ModelType with this name, or all of them if the name is unknown."""
        known = isinstance(model_type, str) and model_type in self._kinds
        return [self._kinds[model_type]] if known else list(self._kinds.values())


def reads(
    *kinds: str | ModelType, expected: Mapping[str, Any], **defaults: Any
) -> Callable[[Callable[[Config], Decoder]], FromHF]:
    """Returns a decorator that makes `from_hf(config, ignore_fields=())` from a function that reads a Config.

    `kinds` are the accepted model_types, including those of multimodal wrappers; the first one is written. `expected`
    are fields with a single supported value. They are checked before the function runs, and `to_hf` need not return
    them. `defaults` are the published values of fields that files omit.
    """
    named = [ModelType(each) if isinstance(each, str) else each for each in kinds]
    return lambda read: FromHF(read, named, expected, defaults)


def text_part(wrapper: Config, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the language model's fields in a multimodal wrapper's config.

    The wrapper's `tie_word_embeddings` is used only if the text part has none. Mistral Small 3.1 was released untied,
    and its wrapper lacks the field. transformers 5 writes its class default `true` into every such wrapper. If the two
    values differ, `weights.load` follows the stored tensors, as the reference does (see `contradicts_on_tying`).
    """
    text = wrapper.values["text_config"]
    if not isinstance(text, dict):
        raise wrapper.error(f"text_config must be an object, got {brief(text)}")
    wrapper.unused("tie_word_embeddings", *VISION)
    wrapper.finish(ignore)
    if text.get("tie_word_embeddings") is None and wrapper.values.get("tie_word_embeddings") is not None:
        return text | {"tie_word_embeddings": wrapper.values["tie_word_embeddings"]}
    return text


def contradicts_on_tying(config: dict[str, Any]) -> bool:
    """Whether a multimodal wrapper and its text part have different values of `tie_word_embeddings`."""
    text = config.get("text_config")
    tied = [part.get("tie_word_embeddings") for part in (config, text) if isinstance(part, dict)]
    return len(tied) == 2 and None not in tied and tied[0] != tied[1]
