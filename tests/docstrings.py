"""Refuses docstrings and help texts that open with a question word or with "Of".

A docstring is a sentence: its subject comes first, or it starts with a verb in the third person. `make check` and the
commit hook run `python tests/docstrings.py [FILE ...]`. It needs the standard library only.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("zoo", "weights", "benchmarks", "docs")
REFUSED = re.compile(
    r"((by|in|of|to|from|with|for|on|at) )?(what|which|whose|whom)\b|(of|where|when|how|why|who|as|the same)\b", re.I
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def opening_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of each docstring and of each `help=` argument."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
        elif isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


def refused(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the first line of each text in a file's source that opens with a refused word."""
    for line, text in opening_texts(ast.parse(source)):
        if REFUSED.match(text):
            yield line, text.splitlines()[0]


def problems(files: list[Path]) -> Iterator[str]:
    """Yields a line for each refused text of these files."""
    for file in sorted(files):
        path = file.relative_to(ROOT)
        if path.parts[0] in ROOMS:
            for line, text in refused(file.read_text(encoding="utf-8")):
                yield f"{path}:{line}: a question word or 'Of' opens the text: {text}"


def main(names: list[str]) -> int:
    """Checks the named files, or all files. Returns the exit code."""
    files = [Path(name).resolve() for name in names] or [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    found = list(problems(files))
    print(*found, sep="\n", end="\n" * bool(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
