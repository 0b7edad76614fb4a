"""Rows about serving at a batch: the most tokens per second, the limit, and the largest batch that fits.

A step decodes one token of every sequence. It reads the weights once and each sequence's cache, and touches the experts
that the batch is expected to hit. Nothing is fitted to measurements: a row is a ceiling for these dtypes, without
speculative decoding and without prefixes that sequences share.
"""

from benchmarks.analytic.kv import InferenceConfig, longest, pieces
from benchmarks.analytic.models import NamedSpec, about
from benchmarks.analytic.roofline import Device, forward_pass
from zoo.cli.tables import Row
from zoo.errors import UsageError


def serve_row(model: NamedSpec, context: int, config: InferenceConfig, device: Device) -> Row:
    """Returns the row of a model at a context and batch on `config.tp` cards of a device.

    `bound` is "memory" if weights and caches do not fit, else the longest of the terms of a step: "bandwidth",
    "arithmetic" or "links". From `crossover_context` on, a step reads more bytes of caches than of weights. Raises
    UsageError for a context beyond the model's.
    """
    config = config.of(model)
    spec, most = config.part(model.spec), model.spec.context
    if most is not None and context > most:
        raise UsageError(f"--context {context} is beyond {model.label}'s context of {most} tokens")
    work = forward_pass(model.spec, "decode", context, config)
    seconds, stored = work.seconds(device), config.weights.model_bytes(spec)
    terms = {
        "bandwidth": (work.weight_bytes + work.kv_bytes) / device.bandwidth,
        "arithmetic": work.flops / device.flops,
        "links": work.sending(device),
    }
    fits = None if device.memory is None else stored + work.kv_bytes <= device.memory
    crossing = longest(pieces(spec, config.cache), int(work.weight_bytes / config.batch))
    return {
        "table": "serve",
        **about(model),
        "context": context,
        **config.describe(),
        "weights_dtype": config.weights.name,
        "device": device.name,
        "weight_bytes": stored,
        "kv_bytes": work.kv_bytes,
        "step_s": seconds,
        "sequence_tokens_per_s": 1 / seconds,
        "device_tokens_per_s": config.batch / seconds / config.tp,
        "bound": "memory" if fits is False else max(terms, key=terms.__getitem__),
        "max_batch": _max_batch(model, context, config, device),
        "crossover_context": None if crossing is None else crossing + 1,
    }


def _max_batch(model: NamedSpec, context: int, config: InferenceConfig, device: Device) -> int | None:
    """Returns the largest number of sequences whose caches fit beside the weights; None if the memory is unknown."""
    if device.memory is None:
        return None
    spec = config.part(model.spec)
    free = device.memory - config.weights.model_bytes(spec)
    two = spec.kv_bytes(context, 2, config.cache)  # of two: half a byte of one is not rounded
    return max(0, int(free * 2 // two))
