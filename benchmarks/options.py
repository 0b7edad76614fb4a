"""Options that the verbs of the command line share, in groups, and the parsers of their values.

A verb's `command` takes a group as one parameter, annotated with the group's class. `with_groups` turns `command` into
the function that typer needs, with one parameter for each field of the group.
"""

import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, is_dataclass, replace
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import torch
import typer

from benchmarks.analytic import roofline
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, chosen, representatives
from benchmarks.analytic.selection import Found, every_size, matching, one_each, smallest_each
from benchmarks.analytic.weight_forms import BFLOAT16, FOUR_BIT, PLAIN, RELEASED, WeightForm
from zoo.arguments import find_dtype
from zoo.cli.runner import Imports
from zoo.errors import IndivisibleError, SpecError, UsageError
from zoo.units import dtype_name, parse_count, parse_month, parse_tokens

BYTES = {"": 10**9, "gib": 2**30, "mib": 2**20, "tib": 2**40, "gb": 10**9, "mb": 10**6, "tb": 10**12}
FORMS = (RELEASED.name, FOUR_BIT.name, *(form.name for form in PLAIN.values()))
COMPUTING = ("float32", "bfloat16", "float16")


def parse_context(text: str) -> int:
    """Parses a number of tokens above 0: 4096, 32k (k is 1,024), 1M."""
    if not (tokens := parse_tokens(text)):
        raise ValueError(f"{text!r} is not a number of tokens; write 4096 or 4k")
    return tokens


def parse_memory(text: str) -> int:
    """Parses bytes: 24GB, 80GiB. A number without a unit is in GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in BYTES or not float(match[1]):
        raise ValueError(f"{text!r} is not an amount of memory; write 24GB or 80GiB")
    return int(float(match[1]) * BYTES[match[2]])


def parse_computing_dtype(text: str) -> torch.dtype:
    """Parses a dtype in which layers can compute."""
    found = find_dtype(text)
    if dtype_name(found) not in COMPUTING:
        raise ValueError(f"{text!r} is for storing only; choose {', '.join(COMPUTING)}")
    return found


def parse_weights(text: str) -> WeightForm:
    """Parses a format of weights: a dtype, released or 4-bit."""
    word = text.lower()
    if word in ("4bit", FOUR_BIT.name):
        return FOUR_BIT
    if word == RELEASED.name:
        return RELEASED
    dtype = find_dtype(text)
    if dtype not in PLAIN:
        raise ValueError(f"{text!r} is not a format of weights; choose {', '.join(FORMS)}")
    return PLAIN[dtype]


def parsed_option(parse: Callable[[str], Any], metavar: str, **fixed: Any) -> partial[Any]:
    """Returns `typer.Option` for values that `parse` reads. A default that is not a string is used unchanged."""

    def read(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return partial(typer.Option, parser=read, metavar=metavar, **fixed)


tokens_option = parsed_option(parse_context, "TOKENS")
tokens_or_none_option = parsed_option(parse_tokens, "TOKENS")
# The help texts of these options state the default: typer would show it as torch.float32 or in bytes.
count_option = parsed_option(parse_count, "COUNT", show_default=False)
weights_option = parsed_option(parse_weights, "FORMAT", show_default=False)
dtype_option = parsed_option(find_dtype, "DTYPE", show_default=False)
computing_dtype_option = partial(parsed_option(parse_computing_dtype, "DTYPE", show_default=False), "--dtype")
memory_option = parsed_option(parse_memory, "SIZE", show_default=False)
month_option = parsed_option(parse_month, "MONTH")


def flag(help: str, *names: str) -> Any:
    """Returns an option without a value. Its name must be given: typer would otherwise add a --no-... variant."""
    return typer.Option(*names, help=help)


Strings = list[str] | None
Contexts = Annotated[list[int] | None, tokens_option("--context", help="Context length: 4096 or 32k (repeatable).")]
ComputingType = Annotated[torch.dtype, computing_dtype_option(help="Dtype of weights and cache. [float32]")]
MEMORY = 80 * 10**9  # bytes
Memory = Annotated[int, memory_option(help="Memory of the card: 24GB, 80GiB. [80GB]")]
Repeat = Annotated[int, typer.Option("--repeat", "-r", min=1, help="Number of timed runs of each model.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the random weights and inputs.")]
IgnoreField = Annotated[
    Strings, typer.Option(metavar="NAME", help="Field to ignore in a folder's config.json (repeatable).")
]
Tiny = Annotated[bool, flag("Use toy widths; every kind of layer is kept.", "--tiny")]
Layers = Annotated[
    int | None,
    typer.Option(min=1, help="Number of layers to keep: the first of each kind, then the first of the others."),
]


@dataclass(frozen=True)
class SwapOptions:
    """Options that change the named models or the parsing of their configs."""

    swap: Annotated[
        Strings,
        typer.Option(
            metavar="CHANGE", help="Also show each model with this change: 'GQA(window=512)', norm=olmo (repeatable)."
        ),
    ] = None
    ignore_field: IgnoreField = None
    import_: Imports = None


@dataclass(frozen=True)
class ModelOptions(SwapOptions):
    """Options that select the models for a verb."""

    names: Annotated[
        Strings,
        typer.Argument(
            help="Presets, families (all their sizes), hub ids, folders, .gguf files, spec.json, or FILE.py:NAME, "
            "which is executed. Default: the best-known size of each family, in order of release."
        ),
    ] = None
    all_sizes: Annotated[bool, flag("Show every published size of every family.", "--all-sizes")] = False
    since: Annotated[str | None, month_option(help="Only sizes released in this month or later: 2025-06.")] = None
    with_: Annotated[
        Strings,
        typer.Option(
            "--with",
            metavar="BLOCK",
            help="Only sizes with this block: MLA, MoE, QK-norm, ... as in zoo.build --list (repeatable).",
        ),
    ] = None

    def chosen(self, estimated: bool = False) -> list[NamedSpec]:
        """Returns the named models; a family means all its sizes. Without names, the other options select models.
        `estimated`: whether configs that no family reads are estimated."""
        return self._models(partial(chosen, estimated=estimated), every_size if self.all_sizes else one_each)

    def representatives(self) -> list[NamedSpec]:
        """Returns the named or selected models, with only the smallest size of each family."""
        return self._models(representatives, smallest_each)

    def _models(self, choose: Callable[..., list[NamedSpec]], of: Callable[[Found], list[str]]) -> list[NamedSpec]:
        filters = {"--all-sizes": self.all_sizes, "--since": self.since, "--with": self.with_}
        given = [name for name, value in filters.items() if value]
        if self.names and given:
            raise UsageError(f"{given[0]} chooses among all models: leave it out, or name none")
        names = self.names or ([] if self.swap else of(matching(self.since, self.with_ or [])))
        return choose(names, self.swap or [], self.ignore_field or [])


@dataclass(frozen=True)
class InferenceOptions(InferenceConfig):
    """The conditions of a model's inference: the number of sequences, the dtypes, and the number of cards."""

    batch: Annotated[int, typer.Option(min=1, help="Number of sequences, all with the same context.")] = 1
    weights: Annotated[
        WeightForm,
        weights_option("--dtype", help="Format of the weights: a dtype, released (as published) or 4-bit. [bfloat16]"),
    ] = BFLOAT16
    cache: Annotated[torch.dtype, dtype_option("--cache-dtype", help="Dtype of the cache. [bfloat16]")] = torch.bfloat16
    tp: Annotated[
        int, typer.Option("--tp", min=1, help="Number of cards that each model is split across; figures are per card.")
    ] = 1

    ep: Annotated[
        int,
        typer.Option(
            "--ep",
            min=1,
            help="1, or the value of --tp to put whole experts on each card, instead of a slice of every expert.",
        ),
    ] = 1

    def dtype(self) -> torch.dtype:
        """Returns the dtype of weights in computations. Raises UsageError for a format that only stores weights."""
        dtype = self.weights.dtype
        if dtype.itemsize < 2 or PLAIN[dtype] != self.weights:
            raise UsageError(f"--dtype {self.weights.name} is for storing only; choose float32, bfloat16 or float16")
        return dtype

    def divisible(self, models: Sequence[NamedSpec]) -> list[NamedSpec]:
        """Returns the models that `tp` cards can divide; a note on stderr names the others.

        Raises SpecError if no model can be divided.
        """
        found, reasons = [], dict[str, SpecError]()
        for model in models:
            try:
                self.part(model.spec)
                found.append(model)
            except SpecError as error:
                reasons[model.label] = error
        if reasons and not found:
            raise next(iter(reasons.values()))
        if reasons:
            parts = {n: e.part if isinstance(e, IndivisibleError) else e for n, e in reasons.items()}
            why = ", ".join(f"{name} ({part})" for name, part in parts.items())
            print(f"left out, since {self.tp} cards cannot divide them: {why}", file=sys.stderr)
        return found


