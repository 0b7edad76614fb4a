"""One table with chosen columns, for a paper: one value per model and column. Some columns are for a given context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, about
from benchmarks.analytic.roofline import Device, forward_pass
from benchmarks.options import DeviceOptions, InferenceOptions, ModelOptions, flag
from benchmarks.output.report import Report, Row, Table, columns, named
from benchmarks.output.show import format_sequences, format_tokens, on_each, three, three_in, unit
from zoo.arguments import token_count
from zoo.cli.runner import emit
from zoo.cli.tables import Column, Format, render
from zoo.errors import UsageError, unknown
from zoo.model.decoder import Decoder


@dataclass(frozen=True)
class Conditions:
    """The conditions under which a model's quantities are computed. `context`: tokens, for quantities at a context."""

    model: NamedSpec
    config: InferenceConfig
    device: Device
    context: int = 0

    @property
    def spec(self) -> Decoder:
        """The model, or the first card's shard of it."""
        return self.config.part(self.model.spec)

    def speed(self, phase: str) -> float:
        """Returns the most tokens per second in a phase, over all sequences."""
        return forward_pass(self.model.spec, phase, self.context, self.config).tokens_per_s(self.device)


def in_unit(of: float, digits: int) -> Callable[[float], str]:
    """Returns a formatter in units of `of` with `digits` decimals, or three significant digits below `of`."""
    return lambda value: unit(of, digits)(value) if not value or value >= of else three(value / of)


@dataclass(frozen=True)
class Quantity:
    """A quantity: its value, its header and formatter in tables, and its meaning for the legend."""

    header: str
    meaning: str
    value: Callable[[Conditions], Any]
    show: Callable[[Any], str] = str
    at_context: bool = False


GB, GIB, MIB, KIB, BILLION = (in_unit(*each) for each in ((1e9, 2), (2**30, 2), (2**20, 1), (2**10, 1), (1e9, 3)))
QUANTITIES = {
    "released": Quantity("released", "month of release", lambda c: c.model.size and c.model.size.released),
    "layers": Quantity("layers", "number of layers", lambda c: len(c.spec.layers)),
    "dim": Quantity("dim", "width of the residual stream, elements", lambda c: c.spec.dim, unit(1, 0)),
    "vocab": Quantity("vocab", "token ids", lambda c: c.spec.vocab, unit(1, 0)),
    "context": Quantity("context", "tokens that the model was trained for", lambda c: c.spec.context, format_tokens),
    "params": Quantity("params\nB", "10^9 parameters, each stored value once", lambda c: c.spec.params(), BILLION),
    "active": Quantity("active\nB", "10^9 parameters that one token uses", lambda c: c.spec.active_params(), BILLION),
    "weights": Quantity("weights\nGB", "10^9 bytes of weights", lambda c: c.config.weights.model_bytes(c.spec), GB),
    "kv-fixed": Quantity(
        "KV fixed\nMiB",
        "2^20 bytes of one sequence's full windows and states",
        lambda c: c.spec.kv_growth(c.config.cache)[0],
        MIB,
    ),
    "kv/token": Quantity(
        "KV/token\nKiB",
        "2^10 bytes that each further token adds to one sequence's cache",
        lambda c: c.spec.kv_growth(c.config.cache)[1],
        KIB,
    ),
    "kv": Quantity(
        "KV {}\nGiB",
        "2^30 bytes of the cache of all sequences",
        lambda c: c.spec.kv_bytes(c.context, c.config.batch, c.config.cache),
        GIB,
        at_context=True,
    ),
    "flops": Quantity(
        "{}\nGFLOPs",
        "10^9 FLOPs of one decoded token that sees the context, itself included",
        lambda c: c.spec.flops(c.context - 1, 1),
        in_unit(1e9, 2),
        at_context=True,
    ),
    "prefill-flops": Quantity(
        "prefill {}\nTFLOPs",
        "10^12 FLOPs of one prompt, with the last token's logits",
        lambda c: c.spec.flops(0, c.context, logits=1),
        in_unit(1e12, 2),
        at_context=True,
    ),
    "tokens/s": Quantity(
        "{}\ntokens/s",
        "the most decoded tokens per second on the device, all sequences together",
        lambda c: c.speed("decode"),
        three_in(1),
        at_context=True,
    ),
    "prefill-tokens/s": Quantity(
        "prefill {}\ntokens/s",
        "the most prompt tokens per second on the device, all sequences together",
        lambda c: c.speed("prefill"),
        three_in(1),
        at_context=True,
    ),
}


