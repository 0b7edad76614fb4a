"""Published sizes, and reading a published config.json: strictly, in the older and the newer spelling.

Every field is read by the architecture, or is on the short list of those that cannot change a number, or is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any, Protocol

from zoo.blocks.rope import LinearScaling, Llama3Scaling, RoPE, Scaling, YarnScaling, yarn_gain
from zoo.decoder import Decoder
from zoo.errors import MalformedError, SpecError
from zoo.fields import MOST, Fields


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
MOST_LAYERS = 1_000  # a plan holds each layer: a damaged number would fill the memory
ROPE_DEFAULTS = {
    "attention_factor": None,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


class Config(Fields):
    """The fields of one config.json, in the words that architectures share."""

    @property
    def model_type(self) -> Any:
        """Which published code this config is for."""
        return self.values.get("model_type")

    def common(self) -> dict[str, Any]:
        """What every architecture's `decoder` takes, under our names."""
        most = {"layers": MOST_LAYERS}
        return {ours: self.integer(name, most.get(ours, MOST)) for ours, name in COMMON.items()} | {
            "eps": self.number("rms_norm_eps"),
            "tied": self.flag("tie_word_embeddings"),
        }

    def dense(self) -> dict[str, Any]:
        """`common`, and what all grouped-query attention with a dense feed-forward takes."""
        kv_heads = self.optional("num_key_value_heads") or self.integer("num_attention_heads")
        return self.common() | {"kv_heads": kv_heads, "hidden": self.integer("intermediate_size")}

    def head_dim(self) -> int:
        """A head's width; hidden_size / num_attention_heads where the field is null."""
        given = self.optional("head_dim")
        dim, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        if given is None and dim % heads:
            raise self.wrong(f"hidden_size={dim} is no multiple of num_attention_heads={heads}")
        return given or dim // heads

    def rope(self, kind: str | None = None, theta: str = "rope_theta", scaled: bool = True) -> RoPE:
        """The rotary encoding, of layers of this `kind` where each kind has its own.

        Newer files hold `rope_parameters`, by kind of layer or for all; older ones the base under the name `theta`, and
        `rope_scaling`, which only `scaled` layers heed. A field in the spelling that is not used must be null or agree.
        """
        given = self._rope_fields()
        if self._newer and kind is not None:
            given = given.object(kind, ROPE_DEFAULTS)
        elif not self._newer and not scaled:
            given = Fields({})
        inner = given.values.get("rope_theta")
        base = self.number(theta) if inner is None else given.number("rope_theta")
        if self.values.get(theta) in (None, base):
            self.unused(theta)
        return RoPE(base, _scaling(given))

    def rope_field(self, name: str) -> float | None:
        """One number of rope_parameters or rope_scaling, None where it is absent."""
        given = self._rope_fields()
        return None if given.values.get(name) is None else given.number(name)

    @property
    def _newer(self) -> bool:
        return self.values.get("rope_parameters") not in (None, {})

    def _rope_fields(self) -> Fields:
        used, other = ("rope_parameters", "rope_scaling") if self._newer else ("rope_scaling", "rope_parameters")
        if self.values.get(other) in (None, {}):
            self.unused(other)
        return self.object(used, ROPE_DEFAULTS)

    def agrees_on_windows(self, spec: Decoder) -> None:
        """`layer_types` must name the plan's windowed layers."""
        kinds = {True: "full_attention", False: "sliding_attention"}
        self.agrees("layer_types", (kinds[layer.stored().window is None] for layer in spec.layers))

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Raise MalformedError naming every field that nobody has read, but for those in `ignore` or INERT."""
        super().finish({*ignore, *INERT})


def _linear(given: Fields) -> Scaling:
    return LinearScaling(factor=given.number("factor"))


def _llama3(given: Fields) -> Scaling:
    return Llama3Scaling(
        factor=given.number("factor"),
        original=given.integer("original_max_position_embeddings"),
        low=given.number("low_freq_factor"),
        high=given.number("high_freq_factor"),
    )


def _yarn(given: Fields) -> Scaling:
    factor, mscale = given.number("factor"), given.optional_number("mscale")
    all_dim, gain = given.optional_number("mscale_all_dim"), given.optional_number("attention_factor")
    if gain is None:
        gain = yarn_gain(factor, mscale) / yarn_gain(factor, all_dim) if mscale and all_dim else yarn_gain(factor)
    return YarnScaling(
        factor=factor,
        original=given.integer("original_max_position_embeddings"),
        gain=gain,
        fast=given.number("beta_fast"),
        slow=given.number("beta_slow"),
        truncate=given.flag("truncate"),
    )


SCALINGS: dict[str, Callable[[Fields], Scaling]] = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _scaling(given: Fields) -> Scaling | None:
    """rope_parameters or rope_scaling -> the scaling, None for type "default" or nothing."""
    kind = given.values.get("rope_type", given.values.get("type", "default"))
    if kind not in ("default", *SCALINGS):
        name = "rope_type" if "rope_type" in given.values else "type"
        raise given.wrong(f"{name}={brief(kind)} is unknown; known: default, {', '.join(SCALINGS)}")
    given.expect(rope_type=kind, type=kind)  # the newer and the older word for it
    if kind == "default":
        return None
    return SCALINGS[kind](given)


class FromHF(Protocol):
    """An architecture's `from_hf`: a published config -> its spec; and what it was made of."""

    model_types: tuple[str, ...]
    defaults: dict[str, Any]
    read: Callable[[Config], Decoder]

    def __call__(self, config: dict[str, Any], ignore_fields: Iterable[str] = ()) -> Decoder: ...


def reads(*model_types: str, **defaults: Any) -> Callable[[Callable[[Config], Decoder]], FromHF]:
    """Make `from_hf(config, ignore_fields=())` of a function that reads a Config.

    `model_types` are those it takes, a multimodal wrapper's among them; `defaults` the published values of fields that
    files leave out. Raises MalformedError for what the file gets wrong or this architecture does not understand.
    """

    def decorate(read: Callable[[Config], Decoder]) -> FromHF:
        def from_hf(config: dict[str, Any], ignore_fields: Iterable[str] = ()) -> Decoder:
            ignore = set(ignore_fields)
            fields = Config(text_part(config, ignore), defaults)
            if fields.model_type not in (None, *model_types):
                raise fields.wrong(f"model_type={brief(fields.model_type)} is not {' or '.join(model_types)}")
            try:
                spec = read(fields)
            except SpecError as error:
                raise MalformedError(f"config.json: {error}") from error
            fields.finish(ignore)
            return spec

        vars(from_hf).update(model_types=model_types, defaults=defaults, read=read)
        from_hf.__doc__ = f"A published config.json of model_type {' or '.join(model_types)} -> its spec."
        return from_hf  # type: ignore[return-value]

    return decorate


def text_part(config: dict[str, Any], ignore: Iterable[str] = ()) -> dict[str, Any]:
    """The language model's fields of a multimodal wrapper's config; any other config as it is."""
    if "text_config" not in config:
        return config
    wrapper = Config(config)
    if not isinstance(config["text_config"], dict):
        raise wrapper.wrong(f"text_config={brief(config['text_config'])} is no object")
    wrapper.unused("tie_word_embeddings", *VISION)
    wrapper.finish(ignore)
    shared = {name: value for name, value in config.items() if name == "tie_word_embeddings"}
    return shared | config["text_config"]
