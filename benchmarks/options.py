"""Words that the verbs of the command line share: options, and how their values are read."""

from __future__ import annotations

import math
import re
from typing import Annotated

import torch
import typer

from benchmarks.analytic.roofline import Device, device, devices
from zoo.cli.tables import Format
from zoo.errors import UsageError

TOKENS = {"": 1, "k": 2**10, "m": 2**20}
BYTES = {"": 2**30, "gib": 2**30, "mib": 2**20, "tib": 2**40, "gb": 10**9, "mb": 10**6, "tb": 10**12}
DTYPES = {
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float8": torch.float8_e4m3fn},
    **{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn},
}


def tokens(text: str) -> int:
    """A number of tokens: 4096, 32k (of 1,024), 1M."""
    match = re.fullmatch(r"(\d+)([km]?)", str(text).strip().lower().replace(",", "").replace("_", ""))
    if not match or not int(match[1]):
        raise typer.BadParameter(f"{text!r} is no number of tokens; write 4096 or 4k")
    return int(match[1]) * TOKENS[match[2]]


def tokens_or_none(text: str | int) -> int:
    """A number of tokens that may be 0. An int, a default, is one already."""
    return int(text) if str(text).strip() == "0" or isinstance(text, int) else tokens(text)


def memory(text: str | int) -> int:
    """Bytes: 24GiB, 80GB; a bare number in words is GiB. An int, the default, is bytes already."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(text).strip().lower())
    if not match or match[2] not in BYTES or not float(match[1]):
        raise typer.BadParameter(f"{text!r} is no amount of memory; write 24GiB or 80GB")
    return int(float(match[1]) * BYTES[match[2]])


def dtype(text: str) -> torch.dtype:
    """A dtype by its name or its usual abbreviation."""
    word = str(text).lower().removeprefix("torch.")
    if word not in DTYPES:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(DTYPES)}")
    return DTYPES[word]


def computing_dtype(text: str) -> torch.dtype:
    """A dtype that layers compute in."""
    found = dtype(text)
    if found.itemsize < 2:
        raise typer.BadParameter(f"{text!r} is for storing only; choose float32, bfloat16 or float16")
    return found


Names = Annotated[
    list[str] | None,
    typer.Argument(help="Presets, hub ids, families (all their sizes) or folders with a config.json; none: all."),
]
IgnoreField = Annotated[
    list[str] | None,
    typer.Option("--ignore-field", metavar="NAME", help="A field of a folder's config.json to vouch for. Repeatable."),
]
Swap = Annotated[
    list[str] | None,
    typer.Option(
        "--swap",
        metavar="CHANGE",
        help="Add each model with a block changed: 'GQA(window=512)', norm=olmo. Repeat.",
    ),
]
AsFormat = Annotated[Format, typer.Option("--format", help="How to write the rows.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Sequences, each of the same context.")]
CacheType = Annotated[
    torch.dtype,
    typer.Option("--cache-dtype", parser=dtype, metavar="DTYPE", help="Of the cache. [bfloat16]", show_default=False),
]
WeightType = Annotated[
    torch.dtype,
    typer.Option("--dtype", parser=dtype, metavar="DTYPE", help="Of the weights. [bfloat16]", show_default=False),
]
Memory = Annotated[
    int,
    typer.Option(
        "--memory", parser=memory, metavar="SIZE", help="Of the card: 24GiB, 80GB. [80GiB]", show_default=False
    ),
]
Contexts = Annotated[
    list[int] | None, typer.Option("--context", parser=tokens, metavar="TOKENS", help="As 4096 or 32k. Repeatable.")
]
DeviceSpec = Annotated[str, typer.Option("--device-spec", metavar="NAME", help=f"One of {', '.join(devices())}.")]
Bandwidth = Annotated[
    float | None, typer.Option("--bandwidth", metavar="GB/S", help="Of another device; with --flops.")
]
Flops = Annotated[float | None, typer.Option("--flops", metavar="TFLOPS", help="Of another device; with --bandwidth.")]

ComputingType = Annotated[
    torch.dtype,
    typer.Option(
        "--dtype", parser=computing_dtype, metavar="DTYPE", help="Of weights and cache. [float32]", show_default=False
    ),
]
Repeat = Annotated[int, typer.Option("--repeat", "-r", min=1, help="Runs of each that count.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of random weights and inputs.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="Toy widths, every kind of layer kept.")]
Layers = Annotated[
    int | None,
    typer.Option("--layers", min=1, help="Only so many layers: the first of each kind, then the first others."),
]


def the_device(name: str, bandwidth: float | None, flops: float | None) -> Device:
    """The device of that name, or one of these GB/s and TFLOPS. Raises UsageError unless both are given or neither."""
    if bandwidth is None and flops is None:
        return device(name)
    if bandwidth is None or flops is None or not (0 < bandwidth < math.inf and 0 < flops < math.inf):
        raise UsageError("--bandwidth (GB/s) and --flops (TFLOPS) go together, and both are above 0")
    return Device(f"{flops:g} TFLOPS and {bandwidth:g} GB/s", flops * 1e12, bandwidth * 1e9)
