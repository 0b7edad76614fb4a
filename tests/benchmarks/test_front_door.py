"""The command `zoo`, in processes of its own: what it imports, and that it behaves as `python -m` does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.front_door import MODULES

ROOT = Path(__file__).parents[2]
# The script that pip makes of the entry point. With TELL it prints the imported modules in the end.
SCRIPT = """
import sys
from {module} import {function}
try:
    code = {function}()
except SystemExit as ended:
    code = ended.code
if "TELL" in __import__("os").environ:
    print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """The path of the script."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, entry),) = project["scripts"].items()
    module, _, function = entry.partition(":")
    script = tmp_path / name
    script.write_text(SCRIPT.format(module=module, function=function), encoding="utf-8")
    return script


def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"} | variables
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False)


def rooms(modules: str, top: str) -> set[str]:
    return {name for name in modules.split() if name.partition(".")[0] == top}


def test_without_a_verb_it_lists_the_verbs_and_imports_neither_torch_nor_the_zoo(zoo: Path) -> None:
    done = run(zoo, TELL="1")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE) == list(MODULES)
    assert not rooms(done.stderr, "torch") | rooms(done.stderr, "zoo")
    assert rooms(done.stderr, "benchmarks") == {"benchmarks", "benchmarks.front_door"}


def test_a_verb_imports_its_own_command_only(zoo: Path) -> None:
    done = run(zoo, "build", "--help", TELL="1")
    assert done.stdout.startswith("Usage: zoo build [OPTIONS] [MODEL]\n")
    assert rooms(done.stderr, "benchmarks") == {"benchmarks", "benchmarks.front_door"}
    assert not rooms(done.stderr, "weights")


def test_an_unknown_verb_is_refused_in_one_line(zoo: Path) -> None:
    done = run(zoo, "bulid")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: unknown verb 'bulid'; the verbs are {', '.join(MODULES)}\n"


def test_every_verb_is_a_module_to_run() -> None:
    for module, _ in MODULES.values():
        package = find_spec(module)
        assert package is not None, module
        runnable = find_spec(f"{module}.__main__") if package.submodule_search_locations else package
        assert runnable is not None
        assert runnable.origin is not None
        assert f'run(app, "python -m {module}"' in Path(runnable.origin).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["bench", "kv", "qwen3-0.6b"], 0),
        (["generate", "no/such/folder", "x", "--offline"], 3),
        (["parity", "--help"], 0),
    ],
)
def test_output_and_exit_code_are_those_of_the_module(words: list[str], code: int, zoo: Path) -> None:
    verb, *args = words
    module = MODULES[verb][0]
    there, here = run("-m", module, *args), run(zoo, *words)
    assert here.returncode == there.returncode == code
    assert here.stdout.split() == there.stdout.replace(f"python -m {module}", f"zoo {verb}").split()
    assert here.stderr == there.stderr


def test_an_unknown_option_is_an_error_under_the_name_that_was_typed(zoo: Path) -> None:
    done = run(zoo, "bench", "kv", "--no-such")
    assert done.returncode == 2
    assert done.stderr.endswith("(see zoo bench kv --help)\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_pipe_that_closes_early_is_no_error(zoo: Path) -> None:
    for verb in ([], ["build", "--list"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, str(zoo), *verb]
        with os.fdopen(write, "w") as closed:
            done = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=closed, stderr=subprocess.PIPE, check=False
            )
        assert (done.returncode, done.stderr) == (0, b"")
