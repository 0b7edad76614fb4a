"""Refuses docstrings and help texts that open with a question word or with "Of": `python tests/docstrings.py [FILE ...]`.

A docstring is a sentence: its subject comes first, or it starts with a verb in the third person.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("zoo", "weights", "benchmarks", "docs")
REFUSED = re.compile(
    r"((by|in|of|to|from|with|for|on|at) )?(what|which|whose|whom)\b|(of|where|when|how|why|who|the same|as)\b", re.I
)
# Folders whose docstrings are still to be rewritten. The list only shrinks.
UNCHECKED = ("benchmarks", "docs", "zoo/architectures", "zoo/blocks", "zoo/core", "zoo/diagram", "zoo/model", "zoo/swaps")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def opening_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of each docstring and of each `help=` argument."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
        if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


def refused(file: Path) -> Iterator[str]:
    """Yields a line for each text of a file that opens with a refused word."""
    for line, text in opening_texts(ast.parse(file.read_text(encoding="utf-8"))):
        if found := REFUSED.match(text):
            yield f"{file.relative_to(ROOT)}:{line}: opens with {found[0]!r}: {text.splitlines()[0]}"


def is_checked(file: Path) -> bool:
    """Whether a file is in a room and not in a folder that is still to be rewritten."""
    path = file.relative_to(ROOT)
    return path.parts[0] in ROOMS and not any(path.is_relative_to(folder) for folder in UNCHECKED)


def main(names: list[str]) -> int:
    """Checks the named files, or all of them, and returns the exit code."""
    files = [Path(name).resolve() for name in names] or [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    found = [line for file in sorted(files) if is_checked(file) for line in refused(file)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
