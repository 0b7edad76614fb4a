"""FLOPs by part, and the ceilings on prefill and decode speed that a device sets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec
from benchmarks.analytic.params import FFN_PARTS, ffn_cells
from benchmarks.analytic.roofline import PHASES, Device, flop_row
from benchmarks.options import Contexts, DeviceOptions, InferenceOptions, ModelOptions
from benchmarks.output.estimates import estimate_tables
from benchmarks.output.report import Report, Row, Rows, Table, columns, columns_in_use, named
from benchmarks.output.show import format_tokens, on_each, three, three_in, unless_zero
from zoo.units import format_count

DEFAULT_CONTEXT = 4096


def command(
    *,
    context: Contexts = None,
    inference: InferenceOptions,
    peak: DeviceOptions,
    models: ModelOptions,
    report: Report,
) -> None:
    """FLOPs by part, and the ceiling on tokens per second on a device.

    The ceiling is the roofline of the device that --device-spec names, or that --bandwidth and --flops describe.
    """
    chosen, device = inference.divisible(models.chosen(estimated=True)), peak.device()
    for tokens in context or [DEFAULT_CONTEXT]:
        report.add(*tables(chosen, tokens, inference, device))
    report.add(*estimate_tables(chosen, inference))


def tables(models: Sequence[NamedSpec], context: int, config: InferenceConfig, device: Device) -> Iterator[Table]:
    """Yields the tables of FLOPs by part in both phases, of savings by masking, and of ceilings, at one context."""
    decode, prefill = ([flop_row(model, phase, context, config, device) for model in models] for phase in PHASES)
    at, batch = format_tokens(context), config.batch
    each = ("" if batch == 1 else f", for each of {batch} sequences") + on_each(config.tp)
    for title, phase, unit in (
        (f"Decode at {at}: GFLOPs of one token{each}", decode, 1e9 * batch),
        (f"Prefill of {at} tokens: TFLOPs{each}", prefill, 1e12 * batch),
    ):
        yield _parts(title, phase, unit)
        if sparse := [row for row in phase if row["routed_flops"]]:
            yield _experts(sparse, unit)
    yield _masking(f"Prefill of {at} tokens, causal and full square{on_each(config.tp)}", prefill, 1e12 * batch)
    yield _ceilings(decode, prefill, device)


def _parts(title: str, rows: Rows, unit: float) -> Table:
    show = unless_zero(three_in(unit))
    attn = columns(show, projections_flops="projections", all_scores="scores")
    attn += columns_in_use(rows, show, indexer_flops="indexer")
    others = columns(show, all_ffn_flops="ffn")
    others += columns_in_use(rows, show, inputs_flops="inputs", streams_flops="streams")
    others += columns(show, head_flops="head", other_flops="other", flops="total")
    legend = [
        "2 FLOPs per multiply-add of all matrix products; masked pairs are not counted.",
        "projections: those of attention. scores: products of queries and keys, also compressed keys, and weighted "
        "sums of values. ffn: dense layers, experts and routers. inputs: per-layer inputs. streams: mixing of several "
        "residual streams. head: logits of one token.",
    ]
    ffn = ffn_cells("flops")

    def cells(row: Row) -> Row:
        return ffn(row) | {"all_scores": row["scores_flops"] + row["entries_flops"]}

    return Table(title, [*columns(model="model"), *attn, *others], legend, rows, cells)


def _experts(rows: Rows, unit: float) -> Table:
    headers = {f"{part}_flops": part for part in FFN_PARTS}
    legend = ["ffn: dense layers. routed: the experts that a token is routed to. shared: the expert of every token."]
    shown = [*columns(model="model"), *columns(unless_zero(three_in(unit)), **headers)]
    return Table("Parts of ffn in mixtures of experts, in the same unit", shown, legend, rows)


def _masking(title: str, rows: Rows, unit: float) -> Table:
    shown = [
        *columns(model="model"),
        *columns(three_in(unit), flops="causal TFLOPs", full_square_flops="full square"),
        *columns("{:+.1%}".format, more="more"),
    ]
    legend = [
        "causal: each token sees itself and those before it, or its window. full square: every pair of tokens that a "
        "masked dense kernel computes, as torch counts."
    ]
    return Table(title, shown, legend, rows, lambda row: {"more": row["full_square_flops"] / row["flops"] - 1})


def _ceilings(decode: Rows, prefill: Rows, device: Device) -> Table:
    first, prefill_of = decode[0], dict(zip(map(id, decode), prefill, strict=True))
    tp = first["tp"]
    last = columns(three, flops_per_byte="FLOP/B") if tp == 1 else columns("{:.0%}".format, sending="sending")
    shown = [
        *columns(model="model"),
        *columns(format_count, tokens_per_s="decode/s"),
        *columns(bound="bound"),
        *last,
        *columns(format_count, prefill_tokens_per_s="prefill/s"),
        *columns(prefill_bound="bound"),
        *(replace(column, key=f"prefill_{column.key}") for column in last),
    ]
    large = [named(row) for row in decode if row["fits"] is False]
    legend = [
        f"{device.name}: {device.flops / 1e12:g} TFLOPS, {device.bandwidth / 1e9:,.0f} GB/s. {device.source}",
        f"decode/s, prefill/s: tokens per second over all sequences (batch {first['batch']}) that no implementation "
        "can exceed: the longer of FLOPs / rate and bytes / bandwidth.",
        f"Bytes: weights ({first['weights_dtype']}) without unused rows of the embedding and experts that no token is "
        f"expected to hit, and the cache ({first['cache_dtype']}).",
        ("FLOP/B: FLOPs per byte. " if tp == 1 else "") + "bound: the limit, memory or compute: compute "
        f"above {three(device.flops / device.bandwidth)} {'FLOP/B' if tp == 1 else 'FLOPs per byte'}.",
        *_of_several(first, device),
        *([f"Too large for {'one' if tp == 1 else tp}: {', '.join(large)}."] if large else []),
    ]

    def of_prefill(row: Row) -> Row:
        keys = ("tokens_per_s", "bound", "flops_per_byte")
        other = prefill_of[id(row)]
        shares = {"sending": row, "prefill_sending": other}
        shown = {name: each["sending_seconds"] / each["seconds"] for name, each in shares.items()}
        return {f"prefill_{key}": other[key] for key in keys} | shown

    title = f"Ceilings at {format_tokens(first['context'])}, batch {first['batch']}" + (f", {tp} cards" * (tp > 1))
    return Table(title, shown, legend, decode, of_prefill)


def _of_several(row: Row, device: Device) -> list[str]:
    """Returns the legend's lines on the traffic between cards; an empty list for one card."""
    tp, link = row["tp"], device.link
    if tp == 1:
        return []
    speed = f"{link / 1e9:g} GB/s per card" if link else "unknown (--link), so sending is left out"
    return [
        f"{tp} cards hold a model together (tensor parallel) and add up their partial sums over a ring; link: "
        f"{speed}. sending: its share of the least time; the latency of messages is not counted."
    ]
