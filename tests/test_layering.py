"""A file imports from smaller numbers only, and nothing imports itself the long way round.

The rule is read from the syntax trees, so an import inside a function counts too. An import under `if TYPE_CHECKING:`
never runs: its number counts, since it is a dependency all the same, but it makes no circle and needs no package.
"""

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("zoo", "weights", "benchmarks")

ANY = "*"
NONE = ""
BASICS = "zoo/blocks/norm.py zoo/blocks/rope.py zoo/blocks/linear.py zoo/blocks/stacked.py zoo/blocks/glu.py"

TENSORS = "torch einops"
COMMAND = "torch typer tabulate tqdm"
LOADER = f"{COMMAND} einops numpy safetensors huggingface_hub"
PAGE = "altair vl_convert jinja2 mistune"
REFERENCE = "tokenizers transformers matplotlib"


class Row(NamedTuple):
    """What holds for some files: every text is a list of words, and the first row that matches a path counts."""

    number: int
    files: str
    beside: str  # the files of the same number that these may import
    packages: str  # the third-party packages that these may import


# fmt: off
HOUSE = (
    Row(0, "zoo/errors.py zoo/interrupt.py",                             NONE,   ""),
    Row(0, "zoo/registry.py zoo/cost.py",                                ANY,    ""),
    Row(1, "zoo/step.py zoo/cache.py zoo/attend.py zoo/products.py",     ANY,    TENSORS),
    Row(1, "zoo/kernels.py zoo/watch.py zoo/inductor.py",                ANY,    "torch"),
    Row(2, "zoo/blocks/__init__.py",                                     ANY,    ""),
    Row(2, "zoo/blocks/*.py",                                            BASICS, TENSORS),
    Row(3, "zoo/decoder.py zoo/compiled.py zoo/replay.py",               ANY,    TENSORS),
    Row(3, "zoo/sampling.py zoo/tiny.py",                                ANY,    TENSORS),
    Row(0, "zoo/config_fields.py",                                       NONE,   ""),
    Row(3, "zoo/fields.py zoo/config.py zoo/layout.py zoo/published.py", ANY,    TENSORS),
    Row(4, "zoo/architectures/*.py",                                     NONE,   "torch"),
    Row(5, "zoo/catalog.py zoo/export.py zoo/__init__.py",               ANY,    "torch"),
    Row(5, "zoo/grammar.py zoo/remake.py zoo/listing.py zoo/plan.py",    ANY,    "torch"),
    Row(5, "zoo/diagram/*.py",                                           ANY,    "torch"),
    Row(5, "zoo/card.py zoo/trial.py zoo/terminal.py zoo/build.py",      ANY,    COMMAND),
    Row(6, "weights/parity*.py",                                         ANY,    f"{LOADER} {REFERENCE}"),
    Row(6, "weights/*.py",                                               ANY,    f"{LOADER} tokenizers jinja2 gguf"),
    Row(7, "benchmarks/peer*.py",                                        ANY,    f"{COMMAND} transformers"),
    Row(7, "benchmarks/gallery/*.py benchmarks/verbs/gallery.py",        ANY,    f"{COMMAND} {PAGE}"),
    Row(7, "benchmarks/*.py",                                            ANY,    COMMAND),
)
# fmt: on

# Nothing imports a command line: the module would hide the function of its name, and `python -m` would run it twice.
COMMANDS = "zoo/build.py weights/parity.py weights/generate.py */__main__.py"


class Import(NamedTuple):
    line: int
    target: str  # a file of the house, or the name of a third-party package
    runs: bool  # False under `if TYPE_CHECKING:`


def within(path: str, patterns: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns.split())


def row(path: str) -> Row | None:
    return next((row for row in HOUSE if within(path, row.files)), None)


def sources(root: Path) -> dict[str, Path]:
    return {p.relative_to(root).as_posix(): p for package in PACKAGES for p in sorted((root / package).rglob("*.py"))}


