"""CONTRIBUTING.md's map: every path and every name in it exists, and no room is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.walks import written

ROOT = Path(__file__).parents[1]
TOPS = ("zoo", "weights", "benchmarks")
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAP = re.findall(r"^\| .+ \| `(\S+\.py)` \| (.+) \|$", TEXT, re.MULTILINE)


def rooms() -> list[str]:
    """The paths in the tree of rooms, in its order."""
    tree = TEXT.partition("## Rooms")[2].partition("    zoo/")
    paths, parent = list[str](), ""
    for line in (tree[1] + tree[2]).partition("\n\n")[0].splitlines():
        indent, names = len(line) - len(line.lstrip()), re.split(r"\s{2,}", line.strip())[0].split()
        parent = names[0] if indent == 4 else parent
        paths += names if indent == 4 else [parent + name for name in names]
    return paths


def defined(file: Path) -> set[str]:
    """The functions, methods and classes of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_every_row_of_the_map_is_read() -> None:
    rows = TEXT.partition("## Where is what")[2].partition("\n## ")[0].count("\n| ") - 1  # the head
    assert len(MAP) == rows > 0


@pytest.mark.parametrize(("path", "names"), MAP)
def test_every_path_and_name_in_the_map_exists(path: str, names: str) -> None:
    words = re.findall(r"`(\w+)`", names)
    assert words
    assert set(words) <= defined(ROOT / path)


def test_every_room_exists_and_is_in_the_tree() -> None:
    told = rooms()
    assert all((ROOT / path).exists() for path in told), [path for path in told if not (ROOT / path).exists()]
    packages = {f"{file.parent.relative_to(ROOT)}/" for top in TOPS for file in (ROOT / top).rglob("__init__.py")}
    assert packages <= set(told)


def test_the_walks_are_those_of_the_code() -> None:
    assert written(TEXT) == TEXT, "the code takes other ways: `python -m tests.walks` writes them into CONTRIBUTING.md"


def test_every_path_in_the_text_exists_or_is_one_to_write() -> None:
    paths = set(re.findall(r"`((?:zoo|weights|benchmarks|tests|docs)/[\w./-]+)`", TEXT))
    written = {"zoo/blocks/min_gru.py", "zoo/architectures/olmoe.py", "tests/zoo/blocks/test_min_gru.py"}
    written |= {f"tests/data/{folder}/olmoe.json" for folder in ("published", "kv_reference")}
    assert paths
    assert {path for path in paths if not (ROOT / path).exists()} <= written


def test_no_file_uses_a_private_name_of_another() -> None:
    """A file does not import a private name, nor access a private attribute that only another file of the project
    defines."""
    trees = {
        file: [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
        for top in ("zoo", "weights", "benchmarks")
        for file in (ROOT / top).rglob("*.py")
    }
    own = {file: {name for node in nodes if (name := _defines(node))} for file, nodes in trees.items()}
    known = set[str]().union(*own.values())
    for file, nodes in trees.items():
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        tops = [node for node in imports if (node.module or "").partition(".")[0] in ("zoo", "weights", "benchmarks")]
        used = {each.name for node in tops for each in node.names}
        used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        found = {name for name in used & known - own[file] if name[0] == "_" != name[:2][-1]}
        assert not found - OF_TORCH, f"{file}: {found}"


OF_TORCH = {"_parameters"}  # of torch's modules, and by chance a name of ours


def _defines(node: ast.AST) -> str:
    """The name that a piece of code defines, if it does."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.id if isinstance(node, ast.Name) else node.attr
    return ""
