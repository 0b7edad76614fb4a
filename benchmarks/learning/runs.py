"""Runs: their definition, their outcomes, and the folder that stores each finished run as a file.

A run is named by the hash of everything that determines its figures: the spec, the task, the learning rate, the seed,
the sizes of its steps, the text and the code. A run that differs in any of them has another name. So figures of
different data or code are never compared, and the same command resumes an interrupted comparison.
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

SCHEMA = 1  # version of the stored files' format
TEXT = "text"
ROOT = Path(zoo.__file__).parents[1]
# Code that determines the figures of a run; the rest of the code only chooses runs and shows them.
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
    """Returns the hash of all code that affects a run's figures."""
    digest = hashlib.sha256()
    for top in CODE:
        path = ROOT / top
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """One training run: `steps` steps of `batch` sequences of `context` tokens. A synthetic task sets its own lengths.

    `split`: the part of the text for evaluation, held-out or tuning. Only the choice of learning rates uses the tuning
    part. `data`: the hash of the text, empty for synthetic tasks. `code`: the hash of the code.
    """

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
        """Everything that determines the figures, as JSON."""
        facts = {each: getattr(self, each) for each in self.__dataclass_fields__}
        return facts | {"spec": repr(self.spec), "torch": torch.__version__}

    @property
    def name(self) -> str:
        """The hash of the key, which names the run's file."""
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def tokens(self) -> int:
        """The maximum number of training tokens."""
        return self.steps * self.batch * self.context


@dataclass(frozen=True)
class Point:
    """An evaluation during training, after this many tokens, training FLOPs and seconds of training."""

    tokens: int
    flops: int
    seconds: float
    bits_per_byte: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: its figures, its curve, and the tokens and seconds of its training steps alone.

    `figures`: {name: bits per byte, or accuracy at one size of the task}. `curve`: evaluations during training on text.
    `diverged`: the message of a run whose loss became NaN; such a run has no figures.
    """

    figures: dict[str, float]
    curve: tuple[Point, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    diverged: str | None = None


class RunStore:
    """The runs that are stored in a folder, one JSON file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotAvailable(f"--runs {folder}: {error.strerror}") from error

    def path(self, run: Run) -> Path:
        """Returns the path of a run's file, whether or not it exists."""
        return self.folder / f"{run.name}.json"

    def load(self, run: Run) -> Outcome | None:
        """Returns the stored outcome of a run, or None. Raises MalformedError for a file that holds another run."""
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
        """Writes the outcome of a run, as a whole file or not at all. Raises NotAvailable if writing fails."""
        text = json.dumps({"schema": SCHEMA, "key": run.key, "outcome": asdict(outcome)}, indent=1)
        write_file(self.path(run), f"{text}\n".encode())

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """Returns the runs without a stored outcome, in their order and without duplicates."""
        return [run for run in dict.fromkeys(runs) if self.load(run) is None]
