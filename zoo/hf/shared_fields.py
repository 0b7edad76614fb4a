"""Reads the fields that many families' config.json share, each under any of its usual names.

It records which fields were read and what each meant, which questions they leave open, and which fields are not
understood. The strict reader of a known family is zoo/hf/config.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr as brief
from sys import float_info
from types import MappingProxyType
from typing import Any, TypeVar

from zoo.errors import MalformedError
from zoo.hf.fields import MAX_INTEGER, MAX_NAME_CHARACTERS, NEUTRAL, VISION, alike, is_inert

T = TypeVar("T")
TEXT_PARTS = ("text_config", "llm_config", "language_config")  # the language model in a multimodal config
MAX_DEPTH = 4  # of nested objects
# Fields that change a forward pass, but neither parameters, nor the cache, nor matrix products.
_WITHOUT_COST = re.compile(
    r"""(.*\.)?(
    partial_rotary_factor|rotary_(dim|pct|emb_base|percent)|.*rope_(theta|type|scaling|parameters|interleaved?|freqs)|
    rope_.*|mrope_.*|original_max_position_embeddings|initial_context_length|no_rope_.*|mla_use_nope|use_pos_enc|
    interpolate_factor|position_embedding_type|
    .*(multiplier|multipliers|_scale|_scaling|scaling_factor|softcapping|softcap)|scale_.*|logit_.*|logits_.*|
    query_pre_attn_scalar|attn_temperature_tuning|use_bidirectional_.*|swiglu_.*|mup_enabled|residual_in_fp32|
    .*(_eps|epsilon)|.*dropout.*|.*pdrop|normalization_function|
    .*_init.*|init_.*|rescale_.*|time_step_.*|mamba_dt_(min|max)|(mamba_)?chunk_size|mamba_hidden_act|
    norm_topk_prob|moe_renormalize|route_norm|.*(scoring_func|score_func|_method|activation_func)|use_routing_bias|
    n_group|.*(topk_group|expert_groups?|limited_groups)|use_grouped_.*|router_(aux|z|jitter).*|aux_.*|use_expert_bias|
    .*_dtype|use_.*_kernels?|output_(past|router_logits)|num_logits_to_keep|cache_implementation|auto_map|architectures|
    summary_.*|block_use_.*|.*\.(id2label|label2id)\..*|no_bias|use_associative_scan|predict_special_tokens|n_special|.*mtp.*|max_window_layers
    )""",
    re.VERBOSE,
)


class SharedFields:
    """The fields of a config.json, with the language model's part of a multimodal one.

    `choices` maps questions to the index of an answer other than the first, which is the best guess. `used` maps the
    path of every field that was read to its meaning; `questions` maps each question to its answers in words.
    """

    def __init__(self, config: Any, choices: Mapping[str, int] = MappingProxyType({})) -> None:
        if not isinstance(config, dict):
            raise MalformedError("config.json: must be an object")
        self.used: dict[str, str] = {}
        self.questions: dict[str, tuple[str, ...]] = {}
        self.notes: list[str] = []
        self._choices = choices
        self.values = dict(_flat(_text_part(config)))

    def error(self, message: str) -> MalformedError:
        """Returns an error about this config."""
        return MalformedError(f"config.json: {message}")

    def name_of(self, *names: str) -> str | None:
        """Returns the first of these names under which a field is present and not null."""
        return next((name for name in names if self.values.get(name) is not None), None)

    def raw(self, meaning: str, *names: str) -> Any:
        """Returns the value of the first of these fields that is present, of whatever type; None if none is."""
        name = self.name_of(*names)
        if name is None:
            return None
        value = self.values[name]
        self.used |= {each: meaning for each in names if each == name or alike(self.values.get(each), value)}
        return value

    def integer(self, meaning: str, *names: str, least: int = 1, most: int = MAX_INTEGER) -> int | None:
        """Returns an integer from `least` to `most`, or None if no such field is present. Raises MalformedError, with
        the field and its value, for any other value."""
        value = self.raw(meaning, *names)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.error(f"{self.name_of(*names)} must be an integer from {least} to {most}, got {brief(value)}")
        return value

    def of_layer(self, i: int, meaning: str, *names: str) -> int | None:
        """Returns an integer of layer i: from a field with one number for all layers, or with a list of them."""
        name = self.name_of(*names)
        listed = self.values.get(name or "")
        if name is None or not isinstance(listed, list):
            return self.integer(meaning, *names)
        self.used[name] = meaning
        value = listed[i] if i < len(listed) else None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_INTEGER:
            raise self.error(f"{name}[{i}] must be an integer from 1 to {MAX_INTEGER}, got {brief(value)}")
        return value

    def required(self, meaning: str, *names: str, most: int = MAX_INTEGER) -> int:
        """Returns an integer that no estimate can do without."""
        found = self.integer(meaning, *names, most=most)
        if found is None:
            raise self.error(
                f"{names[0]} is missing (also looked for {', '.join(names[1:])}): without the {meaning} nothing can "
                "be estimated"
            )
        return found

    def number(self, meaning: str, *names: str) -> float | None:
        """Returns a positive, finite number, or None if no such field is present."""
        value = self.raw(meaning, *names)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= float_info.max:
            raise self.error(f"{self.name_of(*names)} must be a positive number, got {brief(value)}")
        return float(value)

    def flag(self, meaning: str, *names: str) -> bool | None:
        """Returns True or False, or None if no such field is present."""
        value = self.raw(meaning, *names)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{self.name_of(*names)} must be true or false, got {brief(value)}")
        return value

    def listed(self, meaning: str, *names: str, length: int | None = None) -> list[Any] | None:
        """Returns a list, of `length` entries if that is given, or None if no such field is present."""
        value, name = self.raw(meaning, *names), self.name_of(*names)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(f"{name} must be a list, got {brief(value)}")
        if length is not None and len(value) != length:
            raise self.error(f"{name} has {len(value)} entries for {length} layers")
        return value

    def indices(self, meaning: str, *names: str, count: int, first: int = 0) -> set[int] | None:
        """Returns a list's layer numbers, counted from 0. In the file, they begin at `first`."""
        value = self.listed(meaning, *names)
        if value is None:
            return None
        wrong = [each for each in value if type(each) is not int or not first <= each < count + first]
        if wrong:
            raise self.error(f"{self.name_of(*names)} holds {brief(wrong[0])}, which is no number of a layer")
        return {each - first for each in value}

    def ask(self, question: str, answers: Sequence[tuple[str, T]]) -> T:
        """Returns the chosen answer to a question that the fields leave open: the first, unless `choices` names
        another. Each answer is (words, value)."""
        self.questions[question] = tuple(words for words, _ in answers)
        return answers[self._choices.get(question, 0)][1]

    def restated(self, meaning: str, *names: str) -> None:
        """Records fields that only repeat what another field says."""
        self.used |= {name: meaning for name in names if self.values.get(name) is not None}

    def note(self, sentence: str) -> None:
        """Records that a part was read as something else than it is."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def shown(self, *names: str) -> str:
        """Returns "name=value" for the first of these fields that is present."""
        name = self.name_of(*names) or names[0]
        return f"{name}={brief(self.values.get(name))}"

    def unread(self) -> list[tuple[str, str]]:
        """Returns (path, value) for each field that was not read and may change a cost. Values are shortened."""
        neutral = {name for name, off in NEUTRAL.items() if self.values.get(name) == off}
        return [
            (path if path.isprintable() and len(path) <= MAX_NAME_CHARACTERS else brief(path), brief(value))
            for path, value in self.values.items()
            if path not in self.used and not is_without_cost(path) and path not in neutral
            if value not in (None, False, [], {})
        ]


def is_without_cost(path: str) -> bool:
    """Whether a field, by its path, is known to change no parameters, no cache and no matrix products."""
    top, last = path.partition(".")[0], path.rpartition(".")[2]
    named = any(is_inert(name) or name in VISION for name in (top, last))
    return named or any(map(_WITHOUT_COST.fullmatch, (path, top)))


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    part = next((config[name] for name in TEXT_PARTS if isinstance(config.get(name), dict)), config)
    tied = config.get("tie_word_embeddings")
    return part if part.get("tie_word_embeddings") is not None or tied is None else part | {"tie_word_embeddings": tied}


def _flat(values: dict[str, Any], path: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) for every field; the fields of an object have a dot in their path."""
    for name, value in values.items():
        if isinstance(value, dict) and value and depth < MAX_DEPTH:
            yield from _flat(value, f"{path}{name}.", depth + 1)
        else:
            yield f"{path}{name}", value
