"""Prefill and decode speed of models in their tiny form, with nothing but the forward inside the time taken.

At toy widths there is next to no arithmetic: what is measured is the code's overhead, layer by layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.timing import Samples, Task, measure, rate
from zoo.catalog import build
from zoo.decoder import Decoder, Model

PREFILL, DECODE = 256, 32
WARMUPS, REPETITIONS = 2, 5
DTYPE = torch.float32
THREADS = 1  # toy matrices leave a second thread nothing but waiting, which would be measured too


def run(specs: Mapping[str, Decoder], seed: int, samples: Samples) -> None:
    """Build each tiny spec on the CPU with weights from `seed` and time it, filling `samples`.

    A bar on stderr shows how far it is, where that is a terminal.
    """
    tasks = [task for name, spec in specs.items() for task in _tasks(name, build(spec, dtype=DTYPE, seed=seed), seed)]
    total = len(tasks) * (WARMUPS + REPETITIONS)
    bar = tqdm(total=total, desc="measuring", unit="run", file=sys.stderr, disable=None, leave=False)
    with bar, _threads(THREADS):
        measure(tasks, samples, warmups=WARMUPS, repetitions=REPETITIONS, tick=bar.update)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Run on this many threads, and without keeping what gradients would need."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _tasks(name: str, model: Model, seed: int) -> Iterator[Task]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.spec.vocab, (1, PREFILL + DECODE), generator=generator)
    prompt, rest = tokens[:, :PREFILL], tokens[:, PREFILL:].split(1, dim=1)

    def prefill() -> Callable[[], None]:
        cache = model.new_cache(1, PREFILL + DECODE)
        return lambda: model(prompt, cache, logits_to_keep=1)

    def decode() -> Callable[[], None]:
        cache = model.new_cache(1, PREFILL + DECODE)
        model(prompt, cache, logits_to_keep=1)

        def steps() -> None:
            for token in rest:
                model(token, cache, logits_to_keep=1)

        return steps

    yield Task((name, "prefill"), prefill)
    yield Task((name, "decode"), decode)


def rows(specs: Mapping[str, Decoder], samples: Samples) -> list[dict[str, Any]]:
    """One row for each model that was measured at least once in both ways."""
    both = ((name, spec, samples.get((name, "prefill")), samples.get((name, "decode"))) for name, spec in specs.items())
    return [_row(name, spec, prefill, decode) for name, spec, prefill, decode in both if prefill and decode]


def _row(name: str, spec: Decoder, prefill: list[float], decode: list[float]) -> dict[str, Any]:
    """Tokens a second with their extremes, and the seconds of every sample."""
    fast, slow = rate(PREFILL, prefill), rate(DECODE, decode)
    return {
        "table": "throughput",
        "model": name,
        "tiny": True,
        "layers": len(spec.layers),
        "params": spec.params(),
        "dtype": str(DTYPE).removeprefix("torch."),
        "batch": 1,
        "threads": THREADS,
        "prefill_tokens": PREFILL,
        "prefill_tokens_per_s": fast.median,
        "prefill_tokens_per_s_min": fast.low,
        "prefill_tokens_per_s_max": fast.high,
        "prefill_seconds": prefill,
        "decode_tokens": DECODE,
        "decode_tokens_per_s": slow.median,
        "decode_tokens_per_s_min": slow.low,
        "decode_tokens_per_s_max": slow.high,
        "decode_seconds": decode,
        "decode_us_per_layer": 1e6 / slow.median / len(spec.layers),
    }
