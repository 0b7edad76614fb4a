"""docs/swaps.md shows what its commands print."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

import zoo
from zoo.cli.runner import exit_code
from zoo.swaps.grammar import apply_swap

PAGE = (Path(__file__).parents[1] / "docs" / "swaps.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, re.DOTALL))
WRITTEN = re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)


def words(text: str) -> str:
    """Without what differs from machine to machine: how long it took, and with it where lines break."""
    return re.sub(r"in \S+ s:", "in ... s:", " ".join(text.split()))


@pytest.mark.parametrize("command", SHOWN)
def test_the_output_shown_is_the_output(capsys, command) -> None:
    python, m, module, *args = shlex.split(command)
    assert (python, m, module) == ("python", "-m", "zoo.build")
    code = exit_code(runpy.run_module(module)["app"], "python -m zoo.build", args)
    out, err = capsys.readouterr()
    assert words(out if code == 0 else err) == words(SHOWN[command])


@pytest.mark.parametrize("text", [swap for line in WRITTEN for swap in re.split(r"\s{2,}", line)])
def test_every_example_is_a_swap(text) -> None:
    """On a model with routed experts, else on one without, since not each block is in each."""
    routed, plain = (
        next(
            spec for spec in map(zoo.spec, zoo.names()) if any(node.role == "router" for node in spec.walk()) == wanted
        )
        for wanted in (True, False)
    )
    try:
        apply_swap(plain, text)
    except zoo.ZooError:
        apply_swap(routed, text)
