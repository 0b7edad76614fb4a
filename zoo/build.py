"""python -m zoo.build NAME: what a model is made of and what it costs; with --tiny or a --device, a run of it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from zoo import diagram
from zoo.catalog import resolve, sizes
from zoo.cli import card, listing, self_check
from zoo.cli.runner import Debug, emit, run
from zoo.cli.tables import document
from zoo.core.devices import find_device
from zoo.errors import CheckFailed, SpecError, UsageError
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swap
from zoo.swaps.tiny import tiny as at_toy_widths
from zoo.units import format_count

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class DType(StrEnum):
    """What numbers are stored as."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A size, an architecture, or a hub id.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Toy widths, every kind of layer kept; and run it.")] = False,
    swap: Annotated[
        list[str] | None, typer.Option(metavar="SWAP", help="Change a block: 'GQA(window=512)', attn=MQA. Repeatable.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to build and run it: cpu, cuda, meta (no run).")] = None,
    dtype: Annotated[DType | None, typer.Option(help="float32 where it is run, else bfloat16.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the fresh weights and the tokens.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The same facts as JSON.")] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into FILE, no run; - is stdout.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="All blocks against all architectures; all sizes.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a model is made of and what it costs; with --tiny, run it too.

    Without --tiny it is built on the meta device, which allocates nothing. A NAME is one of --list.

    \b
    python -m zoo.build gemma3 --tiny
    python -m zoo.build deepseek-v3-671b
    python -m zoo.build qwen3 --swap 'GQA(window=512)' --swap norm=olmo
    python -m zoo.build gpt-oss --svg gpt-oss.svg
    """
    if list_:
        emit(document({"blocks": listing.rows(), "sizes": listing.sizes()}) if json else listing.text())
        return
    if name is None:
        raise UsageError("which model? For example: python -m zoo.build qwen3 --tiny; --list names them all")
    preset = resolve(name)
    if svg is not None:
        if json or device:
            raise UsageError("--svg draws and builds nothing: leave --json and --device out")
        emit(_drawn(preset, tiny, swap or [], dtype or DType.bfloat16), None if svg == Path("-") else svg)
        return
    place = find_device(device or ("cpu" if tiny else "meta"))
    number = getattr(torch, dtype or ("bfloat16" if place.type == "meta" else "float32"))
    report = _report(preset, tiny, swap or [], place, number, seed)
    emit(document(report) if json else card.text(report))
    if report["failures"]:
        raise CheckFailed("; ".join(report["failures"]))


def _report(
    preset: str, tiny: bool, swaps: list[str], device: torch.device, dtype: torch.dtype, seed: int
) -> dict[str, Any]:
    """The card of a model, built on a device and, unless that is meta, run."""
    published, runs = sizes()[preset], device.type != "meta"
    original = at_toy_widths(published.spec) if tiny else published.spec
    spec, dropped = _swapped(original, swaps, tiny)
    if runs:
        self_check.check_memory(spec, device, dtype)
    if not tiny:
        building = f"building {format_count(spec.params())} parameters on {device}"
        print(building if runs else "not run: --tiny runs it at toy widths, --device cpu in full", file=sys.stderr)
    model, built = self_check.allocate(spec, device, dtype, seed)
    decoded = self_check.decode(model, dtype, seed) if runs else None
    return {
        "model": preset,
        "hub": published.hub,
        "tiny": tiny,
        "swaps": swaps,
        "dropped": dropped,
        "original": card.facts(original, dtype) if swaps else None,
        "card": card.facts(spec, dtype, None if tiny or swaps else published.active),
        "built": asdict(built),
        "decoded": asdict(decoded) if decoded else None,
        "failures": self_check.failures(built, decoded),
    }


def _drawn(preset: str, tiny: bool, swaps: list[str], dtype: DType) -> str:
    """The diagram of a model; of a swapped one, what differs from the original is marked."""
    published = sizes()[preset].spec
    original = at_toy_widths(published) if tiny else published
    spec, dropped = _swapped(original, swaps, tiny)
    if dropped:
        print(f"dropped: {', '.join(dropped)}", file=sys.stderr)
    title = f"{preset} at toy widths" if tiny else preset
    title += f" with {', '.join(card.spaced(swap) for swap in swaps)}" if swaps else ""
    return diagram.svg(spec, title, dtype=getattr(torch, dtype), against=original if swaps else None)


def _swapped(spec: Decoder, swaps: list[str], tiny: bool) -> tuple[Decoder, list[str]]:
    """Every swap in turn -> the spec, and all that was dropped."""
    dropped: dict[str, None] = {}
    for text in swaps:
        try:
            spec, lost = apply_swap(spec, text)
        except SpecError as error:
            raise SpecError(f"{error} (at the toy widths of --tiny)" if tiny else str(error)) from error
        dropped.update(dict.fromkeys(lost))
    return spec, list(dropped)


if __name__ == "__main__":
    run(app, "python -m zoo.build")
