"""The README and the pages of docs/: the output that they show is printed today, their examples run, their links lead
somewhere."""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
import warnings
from dataclasses import fields
from pathlib import Path

import pytest

import zoo
from benchmarks.analytic.models import one
from benchmarks.commands import costs
from benchmarks.front_door import MODULES
from benchmarks.measure import throughput_rows
from benchmarks.measure.benchmark_models import BenchmarkModel
from tests.benchmarks.fakes import MACHINE, fake_rows
from zoo.architectures import families
from zoo.cli.runner import exit_code

ROOT = Path(__file__).resolve().parents[1]
README, COSTS, MODELS = ROOT / "README.md", ROOT / "docs" / "costs.md", ROOT / "docs" / "models.md"
LEARNING = ROOT / "docs" / "learning.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LEFT_OUT = "..."  # a line of a shown output that stands for one or more lines


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the output of `zoo VERB ...` or `python -m MODULE ...`; `make compare` runs without measurements."""
    first, second, *args = shlex.split(command.replace("make compare", "zoo bench --static"))
    module = MODULES[second][0] if first == "zoo" else args.pop(0)
    assert first == "zoo" or (first, second) == ("python", "-m")
    with warnings.catch_warnings():  # another test may have imported it; importing zoo.build would hide the function
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        app = runpy.run_module("benchmarks.__main__" if module == "benchmarks" else module)["app"]
    assert exit_code(app, f"python -m {module}", args) == 0
    return capsys.readouterr().out


def lines(output: str) -> list[str]:
    """Lines to compare: without rules under table heads and blanks, and without what differs between machines: how long
    it took, and the digits of rounding errors."""
    output = re.sub(r"in\s+\S+\s+s:", "in ... s:", re.sub(r"differs\s+by\s+\S+\s+of", "differs by N of", output))
    words = (" ".join(line.split()) for line in output.splitlines())
    return [line for line in words if line.strip("- ")]


def is_shortened(shown: list[str], printed: list[str]) -> bool:
    """Whether the shown lines are the printed ones, in order, with nothing left out but where LEFT_OUT says so."""
    parts, part = [], list[str]()
    for line in shown:
        if line == LEFT_OUT:
            parts.append(part)
            part = []
        else:
            part.append(line)
    at = 0
    for number, each in enumerate([*parts, part]):
        places = [
            start for start in range(at, len(printed) - len(each) + 1) if printed[start : start + len(each)] == each
        ]
        if not places or (number == 0 and places[0] > 0):
            return False
        at = places[0] + len(each)
    return not part or at == len(printed)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("a b c", True),
        ("a ... c", True),
        ("a ...", True),
        ("... c", True),
        ("b c", False),  # nothing but LEFT_OUT leaves out the first line
        ("a b", False),
        ("a c", False),
        ("a ... d", False),
        ("c ... a", False),
        ("b ...", False),
    ],
)
def test_a_shortened_output_is_told_from_a_wrong_one(shown: str, expected: bool) -> None:
    assert is_shortened(shown.split(), ["a", "b", "c"]) == expected


OUTPUTS = [
    (page, *found)
    for page in (README, COSTS, MODELS)
    for found in re.findall(r"```console\n\$ (.*?)\n(.*?)```", text(page), re.DOTALL)
]


@pytest.mark.parametrize(
    ("page", "command", "shown"), OUTPUTS, ids=[f"{page.name}-{command}" for page, command, _ in OUTPUTS]
)
def test_the_output_shown_is_the_output(
    page: Path, command: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(command, capsys)
    if LEFT_OUT in shown.splitlines():
        assert page == README
        assert is_shortened(lines(shown), lines(printed)), printed
    else:  # times of another length may break lines elsewhere
        assert " ".join(lines(shown)).split() == " ".join(lines(printed)).split()


def test_outputs_are_shown() -> None:
    assert {page for page, *_ in OUTPUTS} == {README, COSTS, MODELS}


def test_the_commands_of_costs_run(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    (python -m benchmarks .*?)(?: +#.*)?$", text(COSTS), re.MULTILINE)
    assert commands
    for command in commands:
        assert run(command, capsys)


def test_measured_tables_have_todays_columns_and_legends() -> None:
    """Their figures are those of another machine and another day."""
    page = " ".join(text(ROOT / "docs" / "benchmarks.md").split())
    rows = fake_rows([BenchmarkModel(one("gemma3-270m"))])
    beside = [*rows, *(row | {"implementation": "transformers", "mode": "sdpa", "ratio": 1.0} for row in rows)]
    speeds, limits = (of(beside, MACHINE) for of in (throughput_rows.speeds, throughput_rows.limits))
    trained = [row | {"phase": "train", "test": "train 8x256", "mbu": None} for row in beside]
    training = (of(trained, MACHINE) for of in (throughput_rows.speeds, throughput_rows.limits))
    shown = [costs.tiny_throughput_table(rows), speeds, limits, *training]
    for table in shown:  # what depends on the machine, or on what happened, is left out
        assert table.title in page
        assert all(column.header in page for column in table.columns)
        fixed = [
            line
            for line in table.legend
            if not re.search(r"Medians|threads|Harness|cores|^[~!c]:|GiB|MiB|is not known|^kernels", line)
        ]
        assert len(fixed) > 1
        assert all(line in page for line in fixed)


@pytest.mark.parametrize(
    ("page", "least"), [(README, 9), (MODELS, 15), (LEARNING, 40)], ids=["README", "models", "learning"]
)
def test_the_examples_print_what_they_say(page: Path, least: int) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried >= least
    assert failed == 0


def test_the_glossary_explains_fields_that_exist() -> None:
    """In its tables of specs, every word of the first column is a field."""
    known = {field.name for kind in zoo.Spec.kinds.values() for field in fields(kind)}
    specs = text(ROOT / "docs" / "glossary.md").partition("## What it costs")[0]
    words = {word for row in re.findall(r"^\| (`.*?) \|", specs, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)}
    assert len(words) > 40
    assert words <= known


def test_the_readme_counts_architectures_and_sizes() -> None:
    words = re.findall(r"\b(Thirty-\w+) architectures", text(README))
    count = 30 + ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"].index(words[0][7:])
    assert len(words) == 2
    assert words[0] == words[1]
    assert count == len(families())
    assert re.findall(r"in (\d+)\s+published\s+sizes", text(README)) == [str(len(zoo.names()))]


def test_the_readme_compares_two_caches() -> None:
    """Gemma's windows are full at 1,024 tokens, and its cache is the smaller one from 8,875 tokens on."""
    gemma, llama = zoo.spec("gemma3-27b"), zoo.spec("llama3.1-8b")
    for figure in ("496 KiB", "windows of 1,024 tokens", "416 MiB and 80 KiB", "128 KiB", "from 8,875 tokens on"):
        assert figure in " ".join(text(README).split())
    assert all(gemma.kv_bytes(tokens) == tokens * 496 * 2**10 for tokens in (1, 1_023, 1_024))
    assert all(gemma.kv_bytes(tokens) == 416 * 2**20 + tokens * 80 * 2**10 for tokens in (1_024, 1_025, 32_768))
    assert all(llama.kv_bytes(tokens) == tokens * 128 * 2**10 for tokens in (1, 32_768))
    assert [gemma.kv_bytes(tokens) < llama.kv_bytes(tokens) for tokens in (8_874, 8_875)] == [False, True]


def test_the_readme_shows_every_verb_of_the_command() -> None:
    rows = re.findall(r"^\| `zoo (\w+).*?` \| `(\S+)` \|", text(README), re.MULTILINE)
    assert dict(rows) == {verb: module for verb, (module, _) in MODULES.items()}


def test_the_readme_names_every_dependency() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'^  "(\w+)', project.partition("\ndependencies = [")[2].partition("\n]")[0], re.MULTILINE)
    assert len(needed) >= 8
    assert re.findall(r"^\| (\w+) \|", text(README).partition("## What it depends on")[2], re.MULTILINE)[1:] == needed


def test_the_index_lists_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text(ROOT / "docs" / "README.md")))
    assert linked == {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text(page)):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", text(file), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target
