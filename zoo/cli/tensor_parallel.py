"""Runs a command in several processes: `torchrun --nproc-per-node N -m COMMAND ... --tp N`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Annotated

import torch
import typer

from zoo.core import processes
from zoo.core.collectives import Group
from zoo.core.devices import find_device
from zoo.errors import UsageError

TensorParallel = Annotated[
    int, typer.Option("--tp", min=1, help="Processes that divide the model; torchrun starts them.")
]

ExpertParallel = Annotated[int, typer.Option("--ep", min=1, help="Processes that divide whole experts; equal to --tp.")]


@contextmanager
def tensor_parallel(device: str, tp: int, command: str) -> Iterator[tuple[torch.device, Group | None]]:
    """Yields the device of this process, and the group of all processes that torchrun started; None for a single
    process.

    Raises UsageError where `tp` is not the number of processes that run `command`, and as `processes.joined` does.
    """
    launched = processes.launched()
    if tp != launched:
        start = f"torchrun --nproc-per-node {tp} -m {command}"
        advice = f"{start} ... --tp {tp} starts {tp}" if tp > 1 else f"give --tp {launched}"
        raise UsageError(f"--tp {tp} with {launched} process{'es' * (launched > 1)}: {advice}")
    if tp == 1:
        yield find_device(device), None
        return
    with processes.joined(device) as place:
        import torch.distributed as dist

        assert dist.group.WORLD is not None
        yield place, Group.of(dist.group.WORLD)


@contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Silences every process but the first, so that the output appears once."""
    if processes.rank() == 0:
        yield
        return
    before = logging.root.manager.disable
    logging.disable()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
