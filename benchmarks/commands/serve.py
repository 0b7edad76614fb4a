"""Serving at a batch: tokens per second by the roofline, the largest batch that fits, and the limit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import typer

from benchmarks.analytic import roofline
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec
from benchmarks.analytic.serving import serve_row
from benchmarks.analytic.weight_forms import RELEASED, WeightForm
from benchmarks.options import Contexts, InferenceOptions, ModelOptions, dtype_option, weights_option
from benchmarks.output.estimates import estimate_tables
from benchmarks.output.report import Report, Rows, Table, columns
from benchmarks.output.show import format_tokens
from zoo.errors import UsageError
from zoo.units import format_count, parse_count

DEFAULT_CONTEXT, BATCHES = 32 * 1024, "1,8,64"
CACHES = (torch.bfloat16, torch.float8_e4m3fn)


@dataclass(frozen=True)
class ServingOptions:
    """The conditions of serving: batches, dtypes, and the cards that hold a model together."""

    device: Annotated[str, typer.Option(metavar="NAME", help=f"Card that serves: {', '.join(roofline.devices())}.")] = (
        "h100"
    )
    batch: Annotated[str, typer.Option(metavar="LIST", help="Numbers of sequences, separated by commas.")] = BATCHES
    weights: Annotated[
        WeightForm,
        weights_option("--dtype", help="Format of the weights: a dtype, released (as published) or 4-bit. [released]"),
    ] = RELEASED
    cache: Annotated[
        list[torch.dtype] | None,
        dtype_option("--cache-dtype", help="Dtype of the cache (repeatable). [bfloat16 and fp8]"),
    ] = None
    tp: Annotated[int, typer.Option("--tp", min=1, help="Number of cards that each model is split across.")] = 1
    ep: Annotated[int, typer.Option("--ep", min=1, help="1, or the value of --tp: whole experts on each card.")] = 1

    def configs(self) -> list[InferenceConfig]:
        """Returns the conditions for each dtype of the cache and each batch."""
        return [
            InferenceConfig(batch, self.weights, cache, self.tp, self.ep)
            for cache in self.cache or CACHES
            for batch in parse_batches(self.batch)
        ]


def parse_batches(text: str) -> list[int]:
    """Parses numbers of sequences, separated by commas: 1,8,64. Raises UsageError for other text."""
    try:
        found = [parse_count(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise UsageError(f"--batch: {error}") from error
    if not found:
        raise UsageError(f"--batch {text!r} names no number of sequences; write 1,8,64")
    return list(dict.fromkeys(found))


def command(*, context: Contexts = None, serving: ServingOptions, models: ModelOptions, report: Report) -> None:
    """Tokens per second of a batch, and the largest batch that fits.

    By the roofline of a card: a step reads the weights once and the cache of each sequence. A row is a ceiling.
    """
    device, configs = roofline.device(serving.device), serving.configs()
    chosen = InferenceOptions(tp=serving.tp, ep=serving.ep).divisible(models.chosen(estimated=True))
    found = list(tables(chosen, context or [DEFAULT_CONTEXT], configs, device))  # all, before any is printed
    report.add(*found)
    report.add(*estimate_tables(chosen, replace(configs[0], weights=InferenceConfig().weights)))


def tables(
    models: Sequence[NamedSpec], contexts: Sequence[int], configs: Sequence[InferenceConfig], device: roofline.Device
) -> Iterator[Table]:
    """Yields one table for each context and dtype of the cache."""
    for tokens in contexts:
        for cache in dict.fromkeys(config.cache for config in configs):
            rows = [
                serve_row(model, tokens, config, device)
                for model in models
                for config in configs
                if config.cache == cache
            ]
            yield _table(rows, device)


def _table(rows: Rows, device: roofline.Device) -> Table:
    first = rows[0]
    shown = [
        *columns(model="model", weights_dtype="weights"),
        *columns("{:,}".format, batch="batch"),
        *columns(format_count, sequence_tokens_per_s="each/s", device_tokens_per_s="card/s"),
        *columns(bound="bound"),
        *columns("{:,}".format, max_batch="max batch", crossover_context="crossover"),
    ]
    cards = f", {first['tp']} cards" if first["tp"] > 1 else ""
    legend = [
        f"{device.name}: {device.flops / 1e12:g} TFLOPS, {device.bandwidth / 1e9:,.0f} GB/s. {device.source}",
        "each/s: tokens per second of one sequence; card/s: of all sequences, for each card. Both are ceilings for "
        "these dtypes, without speculative decoding and without shared prefixes.",
        "bound: memory, if weights and caches do not fit; else what a step spends most time on: bandwidth, arithmetic "
        "or links.",
        "max batch: sequences of this context that fit beside the weights. crossover: context from which on a step "
        "reads more bytes of caches than of weights; empty: none.",
    ]
    title = f"Serving at {format_tokens(first['context'])}, cache in {first['cache_dtype']}{cards}"
    return Table(title, shown, legend, rows)
