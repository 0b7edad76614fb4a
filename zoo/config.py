"""Published sizes, and reading a published config.json: strictly, in the older and the newer spelling.

Every field is read by the architecture, or is on the short list of those that cannot change a number, or is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from zoo.blocks.rope import LinearScaling, Llama3Scaling, RoPE, Scaling, YarnScaling, yarn_gain
from zoo.decoder import Decoder
from zoo.errors import MalformedError, SpecError


@dataclass(frozen=True)
class Size:
    """A released model: its hub id, its published number of parameters (text part, each once) and its spec.

    `active`: the published active parameters where the publisher's rule differs from ours, with that rule.
    """

    hub: str
    params: int
    spec: Decoder
    active: tuple[int, str] | None = None


# These say how a model was trained, stored or is to be sampled from; none changes what a forward pass computes.
INERT = frozenset(
    """
    _name_or_path architectures attention_dropout aux_loss_alpha bos_token_id dtype eos_token_id ep_size
    initializer_range model_type num_mtp_layers num_nextn_predict_layers output_router_logits pad_token_id
    pretraining_tp quantization_config router_aux_loss_coef seq_aux torch_dtype transformers_version use_cache
    """.split()
)
# A multimodal wrapper's own fields: the text part is read, the vision part is not built.
VISION = frozenset(
    """
    boi_token_index boi_token_id eoi_token_index eoi_token_id image_token_index image_token_id mm_tokens_per_image
    multimodal_projector_bias projector_hidden_act spatial_merge_size text_config vision_config vision_feature_layer
    """.split()
)
# One name a quantity on our side, Hugging Face's on theirs. All eight architectures share these.
COMMON = {
    "vocab": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "context": "max_position_embeddings",
}
_ABSENT = object()


class Config:
    """The fields of one config.json, handed out by name, and `finish` to see that all have been asked for."""

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any]) -> None:
        self.values, self.defaults, self.read = values, defaults, set[str]()

    def get(self, name: str) -> Any:
        """The field's value, or the published default of its model_type; MalformedError where there is neither."""
        self.read.add(name)
        value = self.values.get(name, self.defaults.get(name, _ABSENT))
        if value is _ABSENT:
            raise MalformedError(f"config.json: {name} is missing, and this model_type has no default for it")
        return value

    @property
    def model_type(self) -> Any:
        """Which published code this config is for."""
        return self.values.get("model_type")

    def integer(self, name: str) -> int:
        """A positive integer."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MalformedError(f"config.json: {name}={value!r} is no positive integer")
        return value

    def integers(self, **names: str) -> dict[str, int]:
        """Positive integers, under our names: integers(kv_rank="kv_lora_rank")."""
        return {ours: self.integer(name) for ours, name in names.items()}

    def optional(self, name: str) -> int | None:
        """A positive integer, or None where the field is null."""
        return None if self.get(name) is None else self.integer(name)

    def number(self, name: str) -> float:
        """A positive number."""
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise MalformedError(f"config.json: {name}={value!r} is no positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise MalformedError(f"config.json: {name}={value!r} is neither true nor false")
        return value

    def expect(self, **only: Any) -> None:
        """Fields that this architecture knows in one value only, the one they have where they are absent."""
        for name, value in only.items():
            self.read.add(name)
            if self.values.get(name, value) != value:
                raise MalformedError(f"config.json: {name}={self.values[name]!r} is not supported, only {value!r}")

    def unused(self, *names: str) -> None:
        """Fields that other fields have switched off."""
        self.read.update(names)

    def common(self) -> dict[str, Any]:
        """What every architecture's `decoder` takes, under our names."""
        return self.integers(**COMMON) | {
            "eps": self.number("rms_norm_eps"),
            "tied": self.flag("tie_word_embeddings"),
        }

    def dense(self) -> dict[str, Any]:
        """`common`, and what all grouped-query attention with a dense feed-forward takes."""
        kv_heads = self.optional("num_key_value_heads") or self.integer("num_attention_heads")
        return self.common() | {"kv_heads": kv_heads, "hidden": self.integer("intermediate_size")}

    def head_dim(self) -> int:
        """A head's width; hidden_size / num_attention_heads where the field is null."""
        return self.optional("head_dim") or self.integer("hidden_size") // self.integer("num_attention_heads")

    def rope(self, kind: str | None = None, theta: str = "rope_theta", scaled: bool = True) -> RoPE:
        """The rotary encoding, of layers of this `kind` where each kind has its own.

        Newer files hold `rope_parameters`, by kind of layer or for all; older ones the base under the name `theta`, and
        `rope_scaling`, which only `scaled` layers heed.
        """
        self.unused("rope_parameters", "rope_scaling", theta)
        given = self.values.get("rope_parameters")
        if given is not None and kind is not None:
            given = given.get(kind)
        if given is None:
            given = (self.values.get("rope_scaling") if scaled else None) or {}
        given = dict(given)
        base = given.pop("rope_theta", None)
        return RoPE(float(self.number(theta) if base is None else base), _scaling(given))

    def rope_field(self, name: str) -> Any:
        """One entry of rope_parameters or rope_scaling, None where it is absent."""
        given = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        return given.get(name)

    def agrees(self, name: str, plan: Iterable[Any]) -> None:
        """A published list with one entry a layer must say what the plan says."""
        plan = list(plan)
        given = self.values.get(name)
        self.read.add(name)
        if given is not None and given != plan:
            differs = next((i for i, (a, b) in enumerate(zip(given, plan, strict=False)) if a != b), len(plan))
            raise MalformedError(f"config.json: {name} differs from this architecture's plan, first at layer {differs}")

    def agrees_on_windows(self, spec: Decoder) -> None:
        """`layer_types` must name the plan's windowed layers."""
        kinds = {True: "full_attention", False: "sliding_attention"}
        self.agrees("layer_types", (kinds[layer.stored().window is None] for layer in spec.layers))

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Raise MalformedError naming every field that nobody has read."""
        left = [name for name in self.values if name not in self.read | INERT | set(ignore)]
        if left:
            told = ", ".join(f"{name}={self.values[name]!r}" for name in left)
            raise MalformedError(
                f"config.json: not understood: {told}; pass --ignore-field NAME (ignore_fields=) to vouch for one"
            )


def _linear(take: Callable[..., Any]) -> Scaling:
    return LinearScaling(factor=take("factor"))


def _llama3(take: Callable[..., Any]) -> Scaling:
    return Llama3Scaling(
        factor=take("factor"),
        original=take("original_max_position_embeddings"),
        low=take("low_freq_factor"),
        high=take("high_freq_factor"),
    )


def _yarn(take: Callable[..., Any]) -> Scaling:
    factor, mscale, all_dim = take("factor"), take("mscale", None), take("mscale_all_dim", None)
    split = yarn_gain(factor, mscale) / yarn_gain(factor, all_dim) if mscale and all_dim else yarn_gain(factor)
    given = take("attention_factor", None)
    return YarnScaling(
        factor=factor,
        original=take("original_max_position_embeddings"),
        gain=split if given is None else given,
        fast=take("beta_fast", 32.0),
        slow=take("beta_slow", 1.0),
        truncate=take("truncate", True),
    )


SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _scaling(given: dict[str, Any]) -> Scaling | None:
    """rope_parameters or rope_scaling, less its base -> the scaling, None for type "default" or nothing."""
    spelled = [given.pop(name) for name in ("rope_type", "type") if name in given]
    kind = spelled[0] if spelled else "default"
    if kind != "default" and kind not in SCALINGS:
        raise MalformedError(f"config.json: unknown rope type {kind!r}; known: default, {', '.join(SCALINGS)}")

    def take(name: str, default: Any = _ABSENT) -> Any:
        value = given.pop(name, default)
        if value is _ABSENT:
            raise MalformedError(f"config.json: rope type {kind!r} needs {name}")
        return value

    scaling = SCALINGS[kind](take) if kind != "default" else None
    if given:
        raise MalformedError(f"config.json: rope type {kind!r} has fields that are not understood: {given}")
    return scaling


class FromHF(Protocol):
    """An architecture's `from_hf`: a published config -> its spec."""

    model_types: tuple[str, ...]

    def __call__(self, config: dict[str, Any], ignore_fields: Iterable[str] = ()) -> Decoder: ...


