"""python -m weights.parity SOURCE: compares the zoo's model with the released implementation, on the same weights."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from weights.reference.comparison import parity
from weights.reference.report import ParityReport, check_plot, write_plot
from zoo.callable_module import make_callable
from zoo.cli.runner import (
    Debug,
    ExpertParallel,
    Imports,
    Out,
    TensorParallel,
    emit,
    quiet_unless_first,
    run,
    tensor_parallel,
)
from zoo.cli.tables import document
from zoo.core import processes
from zoo.errors import UsageError
from zoo.model.parallel import Ranks
from zoo.sharding import require_same_ranks

make_callable(__name__, parity)
app = typer.Typer(add_completion=False)


@app.command()
def main(
    source: Annotated[
        str, typer.Argument(help="ORG/NAME or ORG/NAME@REVISION on the hub, a preset, a folder, or a .gguf file.")
    ],
    tokens: Annotated[
        int | None, typer.Option(help="Tokens per prompt.", show_default="past the widest window")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype whose rounding errors are compared after float64: float32, bfloat16.")
    ] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the first of three prompts of random token ids.")] = 0,
    text: Annotated[str | None, typer.Option(help="Text to compare on, if the source has a tokenizer.json.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Source of the reference's weights, such as the original of a converted SOURCE.")
    ] = None,
    streaming: Annotated[
        bool,
        typer.Option("--streaming", help="Hold one layer at a time. Default: only if both models exceed the memory."),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a source on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the download cache only.")] = False,
    ignore_field: Annotated[list[str] | None, typer.Option(help="Field of the config to ignore (repeatable).")] = None,
    tp: TensorParallel = 1,
    ep: ExpertParallel = 1,
    plot: Annotated[Path | None, typer.Option(help="Plot the error at each position to a .png or .svg file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report as JSON, with the errors at each position.")
    ] = False,
    out: Out = None,
    import_: Imports = None,
    debug: Debug = False,
) -> int:
    """Compare the zoo with the released implementation, in transformers, on the same weights and prompts.

    A model saved in the zoo's own layout (with a spec.json) has no released implementation. It is checked against
    itself: the sizes of parameters and cache against the spec's formulas, and decoding through the cache against one
    forward pass over all tokens.

    Both models compute in float64, where equal models differ by less than 1e-10 of the largest logit. The exit code is
    1 if they differ by more, or if the zoo's rounding error in --dtype is more than twice the reference's. All runs are
    on the CPU. With --tp the zoo's model is split across processes. Each process runs the whole reference; with
    --streaming, one layer at a time.
    """
    handler, logged = logging.StreamHandler(), dict[str, logging.LogRecord]()
    # Streaming reopens the source for every layer: show each message only once.
    handler.addFilter(lambda record: logged.setdefault(record.getMessage(), record) is record)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger("weights").setLevel(logging.INFO)
    if plot is not None:
        check_plot(plot)
    require_same_ranks(tp, ep)
    with tensor_parallel("cpu", tp, "weights.parity") as (_, group), quiet_unless_first():
        report = parity(
            source,
            tokens=tokens,
            dtype=dtype,
            seed=seed,
            text=text,
            reference=reference,
            streaming=streaming or None,
            ranks=Ranks(group, whole_experts=ep > 1),
            revision=revision,
            offline=offline,
            ignore_fields=ignore_field or (),
        )
        if processes.rank() == 0:
            emit(document(report.as_dict()) if as_json else str(report), out)
            if plot is not None:
                if not isinstance(report, ParityReport):
                    raise UsageError(f"--plot draws differences from a reference, and {source} has none")
                write_plot(report, plot)
    return 0 if report.passed else 1


if __name__ == "__main__":
    run(app, "python -m weights.parity")
