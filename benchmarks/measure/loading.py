"""Loading a checkpoint, by the zoo and by transformers in turns, each time in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.output.progress import progress
from zoo.errors import CheckFailed, MalformedError, NotAvailable, UsageError, ZooError

ZOO, PEER = "zoo", "transformers"
Found = dict[str, Any]
ERRORS = {kind.exit_code: kind for kind in (CheckFailed, UsageError, NotAvailable, MalformedError)}


def run(
    path: Path, dtype: str, loaders: Sequence[str], repetitions: int, found: dict[str, list[Found]]
) -> dict[str, str]:
    """Load in turns, once more than counted, since the first time brings the files into memory; `found` is filled as
    time goes -> why a peer could not load, by its name. Raises what the zoo's own load raised."""
    failed: dict[str, str] = {}
    with progress("loading") as bar:
        bar.expect(len(loaders) * (1 + repetitions))
        for turn in range(1 + repetitions):
            for loader in (loader for loader in loaders if loader not in failed):
                sample = once(loader, path, dtype)
                bar.tick()
                if "error" in sample and loader == ZOO:
                    raise ERRORS.get(sample["exit_code"], ZooError)(sample["error"])
                if "error" in sample:
                    failed[loader] = sample["error"]
                elif turn:
                    found.setdefault(loader, []).append(sample)
    return failed


def once(loader: str, path: Path, dtype: str) -> Found:
    """One load in a process of its own: what benchmarks.measure.one_load prints."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.measure.one_load", loader, str(path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        sample: Found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):  # it was killed, for its memory perhaps
        return {"error": f"the process ended with {done.returncode}", "exit_code": NotAvailable.exit_code}
    return sample


def files(path: Path) -> int:
    """Bytes of the .gguf file, or of the folder's model*.safetensors."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("model*.safetensors")))


def rows(path: Path, dtype: str, found: dict[str, list[Found]]) -> list[dict[str, Any]]:
    """Medians of each loader, with the seconds of every sample."""
    return [_row(path, dtype, loader, samples) for loader, samples in found.items()]


def _row(path: Path, dtype: str, loader: str, samples: list[Found]) -> dict[str, Any]:
    middle: Callable[[str], float] = lambda key: median(sample[key] for sample in samples)  # noqa: E731
    return {
        "table": "load",
        "source": str(path),
        "loader": loader,
        "dtype": dtype,
        "file_bytes": files(path),
        "model_bytes": samples[0]["model_bytes"],
        "load_s": middle("load_s"),
        "ready_s": middle("ready_s"),
        "ready_bytes_per_s": files(path) / middle("ready_s"),
        "peak_bytes": int(middle("peak_bytes")),
        "anonymous_bytes": int(middle("anonymous_bytes")),
        "load_seconds": [sample["load_s"] for sample in samples],
        "ready_seconds": [sample["ready_s"] for sample in samples],
    }
