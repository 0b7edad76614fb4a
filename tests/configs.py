"""Published config.json files in the forms they come in: older and newer spelling, alone or in a multimodal wrapper."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from typing import Any

import zoo
from tests.families import FAMILIES
from tests.reference import family_of, published
from zoo.hf.config import PARTIAL

# model_type of the text part -> model_type of the wrapper around it.
WRAPPERS = {text: wrapper for family in FAMILIES.values() for text, wrapper in family.wrappers.items()}


def smallest() -> list[str]:
    """The smallest published size of each model_type."""
    by_size = sorted(published(), key=lambda name: published()[name]["total_parameters"], reverse=True)
    return list({published()[name]["config"]["model_type"]: name for name in by_size}.values())


def rotary() -> list[str]:
    """The sizes in `smallest` that have a rotary encoding."""
    return [name for name in smallest() if any(isinstance(part, zoo.RoPE) for part in zoo.spec(name).walk())]


def older_rotary() -> list[str]:
    """The sizes in `rotary` whose published rope fields have an older spelling."""
    return [name for name in rotary() if "rope_parameters" not in older(name)]


@cache
def partly_rotary() -> list[str]:
    """The sizes in `smallest` whose family may rotate a part of each head: the reference writes the part. In latent
    attention it follows from the widths."""
    given = [name for name in older_rotary() if PARTIAL in newer(name)["rope_parameters"]]
    return [name for name in given if "qk_rope_head_dim" not in older(name)]


def reads_share() -> list[str]:
    """The sizes in `smallest` that read the rotated share of a head: `partly_rotary`, and DeepSeek-V4, whose files have
    the rotated width instead."""
    return [*partly_rotary(), *(name for name in smallest() if "compress_rope_theta" in older(name))]


def own(name: str, field: str) -> str:
    """Returns the name of a config field in the family of a preset, for its usual name."""
    return family_of(name).names.get(field, field)


def settled(name: str) -> set[str]:
    """Config fields of a preset's family whose values follow from other fields."""
    return set(family_of(name).settled)


def wrapped_names() -> list[str]:
    """The sizes whose text model is also published inside a multimodal model."""
    return [name for name, facts in published().items() if facts["config"]["model_type"] in WRAPPERS]


def older(name: str, **changes: Any) -> dict[str, Any]:
    """A preset's config as published, with some fields set. What newer files hold in an unscaled rope_parameters is
    beside them."""
    config = deepcopy(published()[name]["config"])
    rope = config.get("rope_parameters") or {}
    if rope.keys() <= {"rope_theta", "rope_type", PARTIAL} and rope.get("rope_type", "default") == "default":
        config |= {field: held for field, held in rope.items() if field != "rope_type"}
        config.pop("rope_parameters", None)
    return config | changes


def newer(name: str, **changes: Any) -> dict[str, Any]:
    """A preset's config as transformers 5 writes it: one rope_parameters, defaults filled in, derived fields beside
    them."""
    return json.loads(_newer(name)) | changes


@cache
def _newer(name: str) -> str:
    from transformers import AutoConfig

    return AutoConfig.for_model(**older(name)).to_json_string()


def wrapped(text: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A multimodal model's config with this one as its text part."""
    return {"model_type": WRAPPERS[text["model_type"]], "text_config": deepcopy(text), "vision_config": {}} | changes
