"""Ctrl-C while a command starts or ends, in separate processes and with the real signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.presets import split
from zoo.cli import interrupt, runner

ROOT = Path(__file__).parents[3]
FILES = (file for package in interrupt.PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
COMMANDS = [name for file in FILES for name in re.findall(r'\brun\(app, "python -m (.*?)"', file.read_text("utf-8"))]

# Python imports this file at its start. The moment is a module's import, which the process interrupts by itself. The
# signal comes within exec(), as where a dataclass is made.
START = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            sys.meta_path.remove(self)
            exec("os.kill(os.getpid(), signal.SIGINT)")

signal.signal(signal.SIGINT, signal.{handler})  # a shell may have told it to ignore them
sys.meta_path.insert(0, Finder())
"""


def interrupted(
    folder: Path, moment: str, *words: str, handler: str = "default_int_handler"
) -> subprocess.CompletedProcess[str]:
    """Runs a Python command line, which is interrupted when it first imports the module `moment`."""
    (folder / "sitecustomize.py").write_text(START.format(moment=moment, handler=handler), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_every_installed_package_is_in_packages() -> None:
    """Each of them has a command, so the tests below cover it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(interrupt.PACKAGES)
    assert {name.partition(".")[0] for name in COMMANDS} == set(interrupt.PACKAGES)


@pytest.mark.parametrize("moment", split(["torch", "torch.nn", "zoo.cli.runner"], ["torch.nn"]))
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_interrupted_during_its_imports_prints_one_line(command: str, moment: str, tmp_path: Path) -> None:
    done = interrupted(tmp_path, moment, "-m", command, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("verb", ["build", "bench", "generate"])
def test_the_command_zoo_is_interrupted_in_one_line(verb: str, tmp_path: Path) -> None:
    """One verb of each package is run, by a script like pip's."""
    script = tmp_path / "zoo"
    script.write_text("import sys; from benchmarks.front_door import main; sys.exit(main())", encoding="utf-8")
    for moment in ("torch", "zoo.cli.runner"):
        done = interrupted(tmp_path, moment, str(script), verb, "--help")
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_an_import_within_a_command_is_interrupted_in_one_line(tmp_path: Path) -> None:
    done = interrupted(tmp_path, "huggingface_hub", "-m", "weights.generate", "org/name", "text")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("words", [["-c", "import zoo"], ["-m", "tool.command"]])
def test_a_program_that_imports_the_zoo_keeps_its_handler(words: list[str], tmp_path: Path) -> None:
    """This includes a package that imports the zoo while Python looks for the package's command."""
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__init__.py").write_text("import zoo", encoding="utf-8")
    (tmp_path / "tool" / "command.py").write_text("", encoding="utf-8")
    done = interrupted(tmp_path, "torch", *words)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    assert "error: interrupted" not in done.stderr


def test_ignored_interrupts_stay_ignored(tmp_path: Path) -> None:
    done = interrupted(tmp_path, "torch", "-m", "zoo.build", "--help", handler="SIG_IGN")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("argv", "original", "module"),
    [
        (["-m"], ["python", "-m", "zoo.build"], "zoo.build"),
        (["-m", "qwen3", "-m"], ["python", "-W", "ignore", "-m", "zoo.build", "qwen3", "-m"], "zoo.build"),
        (["-m", "x"], ["python", "-mzoo.build", "x"], "zoo.build"),
        (["-m", "x"], ["python", "-Im", "zoo.build", "x"], "zoo.build"),
        (["/home/zoo/build.py", "x"], ["python", "-m", "zoo.build", "x"], ""),
        (["-c"], ["python", "-c", "import zoo"], ""),
        ([""], ["python"], ""),
        ([], [], ""),
    ],
)
def test_command_is_the_module_that_python_looks_for(
    argv: list[str], original: list[str], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert interrupt.command() == module


def test_a_command_called_in_a_program_keeps_the_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt.raised():
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before
    assert runner.EXIT_CODE == 130