def reads(*model_types: str, **defaults: Any) -> Callable[[Callable[[Config], Decoder]], FromHF]:
    """Make `from_hf(config, ignore_fields=())` of a function that reads a Config.

    `model_types` are those it takes, a multimodal wrapper's among them; `defaults` the published values of fields that
    files leave out. Raises MalformedError for what the file gets wrong or this architecture does not understand.
    """

    def decorate(read: Callable[[Config], Decoder]) -> FromHF:
        def from_hf(config: dict[str, Any], ignore_fields: Iterable[str] = ()) -> Decoder:
            fields = Config(text_part(config), defaults)
            try:
                spec = read(fields)
            except SpecError as error:
                raise MalformedError(f"config.json: {error}") from error
            fields.finish(ignore_fields)
            return spec

        from_hf.model_types = model_types  # type: ignore[attr-defined]
        from_hf.__doc__ = f"A published config.json of model_type {' or '.join(model_types)} -> its spec."
        return from_hf  # type: ignore[return-value]

    return decorate


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's fields of a multimodal wrapper's config; any other config as it is."""
    if "text_config" not in config:
        return config
    text = dict(config["text_config"])
    if "tie_word_embeddings" in config:
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    outside = {name: value for name, value in config.items() if name not in VISION | {"tie_word_embeddings"}}
    Config(outside, {}).finish()
    return text
