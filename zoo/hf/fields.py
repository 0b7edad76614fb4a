"""Reads a JSON object strictly: the type of every field is checked, and an unread field is an error.

This file also lists the fields of config.json that do not change a forward pass. No forward pass of the reference reads
them, for any of the model types; a slow test sets each field on the reference and compares logits. There are two kinds:

- INERT: has no effect, whatever its value.
- NEUTRAL: turns a feature on or off. The value for "off" has no effect; any other value is an error.

Other fields are errors unless they are read. Among them are fields of `rope_scaling`, windows and chunks of attention,
and a top-level `original_max_position_embeddings`, which overrides the one in `rope_scaling`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from reprlib import repr as brief
from sys import float_info
from typing import Any, get_type_hints

from zoo.errors import MalformedError, enough
from zoo.registry import Spec

MAX_INTEGER = 2**31 - 1  # a larger size must be an error in the file
MAX_NAME_CHARACTERS = 200  # longer names are shortened in errors
_ABSENT = object()


# Training, including dropout.
TRAINING = """
    attention_dropout attn_pdrop aux_loss_alpha classifier_dropout embd_pdrop ep_size gradient_checkpointing
    hidden_dropout hidden_dropout_prob initializer_range neftune_noise_alpha num_mtp_layers num_nextn_predict_layers
    output_router_logits pretraining_tp resid_pdrop residual_dropout router_aux_loss_coef seq_aux
"""
# Sampling. The reference drops these fields from a config, or keeps them in generation_config.json.
SAMPLING = """
    assistant_confidence_threshold assistant_early_exit assistant_lookbehind bad_words_ids begin_suppress_tokens
    cache_config cache_implementation constraints diversity_penalty disable_compile do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids guidance_scale is_assistant length_penalty low_memory
    max_length max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p no_repeat_ngram_size
    num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences
    output_logits output_scores penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values
    renormalize_logits repetition_penalty return_dict_in_generate sequence_bias stop_strings suppress_tokens
    target_lookbehind temperature token_healing top_h top_k top_p typical_p use_mtp watermarking_config
"""
# Labels of a classifier (no supported class is one), and the task of a fine-tuned model.
LABELS = "_num_labels finetuning_task id2label label2id num_labels prefix problem_type task_specific_params"
# The tokenizer and its lengths. PATTERNS has the ids of tokens.
TOKENIZER = """
    bos_token chat_template cls_token eos_token mask_token max_sequence_length model_max_length pad_token
    processor_class sep_token tokenizer_class tokenizer_model_max_length tokenizer_padding_side unk_token
"""
# The outputs that a call returns, and the kernels that compute them.
EXECUTION = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _experts_implementation
    _experts_implementation_internal _flash_attn_2_enabled _output_attentions attn_implementation
    chunk_size_feed_forward experts_implementation output_attentions output_hidden_states return_dict tf_legacy_loss
    tie_last_hidden_states torchscript use_bfloat16 use_cache use_flash_attention use_flash_attention_2 use_flash_attn
"""
# Storage of the weights, which the package `weights` reads, and the library or tool that wrote the file.
STORAGE = """
    _commit_hash _name_or_path compression_config dtype is_llama_config model_type name_or_path quantization
    quantization_config torch_dtype transformers.js_config transformers_version
"""
INERT = frozenset(" ".join((TRAINING, SAMPLING, LABELS, TOKENIZER, EXECUTION, STORAGE)).split())
# Inert names by pattern: ids of tokens, and fields that Unsloth adds. `experts_per_token` is not inert.
PATTERNS = (r"[a-z0-9_]+_token_(id|ids|index)", r"unsloth_[a-z0-9_]+")
_PATTERN = re.compile("|".join(PATTERNS))

# Features that no architecture here has, each with its value for "off".
NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "is_causal": True,  # if false, the reference omits the causal mask
    "is_decoder": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,  # the share of a head's width that is rotated
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}