def statements(node: ast.AST, runs: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import below `node`, and whether it runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, runs
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for branch, branch_runs in ((child.body, False), (child.orelse, runs)):
                yield from statements(ast.Module(branch, []), branch_runs)
        else:
            yield from statements(child, runs)


def imports(path: str, files: dict[str, Path]) -> Iterator[Import]:
    """What one file imports, the standard library left out."""

    def module(name: str) -> str | None:
        stem = name.replace(".", "/")
        return next((file for file in (f"{stem}.py", f"{stem}/__init__.py") if file in files), None)

    for node, runs in statements(ast.parse(files[path].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:  # relative to the folder the file is in
                base = ".".join([*Path(path).parts[: -node.level], *filter(None, [node.module])])
            # `from zoo import cost` is the module; `from zoo import build` the function: a command is never imported.
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if (file := module(name)) and not within(file, COMMANDS) else base for name in inner]
        for name in dict.fromkeys(names):
            top = name.partition(".")[0]
            if top in PACKAGES:
                yield Import(node.lineno, module(name) or name, runs)
            elif top not in sys.stdlib_module_names:
                yield Import(node.lineno, top, runs)


def circle(graph: dict[str, list[str]]) -> list[str]:
    """The files of one circle of imports, or nothing."""
    done: set[str] = set()

    def walk(path: str, trail: list[str]) -> list[str]:
        if path in trail:
            return [*trail[trail.index(path) :], path]
        if path in done:
            return []
        done.add(path)
        return next((found for target in graph.get(path, []) if (found := walk(target, [*trail, path]))), [])

    return next((found for path in graph if (found := walk(path, []))), [])


def violations(root: Path) -> list[str]:
    """Every breach of the rule below `root`, one line each."""
    files = sources(root)
    found: list[str] = []
    graph: dict[str, list[str]] = {}
    for path in files:
        mine = row(path)
        if mine is None:
            found.append(f"{path}: has no number; give it a row in HOUSE, tests/test_layering.py")
            continue
        for line, target, runs in imports(path, files):
            where = f"{path}:{line} ({mine.number})"
            if target.partition("/")[0].partition(".")[0] not in PACKAGES:
                if runs and target not in mine.packages.split():
                    found.append(
                        f"{where} imports {target}: its row allows {mine.packages or 'the standard library only'}"
                    )
                continue
            theirs = row(target)
            if target not in files:
                found.append(f"{where} imports {target}: there is no such file")
            elif within(target, COMMANDS):
                found.append(f"{where} imports {target}: nothing imports a command line")
            elif theirs is not None and theirs.number > mine.number:
                found.append(f"{where} imports {target} ({theirs.number}): imports go to smaller numbers only")
            elif theirs is not None and theirs.number == mine.number and not within(target, mine.beside):
                found.append(f"{where} imports {target}: beside it, it may import {mine.beside or 'nothing'}")
            elif runs:
                graph.setdefault(path, []).append(target)
    if around := circle(graph):
        found.append(f"imports go in a circle: {' -> '.join(around)}")
    return found


def test_the_house_keeps_the_rule() -> None:
    files = sources(ROOT)
    assert {path.partition("/")[0] for path in files} == set(PACKAGES), "a package is missing, or was not scanned"
    assert not (found := violations(ROOT)), "\n".join(found)


# A small house that keeps the rule; each case below adds or replaces one file.
GOOD = {
    "zoo/__init__.py": "from zoo.catalog import spec\nfrom zoo.blocks import GQA\n",
    "zoo/errors.py": "",
    "zoo/cost.py": "import math\nfrom zoo.errors import Bad\n",
    "zoo/registry.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import nn\n",
    "zoo/attend.py": "import torch\n",
    "zoo/blocks/__init__.py": "from .gqa import GQA\nfrom .norm import RMSNorm\n",
    "zoo/blocks/norm.py": "import torch\nfrom zoo import cost\n",
    "zoo/blocks/gqa.py": "from zoo.attend import attend\nfrom . import norm\nfrom ..cost import Stored\n",
    "zoo/blocks/mla.py": "from zoo.attend import attend\n",
    "zoo/decoder.py": "from zoo.blocks import GQA\n",
    "zoo/architectures/__init__.py": "import pkgutil\n",
    "zoo/architectures/llama3.py": "from zoo.blocks import GQA\nfrom zoo.decoder import Decoder\n",
    "zoo/catalog.py": "from zoo import architectures\n",
    "zoo/build.py": "import typer\nfrom zoo.catalog import spec\n",
    "weights/__init__.py": "from zoo import build\n",
    "weights/parity_report.py": "def f():\n    import transformers\n",
    "benchmarks/__init__.py": "import zoo, weights\n",
}
BAD = {
    "upwards": ("zoo/attend.py", "from zoo.decoder import Decoder", "zoo/attend.py:1 (1) imports zoo/decoder.py (3)"),
    "upwards, relative": ("zoo/attend.py", "from .decoder import Decoder", "imports zoo/decoder.py (3)"),
    "upwards, in a function": (
        "zoo/attend.py",
        "def f():\n    import zoo.decoder",
        "zoo/attend.py:2 (1) imports zoo/dec",
    ),
    "upwards, for types": (
        "zoo/attend.py",
        "import typing\nif typing.TYPE_CHECKING:\n    import zoo.decoder",
        "zoo/attend.py:3 (1) imports zoo/decoder.py (3)",
    ),
    "the package itself": ("zoo/decoder.py", "import zoo", "imports zoo/__init__.py (5)"),
    "between blocks": (
        "zoo/blocks/mla.py",
        "from .gqa import GQA",
        "imports zoo/blocks/gqa.py: beside it, it may import",
    ),
    "between blocks, by the package": (
        "zoo/blocks/mla.py",
        "from . import GQA",
        "imports zoo/blocks/__init__.py: beside",
    ),
    "between architectures": ("zoo/architectures/qwen3.py", "from .llama3 import decoder", "it may import nothing"),
    "zoo on weights": ("zoo/catalog.py", "import weights", "imports weights/__init__.py (6)"),
    "weights on benchmarks": ("weights/load.py", "from benchmarks import table", "imports benchmarks/__init__.py (7)"),
    "torch at the bottom": ("zoo/cost.py", "import torch", "imports torch: its row allows the standard library only"),
    "the reference in zoo": (
        "zoo/catalog.py",
        "def f():\n    import transformers",
        "zoo/catalog.py:2 (5) imports transfor",
    ),
    "the reference in the loader": (
        "weights/load.py",
        "from transformers import AutoModel",
        "imports transformers: its",
    ),
    "a table in a block": (
        "zoo/blocks/mla.py",
        "from tabulate import tabulate",
        "imports tabulate: its row allows torch",
    ),
    "a command line": ("zoo/catalog.py", "from zoo.build import app", "nothing imports a command line"),
    "a circle": (
        "zoo/blocks/norm.py",
        "from .glu import GLU",
        "circle: zoo/blocks/norm.py -> zoo/blocks/glu.py -> zoo/bl",
    ),
    "no number": ("zoo/extra.py", "", "zoo/extra.py: has no number"),
    "no such file": ("zoo/catalog.py", "import zoo.nowhere", "imports zoo.nowhere: there is no such file"),
}


def house(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def test_a_house_that_keeps_the_rule_passes(tmp_path: Path) -> None:
    assert violations(house(tmp_path, GOOD)) == []


@pytest.mark.parametrize("case", BAD)
def test_a_breach_is_found(tmp_path: Path, case: str) -> None:
    path, text, message = BAD[case]
    found = violations(house(tmp_path, {**GOOD, "zoo/blocks/glu.py": "from .norm import RMSNorm\n", path: text}))
    assert len(found) == 1, found
    assert message in found[0]
