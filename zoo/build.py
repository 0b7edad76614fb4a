"""python -m zoo.build MODEL: shows a model's blocks and costs. --tiny, --params and --device also run it."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from zoo import diagram
from zoo.arguments import find_dtype
from zoo.callable_module import make_callable
from zoo.catalog import build
from zoo.cli import listing
from zoo.cli.card import build_report, figure, report_text
from zoo.cli.runner import Debug, Imports, emit, run
from zoo.cli.tables import document
from zoo.core.devices import find_device
from zoo.errors import CheckFailed, UsageError
from zoo.new_files import write_file
from zoo.units import parse_count

make_callable(__name__, build)
app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Theme(StrEnum):
    """The colours of a diagram."""

    light = "light"
    dark = "dark"


def _count(text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _dtype(text: str) -> torch.dtype:
    try:
        return find_dtype(text, computing=True)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def main(
    name: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A size, an architecture, or another model: see above (--list: all)."),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Use toy widths with every kind of layer, and run the model.")
    ] = False,
    params: Annotated[
        int | None,
        typer.Option(parser=_count, metavar="COUNT", help="Scale to this number of parameters, and run the model."),
    ] = None,
    swap: Annotated[
        list[str] | None, typer.Option(metavar="SWAP", help="Change a block: 'GQA(window=512)', attn=MQA (repeatable).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of the model: cpu, cuda, meta (no run).")] = None,
    dtype: Annotated[
        torch.dtype | None,
        typer.Option(
            parser=_dtype,
            metavar="DTYPE",
            help="Dtype of weights and cache. Default: float32 for a run, else bfloat16.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random weights and tokens.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a diagram into FILE (.svg, .png, .pdf) and run nothing; - is stdout."),
    ] = None,
    theme: Annotated[Theme | None, typer.Option(help="Colours of the diagram. Default: light.")] = None,
    costs: Annotated[bool, typer.Option("--costs", help="Show the cost of each part in the diagram.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the blocks of each architecture, and all sizes.")] = False,
    import_: Imports = None,
    debug: Debug = False,
) -> None:
    """Show a model's blocks and costs; with --tiny or --params, run it too.

    With neither option, the model is built on the meta device, which allocates nothing. --params 200k scales the model
    so that training can compare it with others: they get the same number of layers and parameters, a vocabulary of
    bytes and a context of 256 tokens, and keep their proportions. After a swap, the model is scaled again.

    MODEL can have these forms, tried in this order. (1) FILE.py:NAME, where NAME is a Decoder or a function that
    returns one; the file is executed. (2) A spec.json, config.json or .gguf file, or a folder with a spec.json or
    config.json, such as a run of zoo.train. (3) A size, the hub id of a size, or an architecture (its smallest size).
    (4) Another hub id, whose config.json is downloaded. Write ./NAME for a folder with the name of an architecture.

    \b
    python -m zoo.build gemma3 --tiny
    python -m zoo.build gemma3 --params 200k
    python -m zoo.build deepseek-v3-671b
    python -m zoo.build qwen3 --swap 'GQA(window=512) except every 6' --swap norm=olmo
    python -m zoo.build gpt-oss --svg gpt-oss.svg
    """
    if list_:
        blocks = {"blocks": listing.block_rows(), "sizes": listing.published_sizes()}
        emit(document(blocks) if json else listing.listing_text())
        return
    if name is None:
        raise UsageError("which model? For example: python -m zoo.build qwen3 --tiny; --list names them all")
    from weights.specs import find_spec  # here, since --help and --list need no reader of weights

    found, swaps = find_spec(name), swap or []
    if tiny and params:
        raise UsageError("--tiny and --params both set the widths: leave one of them out")
    if svg is not None:
        if json or device:
            raise UsageError("--svg draws and builds nothing: leave --json and --device out")
        cache = dtype or torch.bfloat16
        drawing, dropped = figure(found, tiny, params, swaps, cache, (theme or Theme.light).value, costs)
        if dropped:
            print(f"dropped: {', '.join(dropped)}", file=sys.stderr)
        if svg == Path("-"):
            emit(drawing)
        else:
            write_file(svg, diagram.encode(drawing, svg))
        return
    if theme or costs:
        raise UsageError("--theme and --costs change a diagram: give --svg FILE as well")
    place = find_device(device or ("cpu" if tiny or params else "meta"))
    weights_dtype = dtype or (torch.bfloat16 if place.type == "meta" else torch.float32)
    report = build_report(found, tiny, swaps, place, weights_dtype, seed, params)
    emit(document(report) if json else report_text(report))
    if report["failures"]:
        raise CheckFailed("; ".join(report["failures"]))


if __name__ == "__main__":
    run(app, "python -m zoo.build")