# Fields of a multimodal wrapper. Its text part is read; its vision part is not built.
VISION = frozenset(
    """
    audio_config mm_tokens_per_image multimodal_projector_bias projector_hidden_act spatial_merge_size text_config
    vision_config vision_feature_layer
    """.split()
)


def is_inert(name: str) -> bool:
    """Whether the field has no effect on a forward pass, whatever its value."""
    return name in INERT or _PATTERN.fullmatch(name) is not None


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal and neither or both are bools (1 and True are not alike)."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


class Fields:
    """The fields of an object in config.json, each read by name. `finish` checks that all were read.

    `defaults` are the values of absent fields. `where` is the path to the object: "", "rope_scaling.", ... If a
    required field is missing or has a wrong type, methods raise MalformedError with its name and value.
    """

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any] | None = None, where: str = "") -> None:
        self.values, self.defaults, self.where = values, defaults or {}, where
        self.read: set[str] = set()
        self.inner: dict[str, Fields] = {}
        self.off: dict[str, Any] = {}

    def error(self, message: str) -> MalformedError:
        """Returns an error with the path to this object."""
        return MalformedError(f"config.json: {self.where}{message}")

    def get(self, name: str) -> Any:
        """Returns the value of a field, or its default."""
        self.read.add(name)
        value = self.values.get(name, self.defaults.get(name, _ABSENT))
        if value is _ABSENT:
            raise self.error(f"{name} is missing, and has no default")
        return value

    def _typed(self, name: str, wanted: str, types: Any, most: float, is_zero_allowed: bool = False) -> Any:
        value = self.get(name)
        least = 0 if is_zero_allowed else float_info.min
        if not isinstance(value, types) or isinstance(value, bool) or not least <= value <= most:
            raise self.error(f"{name} must be {wanted}, got {brief(value)}")
        return value

    def integer(self, name: str, most: int = MAX_INTEGER) -> int:
        """Returns an integer from 1 to `most`."""
        return int(self._typed(name, f"an integer from 1 to {most}", int, most))

    def count(self, name: str, most: int = MAX_INTEGER) -> int:
        """Returns an integer from 0 to `most`."""
        return int(self._typed(name, f"an integer from 0 to {most}", int, most, is_zero_allowed=True))

    def integers(self, **names: str) -> dict[str, int]:
        """Returns integers under the zoo's names: integers(kv_rank="kv_lora_rank") -> {"kv_rank": ...}."""
        return {field: self.integer(name) for field, name in names.items()}

    def typed(self, kind: type[Spec], **names: str) -> dict[str, Any]:
        """Returns keyword arguments for a kind of spec. Each is read from a field of this config, which must have the
        type that the kind declares: typed(MLA, kv_rank="kv_lora_rank") returns {"kv_rank": 512} for DeepSeek-V3."""
        readers: dict[Any, Callable[[str], Any]] = {int: self.integer, float: self.number, bool: self.flag}
        readers |= {int | None: self.optional, tuple[float, ...]: self.numbers}
        hints = get_type_hints(kind)
        return {field: readers[hints[field]](name) for field, name in names.items()}

    def number(self, name: str) -> float:
        """Returns a positive, finite number."""
        return float(self._typed(name, "a positive number", int | float, float_info.max))

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a list of positive, finite numbers."""
        value = self.get(name)
        if not isinstance(value, list) or not value:
            raise self.error(f"{name} must be a list of positive numbers, got {brief(value)}")
        each = Fields({f"{name}[{i}]": item for i, item in enumerate(value)}, where=self.where)
        return tuple(map(each.number, each.values))

    def optional(self, name: str) -> int | None:
        """Returns a positive integer, or None if the field is null."""
        return None if self.get(name) is None else self.integer(name)

    def optional_number(self, name: str) -> float | None:
        """Returns a positive, finite number, or None if the field is null."""
        return None if self.get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """Returns True or False."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false, got {brief(value)}")
        return value

    def object(self, name: str, defaults: dict[str, Any] | None = None) -> Fields:
        """Returns the fields of a nested object, whose fields have these `defaults`. If it is absent, null or empty,
        its own default in `self.defaults` is read. `finish` also checks the nested object."""
        self.read.add(name)
        if name not in self.inner:
            value = self.values.get(name)
            if not isinstance(value, dict | None):
                raise self.error(f"{name} must be an object, got {brief(value)}")
            self.inner[name] = Fields(value or self.defaults.get(name) or {}, defaults, f"{self.where}{name}.")
        return self.inner[name]

    def spelled(self, *names: str) -> str:
        """Returns the name under which a field is present: the first of `names` that is not null, or else the first
        one. Other names must be absent or have the same value, or `finish` raises an error."""
        used = next((name for name in names if self.values.get(name) is not None), names[0])
        self.unused(*(name for name in names if alike(self.values.get(name), self.values.get(used))))
        return used

    def expect(self, **only: Any) -> None:
        """Checks fields that have a single supported value. An absent one has its default, or else that value."""
        for name, value in only.items():
            self.read.add(name)
            if (given := self.values.get(name, self.defaults.get(name, value))) != value:
                source = "" if name in self.values else " (its default)"
                raise self.error(f"{name}={brief(given)}{source} is not supported, only {value!r}")

    def neutral(self, **off: Any) -> None:
        """Reads fields of unsupported features, given with their values for "off". `finish` refuses any other value."""
        self.off |= off
        self.read.update(name for name, value in off.items() if alike(self.values.get(name, value), value))

    def agrees(self, name: str, layers: Iterable[Any]) -> None:
        """Checks that a list with one entry per layer equals `layers`. The field may be absent."""
        expected = list(layers)
        for i, (given, only) in enumerate(zip(self._per_layer(name, expected), expected, strict=True)):
            if given != only:
                raise self.error(f"{name}[{i}]={brief(given)} is not supported, only {only!r} in this architecture")

    def plan(self, name: str, kinds: Collection[str], default: Sequence[str]) -> list[str]:
        """Returns a field's list, which holds one of `kinds` for each layer. If the field is absent or null, returns
        `default`, which also has one entry per layer."""
        given = self._per_layer(name, default)
        for i, kind in enumerate(given):
            if kind not in tuple(kinds):
                raise self.error(f"{name}[{i}]={brief(kind)} is unknown; known: {', '.join(kinds)}")
        return given

    def _per_layer(self, name: str, default: Sequence[Any]) -> list[Any]:
        """Returns a field's list with one entry per layer, or `default` if the field is absent or null."""
        given = self.values.get(name)
        self.read.add(name)
        if given is None:
            return list(default)
        if not isinstance(given, list):
            raise self.error(f"{name} must be a list, got {brief(given)}")
        if len(given) != len(default):
            raise self.error(f"{name} has {len(given)} entries for {len(default)} layers")
        return given

    def unused(self, *names: str) -> None:
        """Marks fields as read that have no effect, given the values of other fields."""
        self.read.update(names)

    def left(self) -> Iterator[tuple[str, str]]:
        """Yields (path, "path=value") for every field that was not read. A null field counts as absent."""
        for name, value in self.values.items():
            if name not in self.read and value is not None:
                path = self.where + (name if name.isprintable() and len(name) <= MAX_NAME_CHARACTERS else brief(name))
                only = f" (only {self.off[name]!r} is)" if name in self.off else ""
                yield path, f"{path}={brief(value)}{only}"
        for inner in self.inner.values():
            yield from inner.left()

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Raises MalformedError that names every unread field, except those in `ignore`."""
        ignore = set(ignore)
        left = [shown for path, shown in self.left() if path not in ignore]
        if left:
            advice = "pass --ignore-field NAME (ignore_fields=) to ignore one"
            raise MalformedError(f"config.json: not understood: {enough(left)}; {advice}")