@dataclass(frozen=True)
class ChosenColumn:
    """A column of the table. `name`: the user's text, such as kv@32k. `context`: 0 for a quantity without a context."""

    name: str
    quantity: Quantity
    context: int

    @property
    def header(self) -> str:
        """The header of the column."""
        return self.quantity.header.format(format_tokens(self.context))


DEFAULT = "params,active,kv@32k,kv@128k,flops@32k,tokens/s@32k"
HELP = f"Columns, separated by commas: {', '.join(name + '@32k' * q.at_context for name, q in QUANTITIES.items())}."


def command(
    *,
    columns: Annotated[str, typer.Option("--columns", metavar="LIST", help=HELP)] = DEFAULT,
    quiet: Annotated[bool, flag("Leave out the title and the notes.", "--quiet")] = False,
    inference: InferenceOptions,
    device: DeviceOptions,
    models: ModelOptions,
    report: Report,
) -> None:
    """One table with chosen columns, for a paper.

    CSV and JSON hold exact values in elements, bytes, FLOPs and tokens per second; CSV has only the chosen columns.

    \b
    python -m benchmarks table qwen3-8b gemma3-27b --columns params,kv@32k,kv@128k --batch 64 --format latex
    """
    chosen, on = parse_columns(columns), device.device()
    rows = [quantity_row(model, chosen, inference, on) for model in inference.divisible(models.chosen())]
    table = quantity_table(rows, chosen, inference, on, quiet)
    if report.format is Format.csv:
        shown = [Column("model", "model"), *(Column(each.name, each.name) for each in chosen)]
        emit(render([row | {"model": named(row)} | row["values"] for row in rows], shown, Format.csv), report.out)
        return
    report.add(table)


def parse_columns(text: str) -> list[ChosenColumn]:
    """Parses columns, separated by commas: params,kv@32k. Raises UsageError for an unknown column, for a column that
    lacks its context, and for a context on a column that takes none."""
    found: dict[str, ChosenColumn] = {}
    for word in filter(None, (part.strip().lower() for part in text.split(","))):
        name, at, context = word.partition("@")
        if name not in QUANTITIES:
            raise unknown("column", name, QUANTITIES)
        quantity = QUANTITIES[name]
        if quantity.at_context and not at:
            raise UsageError(f"the column {name} needs a context: {name}@32k")
        if at and not quantity.at_context:
            raise UsageError(f"the column {name} has no context: write {name}")
        found[word] = ChosenColumn(word, quantity, token_count(context, name, 1) if at else 0)
    if not found:
        raise UsageError(f"no column is named; known: {', '.join(QUANTITIES)}")
    return list(found.values())


def quantity_row(model: NamedSpec, chosen: Sequence[ChosenColumn], config: InferenceConfig, device: Device) -> Row:
    """Returns a model's row. Its `values` are {name of a column: value}."""
    config = config.of(model)
    conditions = ((each, Conditions(model, config, device, each.context)) for each in chosen)
    return {
        "table": "quantities",
        **about(model),
        **config.describe(),
        "weights_dtype": config.weights.name,
        "device": device.name,
        "values": {each.name: each.quantity.value(given) for each, given in conditions},
    }


def quantity_table(
    rows: Sequence[Row], chosen: Sequence[ChosenColumn], config: InferenceConfig, device: Device, quiet: bool
) -> Table:
    """Returns the table of the chosen columns; `quiet` leaves the title and the legend out."""
    shown = [*columns(model="model")]
    shown += [Column(each.name, each.header, each.quantity.show) for each in chosen]
    meanings = dict.fromkeys(f"{each.name.partition('@')[0]}: {each.quantity.meaning}." for each in chosen)
    conditions = (
        f"{format_sequences(config.batch)}; weights in {config.weights.name}, cache in {rows[0]['cache_dtype']}"
    )
    legend = [*meanings, f"{conditions}{on_each(config.tp)}; {device.name}. k is 1,024 tokens."]
    return Table("" if quiet else "Models", shown, [] if quiet else legend, rows, lambda row: row["values"], not quiet)
