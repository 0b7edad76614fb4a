"""What measurements of single blocks share: making them, planning a pass through them, a progress bar, and rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.measure.timing import WINDOW
from zoo.core.cache import Cache
from zoo.core.forward_context import ForwardContext, prepare_forward
from zoo.model.decoder import initialise
from zoo.registry import Block, Mixer

CPU = torch.device("cpu")
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
WARMUPS = WINDOW + 1  # rounds that a bar expects before those that count: there may be more


def made(spec: Block, dim: int, dtype: torch.dtype, seed: int) -> nn.Module:
    """The block's module on the CPU, in eval mode, with fresh weights drawn from `seed`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = spec.build(dim).eval()
    finally:
        torch.set_default_dtype(before)
    initialise(module, seed)
    return module


def planned(spec: Mixer, cache: Cache, past: int, new: int) -> ForwardContext:
    """A pass of `new` tokens after `past` through one block that keeps its tokens in `cache`."""
    return prepare_forward(past, new, spec.rotary(), cache.layers, CPU)


@contextmanager
def progress(total: float) -> Iterator[Callable[[int, float], Callable[[], None]]]:
    """A bar over so much work, with the remaining time, on stderr where that is a terminal.

    Yields `stage(steps, work)`: a tick for a stage that is expected to take `steps` ticks and is worth `work` in all.
    """
    bar = tqdm(total=total, desc="measuring", file=sys.stderr, disable=None, leave=False, bar_format=BAR)

    def stage(steps: int, work: float) -> Callable[[], None]:
        left = work

        def tick() -> None:
            nonlocal left
            done = min(work / max(steps, 1), left)  # ticks beyond those expected add nothing
            left -= done
            bar.update(done)

        return tick

    with bar:
        yield stage


def spread(what: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of some samples, and the samples, as values of a row; null where there are none."""
    middle, low, high = (of(seconds) if seconds else None for of in (median, min, max))
    return {f"{what}_s": middle, f"{what}_s_min": low, f"{what}_s_max": high, f"{what}_seconds": list(seconds)}
