"""Runs: what defines one, what came of it, and the folder that keeps each as a file from the moment it ends.

A run is named by the hash of everything that decides its figures: the spec, the task, the learning rate, the seed, the
sizes of its steps, the text and the code. A run that differs in any of them is another run, so figures of different
data or code are never put side by side, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.errors import MalformedError, NotAvailable
from zoo.model.decoder import Decoder
from zoo.new_files import write_file
from zoo.training.text.tokens import Split

SCHEMA = 1  # of the kept files
TEXT = "text"
ROOT = Path(zoo.__file__).parents[1]
# What decides the figures of a run; the rest of the code only chooses runs and shows them.
CODE = (
    "zoo/registry.py",
    "zoo/core",
    "zoo/blocks",
    "zoo/model",
    "zoo/training",
    "benchmarks/learning/tasks.py",
    "benchmarks/learning/training.py",
)


@cache
def code_hash() -> str:
    """The hash of the code that decides the figures of a run."""
    digest = hashlib.sha256()
    for top in CODE:
        path = ROOT / top
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """One training: `steps` steps of `batch` sequences of `context` tokens (of the task's own lengths, where the task
    is synthetic), evaluated on `split`: the held-out text, or the tuning text that only learning rates are chosen by.
    `data` is the hash of the text, empty for synthetic tasks; `code` that of the code."""

    spec: Decoder
    task: str
    learning_rate: float
    seed: int
    steps: int
    batch: int
    context: int
    data: str = ""
    split: Split = "heldout"
    code: str = field(default_factory=code_hash)

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the figures, as JSON has it."""
        facts = {each: getattr(self, each) for each in self.__dataclass_fields__}
        return facts | {"spec": repr(self.spec), "torch": torch.__version__}

    @property
    def name(self) -> str:
        """The hash of the key, which names its file."""
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def tokens(self) -> int:
        """Tokens that it trains on, at most."""
        return self.steps * self.batch * self.context


@dataclass(frozen=True)
class Point:
    """An evaluation during training, after so many tokens, training FLOPs and seconds of training."""

    tokens: int
    flops: int
    seconds: float
    bits_per_byte: float


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its `figures` by name (bits per byte, or the accuracy at each size of the task), its `curve`
    (of text), and the speed of its training steps alone. `diverged` says where the loss became NaN; there are no
    figures then."""

    figures: dict[str, float]
    curve: tuple[Point, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    diverged: str | None = None


class RunStore:
    """The runs kept in a folder, one JSON file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotAvailable(f"--runs {folder}: {error.strerror}") from error

    def path(self, run: Run) -> Path:
        """The file of a run, whether or not it is there."""
        return self.folder / f"{run.name}.json"

    def load(self, run: Run) -> Outcome | None:
        """What came of a run; None if it has not ended. Raises MalformedError for a file that is not of this run."""
        path = self.path(run)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA or document["key"] != json.loads(json.dumps(run.key)):
                raise ValueError("it holds another run")
            outcome = Outcome(**document["outcome"])
            return replace(outcome, curve=tuple(Point(**point) for point in outcome.curve))  # type: ignore[arg-type]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotAvailable(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedError(f"{path} is not a kept run ({error}); delete it to have the run made again") from error

    def save(self, run: Run, outcome: Outcome) -> None:
        """Keep what came of a run: the whole file or none of it. Raises NotAvailable if it cannot be written."""
        text = json.dumps({"schema": SCHEMA, "key": run.key, "outcome": asdict(outcome)}, indent=1)
        write_file(self.path(run), f"{text}\n".encode())

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """Those that have not ended, in their order and each once."""
        return [run for run in dict.fromkeys(runs) if self.load(run) is None]
