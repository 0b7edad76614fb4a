"""From models to tables of measured speed: build, time, report; as far as it came, where it is interrupted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.measure import throughput_tables
from benchmarks.measure.benchmark_models import Subject, check_memory, need
from benchmarks.measure.environment import recorded
from benchmarks.measure.runners import workloads
from benchmarks.measure.throughput import TINY_THREADS, Entrant, Found, Setting, of_zoo, run
from benchmarks.measure.throughput_rows import ceiling_rows, rows
from benchmarks.output.progress import progress
from benchmarks.output.report import Report
from zoo.core.devices import find_device
from zoo.errors import UsageError
from zoo.errors import require_package as need_package


def number_type(given: torch.dtype | None, device: torch.device) -> torch.dtype:
    """What weights and cache are stored as. Raises UsageError for what nothing is multiplied in."""
    if given is not None and given.itemsize < 2:
        raise UsageError(f"--dtype {str(given).removeprefix('torch.')}: no model here multiplies in it; take bfloat16")
    return given or (torch.bfloat16 if device.type == "cuda" else torch.float32)


def setting(
    dtype: torch.dtype | None,
    *,
    device: str = "cpu",
    batch: int = 1,
    prompt: int = 512,
    generate: int = 128,
    depths: Sequence[int] = (0,),
    threads: int | None = None,
    seed: int = 0,
    repetitions: int = 5,
    tiny: bool = False,
) -> Setting:
    """What holds for all that is measured together, of the options that were given.

    Raises UsageError for options that leave nothing to measure, NotAvailable for a device that is not here.
    """
    place = find_device(device)
    return Setting(
        works=workloads(prompt, generate, depths, batch),
        dtype=number_type(dtype, place),
        device=place,
        threads=threads or (TINY_THREADS if tiny else torch.get_num_threads()),
        seed=seed,
        repetitions=repetitions,
    )


def measure(
    report: Report,
    subjects: Sequence[Subject],
    setting: Setting,
    modes: Sequence[str],
    peer: bool = False,
    peer_compiled: bool = False,
) -> None:
    """Measure all subjects together and add what was found to the report.

    Raises NotAvailable, before anything is built, where they do not fit into memory; CheckFailed where a peer's logits
    are not equal.
    """
    peer = peer or peer_compiled
    if peer:
        need_package("transformers", "parity")
    runs = len(modes) + peer + peer_compiled
    check_memory(subjects, need(setting.works, runs, copies=2 if peer else 1), setting.device, setting.dtype)
    found, entrants = Found(), list[Entrant]()
    try:
        with recorded(report, setting.device), progress("building") as bar:
            for subject in subjects:
                bar.doing(f"building {subject.label}")
                entrants += _entrants(subject, setting, modes, peer, peer_compiled)
            run(entrants, setting, found, bar)
    finally:
        if made := rows(entrants, setting, found):
            report.add(*throughput_tables.tables(made, ceiling_rows(setting, found), report.about["machine"]))


def _entrants(
    subject: Subject, setting: Setting, modes: Sequence[str], peer: bool, peer_compiled: bool
) -> Iterator[Entrant]:
    model = subject.build(setting.device, setting.dtype, setting.seed)
    yield from of_zoo(subject, model, modes)
    if peer:
        from benchmarks.measure import baseline  # only here: it imports transformers, an extra

        for each in baseline.peers(subject, model, setting, peer_compiled):
            if isinstance(each, str):
                print(each, file=sys.stderr)
            else:
                yield each
