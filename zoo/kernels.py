"""python -m zoo.kernels: shows the kernel of each operation on this machine, and decides open ones.

As a module it has the functions of zoo.kernel_choice. After `import zoo`, the name `zoo.kernels` is zoo.kernel_choice.
"""

import logging
from typing import Annotated

import torch
import typer

from zoo.cli.runner import Debug, Json, emit, run
from zoo.cli.tables import Column, Format, render
from zoo.core import inductor
from zoo.core.kernels import VARIABLE
from zoo.errors import NotAvailable
from zoo.kernel_choice import active as active
from zoo.kernel_choice import choices as choices
from zoo.kernel_choice import decide as decide
from zoo.kernel_choice import decide_for as decide_for
from zoo.kernel_choice import kept
from zoo.kernel_choice import save as save
from zoo.kernel_choice import use as use
from zoo.kernel_choice import using as using
from zoo.kernel_choice.deciding import decisions
from zoo.units import dtype_name

DTYPES = torch.float32, torch.bfloat16, torch.float16  # float64 is decided only for float64 models
COLUMNS = [Column("operation", "operation"), Column("dtype", "dtype"), Column("kernel", "kernel")]
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    again: Annotated[bool, typer.Option("--again", help="Measure all operations again.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads. Default: as torch sets it.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the kernel of each operation on this machine. Operations without a decision are measured first.

    "plain" is torch's own call. Decisions are stored for later processes with the same number of threads.
    """
    logging.basicConfig(format="%(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    kernels = active()
    wanted = decisions(DTYPES, compiled=_has_compiler())
    decide(wanted, again)
    rows = [
        {"operation": operation, "dtype": dtype_name(dtype), "kernel": kernels.kernel(operation, dtype)}
        for operation, dtype in wanted
    ]
    if json:
        emit(render(rows, COLUMNS, Format.json, {"file": str(kept.path()), "set": kernels.is_set}))
        return
    origin = f"Set by {VARIABLE}." if kernels.is_set else f"Kept in {kept.path()}."
    emit(f"{render(rows, COLUMNS)}\n\n{origin}")


def _has_compiler() -> bool:
    try:
        inductor.find_compiler()
    except NotAvailable:
        return False
    return True


if __name__ == "__main__":
    run(app, "python -m zoo.kernels")
