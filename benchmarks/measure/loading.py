"""Time and memory of loading a checkpoint, by the zoo and by transformers in turns. Each load is a new process.

    python -m benchmarks.measure.loading zoo|transformers SOURCE DTYPE

performs one load and prints its figures as JSON. Memory is counted from the start of the load to the end of a short
forward pass, above the memory in use after the imports.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.measure.runners import BASELINE, ZOO
from benchmarks.output.progress import progress
from zoo.architectures import families
from zoo.core.kernels import choices
from zoo.errors import CheckFailed, MalformedError, NotAvailable, UsageError, ZooError

Sample = dict[str, Any]  # the output of one load
Samples = dict[str, list[Sample]]  # by loader

PASS_TOKENS = 16  # tokens of the forward pass after a load
POLL_SECONDS = 0.001  # seconds between two readings of the memory
ERRORS = {kind.exit_code: kind for kind in (CheckFailed, UsageError, NotAvailable, MalformedError)}


def run(path: Path, dtype: str, loaders: Sequence[str], repetitions: int, samples: Samples) -> dict[str, str]:
    """Runs the loaders in turns, and fills `samples` by loader. Returns {loader: reason} if the baseline cannot load.

    The first load of each loader does not count: it brings the files into memory. Raises the zoo's error if its own
    load fails.
    """
    failed: dict[str, str] = {}
    with progress("loading") as bar:
        bar.expect(len(loaders) * (1 + repetitions))
        for turn in range(1 + repetitions):
            for loader in (loader for loader in loaders if loader not in failed):
                sample = load_once(loader, path, dtype)
                bar.tick()
                if "error" in sample and loader == ZOO:
                    raise ERRORS.get(sample["exit_code"], ZooError)(sample["error"])
                if "error" in sample:
                    failed[loader] = sample["error"]
                elif turn:
                    samples.setdefault(loader, []).append(sample)
    return failed


def load_once(loader: str, path: Path, dtype: str) -> Sample:
    """Performs one load in a new process, and returns its figures or its error."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.measure.loading", loader, str(path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        sample: Sample = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):  # the process was killed, perhaps for its memory
        return {"error": f"the process ended with {done.returncode}", "exit_code": NotAvailable.exit_code}
    return sample


def rows(path: Path, dtype: str, samples: Samples) -> list[dict[str, Any]]:
    """Returns a row for each loader: medians, with the seconds of every sample."""
    # The .gguf file, or the folder's model*.safetensors.
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("model*.safetensors")))

    def middle(found: list[Sample], key: str) -> float:
        return median(sample[key] for sample in found)

    return [
        {
            "table": "load",
            "source": str(path),
            "loader": loader,
            "dtype": dtype,
            "file_bytes": size,
            "model_bytes": found[0]["model_bytes"],
            "load_s": middle(found, "load_s"),
            "ready_s": middle(found, "ready_s"),
            "ready_bytes_per_s": size / middle(found, "ready_s"),
            "peak_bytes": int(middle(found, "peak_bytes")),
            "anonymous_bytes": int(middle(found, "anonymous_bytes")),
            "load_seconds": [sample["load_s"] for sample in found],
            "ready_seconds": [sample["ready_s"] for sample in found],
        }
        for loader, found in samples.items()
    ]


def poll_memory() -> Callable[[], dict[str, int]]:
    """Starts to poll this process's memory. Returns a function that ends the polling and returns the peaks.

    Peaks are bytes above the memory at the start. Anonymous memory is the process's own. Resident memory also counts
    pages of mapped files, which the system takes back when it needs them.
    """
    before, ended = _held_bytes(), threading.Event()
    peaks = list(before)

    def poll() -> None:
        last = False
        while not last:
            last = ended.wait(POLL_SECONDS)
            peaks[:] = map(max, peaks, _held_bytes())

    def stop() -> dict[str, int]:
        ended.set()
        thread.join()
        resident, anonymous = (peak - held for peak, held in zip(peaks, before, strict=True))
        return {"peak_bytes": resident, "anonymous_bytes": anonymous}

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    return stop


def _held_bytes() -> tuple[int, int]:
    """Returns the (resident, anonymous) bytes of this process now."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, (resident - shared) * page


def by_zoo(source: str, dtype: str) -> Callable[[], nn.Module]:
    """Returns a function that loads `source` with the zoo. The function imports nothing: all imports come before."""
    import weights

    families()
    return lambda: weights.load(source, dtype=dtype)


def by_transformers(source: str, dtype: str) -> Callable[[], nn.Module]:
    """Returns a function that loads `source` with transformers. All imports, also of the model's code, come before."""
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    path = Path(source)
    folder, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    import_module(auto._model_mapping[type(AutoConfig.from_pretrained(folder, **options))].__module__)
    return lambda: auto.from_pretrained(folder, dtype=dtype, **options)


LOADERS = {ZOO: by_zoo, BASELINE: by_transformers}


@torch.no_grad()
def measure_load(loader: str, source: str, dtype: str) -> Sample:
    """Measures memory, and the seconds of a load alone and of a load with a first pass, which reads mapped pages."""
    load = LOADERS[loader](source, dtype)
    tokens = torch.arange(1, PASS_TOKENS + 1)[None]
    stop = poll_memory()
    start = time.perf_counter()
    model = load()
    loaded = time.perf_counter()
    model(tokens)
    ready = time.perf_counter()
    held = sum(parameter.nbytes for parameter in model.parameters())
    sample = {"load_s": loaded - start, "ready_s": ready - start, "model_bytes": held} | stop()
    return sample | {"kernels": choices() if loader == ZOO else {}}


def main(loader: str, source: str, dtype: str) -> None:
    """Prints the result of `measure_load`, or the reason of its failure: {"error": ..., "exit_code": ...}."""
    try:
        sample = measure_load(loader, source, dtype)
    except Exception as error:
        message = " ".join(f"{'' if isinstance(error, ZooError) else f'{type(error).__name__}: '}{error}".split())
        sample = {"error": message, "exit_code": getattr(error, "exit_code", 1)}
    print(json.dumps(sample))


if __name__ == "__main__":
    main(*sys.argv[1:4])
