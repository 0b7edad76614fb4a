"""Settings of generation that are published with weights: generation_config.json, and the fields of a .gguf file."""

import logging
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from zoo.errors import MalformedError
from zoo.model.sampling import GenerationConfig

SAMPLING = ("temperature", "top_k", "top_p")
# Settings that change the generated tokens but are not applied here -> the value that turns each one off.
NOT_APPLIED = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0, "num_beams": 1}
log = logging.getLogger(__name__)


def generation_config(settings: Mapping[str, Any], where: Path) -> GenerationConfig:
    """Returns the settings of a generation_config.json. Raises MalformedError for a value of the wrong type.

    An absent sampling setting is off. `do_sample: false` turns sampling off, whatever the other settings are.
    """
    ids = settings.get("eos_token_id")
    stop = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(each) is int and each >= 0 for each in stop):
        raise MalformedError(f"{where}: eos_token_id must be a token id or a list of them, got {brief(ids)}")
    found = {name: _number(settings, name, where) for name in SAMPLING}
    samples = settings.get("do_sample")
    if samples is None:
        samples = any(value is not None for value in found.values())
    for name, off in NOT_APPLIED.items():
        if settings.get(name) not in (None, off):
            log.info("%s: %s=%s is not applied", where.name, name, brief(settings[name]))
    temperature, top_k, top_p = found.values()
    if samples is not True or temperature == 0:
        return GenerationConfig(tuple(stop))
    return GenerationConfig(
        tuple(stop),
        1.0 if temperature is None else float(temperature),
        int(top_k) if top_k is not None and top_k >= 1 else None,
        top_p if top_p is not None and 0 < top_p < 1 else None,
    )


def generation_fields(config: GenerationConfig) -> dict[str, Any]:
    """Returns the fields of generation_config.json for these settings: the inverse of `generation_config`."""
    fields: dict[str, Any] = {"eos_token_id": list(config.stop)} if config.stop else {}
    if config.temperature:
        given = {name: value for name, value in config.sampling.items() if value is not None}
        fields |= {"do_sample": True, **given}
    return fields


def _number(settings: Mapping[str, Any], name: str, where: Path) -> Any:
    value, least = settings.get(name), 0 if name == "temperature" else -1  # some files write -1 for off
    if value is None or (type(value) in (int, float) and isfinite(value) and value >= least):
        return value
    raise MalformedError(f"{where}: {name} must be a number of at least {least}, got {brief(value)}")