@dataclass(frozen=True)
class DeviceOptions:
    """The device whose peak rates set the ceilings: a known device by name, or the rates of another device."""

    device_spec: Annotated[
        str, typer.Option(metavar="NAME", help=f"Device that sets the ceilings: {', '.join(roofline.devices())}.")
    ] = "h100"
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/S", help="Memory bandwidth of another device (needs --flops).")
    ] = None
    flops: Annotated[
        float | None, typer.Option(metavar="TFLOPS", help="Peak arithmetic rate of another device (needs --bandwidth).")
    ] = None
    link: Annotated[
        float | None, typer.Option(metavar="GB/S", help="Rate at which a card sends to the others, for --tp.")
    ] = None

    def device(self) -> roofline.Device:
        """Returns the device. Raises UsageError if only one of the two rates is given, or if a rate is not above 0."""
        if self.link is not None and not 0 < self.link < math.inf:
            raise UsageError("--link (GB/s) must be above 0")
        if self.bandwidth is None and self.flops is None:
            device = roofline.device(self.device_spec)
        else:
            bandwidth, flops = self.bandwidth or 0, self.flops or 0
            if not (0 < bandwidth < math.inf and 0 < flops < math.inf):
                raise UsageError("--bandwidth (GB/s) and --flops (TFLOPS) go together, and both must be above 0")
            name = f"{flops:g} TFLOPS and {bandwidth:g} GB/s"
            device = roofline.Device(name, flops * 1e12, bandwidth * 1e9)
        return device if self.link is None else replace(device, link=self.link * 1e9)


def with_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function for typer that calls the command, with one parameter for each field of the groups of options.

    The group `report` is finished when the command ends, even if it fails.
    """
    groups, parameters = dict[str, Any](), list[Parameter]()
    for given in signature(command, eval_str=True).parameters.values():
        if is_dataclass(given.annotation):
            groups[given.name] = given.annotation
            own = signature(groups[given.name]).parameters.values()
            parameters += [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
        else:
            parameters.append(given)

    @wraps(command)
    def call(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in signature(group).parameters})
        with values.get("report", nullcontext()):
            return command(**values)

    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call
