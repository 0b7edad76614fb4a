"""The files that a token and a folder go through, traced: `python -m tests.walks` writes them into CONTRIBUTING.md.

A walk lists each file in the order in which its first function runs, with the functions that run there first. Each run
is traced the second time: imports and cached results are not part of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch

import weights
import zoo

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [ROOT / name for name in ("zoo", "weights", "benchmarks")]
PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- walks: `python -m tests.walks` writes them -->\n", "<!-- end of walks -->\n"
MODEL = "qwen3-0.6b"
SHOWN = 2  # functions per file


def traced(run: Callable[[], object]) -> dict[str, list[str]]:
    """Returns the files of the project in which functions run, in order, each with its functions in order."""
    walk: dict[str, list[str]] = {}

    def enter(frame: FrameType, event: str, argument: Any) -> None:
        code, path = frame.f_code, Path(frame.f_code.co_filename)
        if event == "call" and any(path.is_relative_to(room) for room in ROOMS) and "<" not in code.co_qualname:
            names = walk.setdefault(path.relative_to(ROOT).as_posix(), [])
            if code.co_qualname not in names:
                names.append(code.co_qualname)

    run()
    sys.setprofile(enter)
    try:
        run()
    finally:
        sys.setprofile(None)
    return walk


def token_walk() -> dict[str, list[str]]:
    """Returns the walk of one decoded token to its logits, eager and on the CPU."""
    model = zoo.build(MODEL, tiny=True)
    cache = model.new_cache(1, 8)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), cache)
        return traced(lambda: model(torch.tensor([[4]]), cache))


def folder_walk() -> dict[str, list[str]]:
    """Returns the walk of a folder in Hugging Face layout to a model."""
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        weights.save(zoo.build(MODEL, tiny=True), folder)
        return traced(lambda: weights.load(folder))


def drawn(walk: dict[str, list[str]]) -> str:
    """Returns a walk as lines of a Markdown code block: file and functions."""
    width = max(map(len, walk))
    rows = [f"    {file:{width}}  {', '.join(names[:SHOWN])}" for file, names in walk.items()]
    return "\n".join(rows)


def section() -> str:
    """Returns the text of both walks."""
    token, folder = token_walk(), folder_walk()
    return (
        f"A decoded token of `{MODEL}` goes through {len(token)} files to its logits (`model(token, cache)`):\n\n"
        f"{drawn(token)}\n\n"
        f"A folder of `{MODEL}` goes through {len(folder)} files to a model (`weights.load(folder)`):\n\n"
        f"{drawn(folder)}\n"
    )


def written(page: str) -> str:
    """Returns the page with today's walks."""
    return re.sub(f"(?<={re.escape(START)}).*(?={re.escape(END)})", lambda _: section(), page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
