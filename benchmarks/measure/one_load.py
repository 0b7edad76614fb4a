"""One load of a checkpoint in a process of its own, by the zoo or by transformers: seconds and memory, as JSON.

    python -m benchmarks.measure.one_load zoo|transformers SOURCE DTYPE

Memory is counted above what the imports took, from the start of the load to the end of a short forward pass.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.architectures import families
from zoo.core.kernels import choices
from zoo.errors import ZooError

TOKENS = 16
PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.001  # seconds between two looks at the memory


class Peak(threading.Thread):
    """The most memory that this process holds, looked at again and again until `stop`.

    Anonymous memory is the process's own. Pages of a mapped file are counted as resident beside it, but they are the
    system's cache: it takes them back when it needs them.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._before = self._most = _held()

    def run(self) -> None:
        """Look until the end."""
        while not self._ended.wait(EVERY):
            self._look()

    def stop(self) -> dict[str, int]:
        """Peaks above what was held at the start, in bytes."""
        self._look()
        self._ended.set()
        self.join()
        resident, anonymous = (most - before for most, before in zip(self._most, self._before, strict=True))
        return {"peak_bytes": resident, "anonymous_bytes": anonymous}

    def _look(self) -> None:
        resident, anonymous = _held()
        self._most = max(self._most[0], resident), max(self._most[1], anonymous)


def _held() -> tuple[int, int]:
    """(resident, anonymous) bytes of this process now."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    return resident * PAGE, (resident - shared) * PAGE


def by_zoo(source: str, dtype: str) -> Callable[[], nn.Module]:
    """A load, all imports done: those of the architectures, too."""
    import weights

    families()
    return lambda: weights.load(source, dtype=dtype)


def by_transformers(source: str, dtype: str) -> Callable[[], nn.Module]:
    """A load, all imports done: those of the model's own code, too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    path = Path(source)
    place, given = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    import_module(auto._model_mapping[type(AutoConfig.from_pretrained(place, **given))].__module__)
    return lambda: auto.from_pretrained(place, dtype=dtype, **given)


LOADERS = {"zoo": by_zoo, "transformers": by_transformers}


@torch.no_grad()
def measure(who: str, source: str, dtype: str) -> dict[str, Any]:
    """Seconds of the load alone and of the load with a first pass, which reads what was only mapped; peaks in bytes."""
    load = LOADERS[who](source, dtype)
    tokens = torch.arange(1, TOKENS + 1)[None]
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    model = load()
    loaded = time.perf_counter()
    model(tokens)
    ready = time.perf_counter()
    held = sum(parameter.nbytes for parameter in model.parameters())
    found = {"load_s": loaded - began, "ready_s": ready - began, "model_bytes": held} | peak.stop()
    return found | {"kernels": choices() if who == "zoo" else {}}


def main(who: str, source: str, dtype: str) -> None:
    """Print what `measure` finds, or why there is nothing: {"error": ..., "exit_code": ...}."""
    try:
        found = measure(who, source, dtype)
    except Exception as error:
        told = " ".join(f"{'' if isinstance(error, ZooError) else f'{type(error).__name__}: '}{error}".split())
        found = {"error": told, "exit_code": getattr(error, "exit_code", 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4])
