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
from weights import sources
from weights.formats import gguf_file, gguf_tokenizer, hf_folder, safetensors_folder, untrusted
from zoo.architectures import families
from zoo.cli.runner import exit_code
from zoo.errors import UsageError
from zoo.hf import config
from zoo.swaps.grammar import apply_swap

ROOT = Path(__file__).resolve().parents[1]
README, COSTS, MODELS = ROOT / "README.md", ROOT / "docs" / "costs.md", ROOT / "docs" / "models.md"
LEARNING, SWAPS = ROOT / "docs" / "learning.md", ROOT / "docs" / "swaps.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LEFT_OUT = "..."  # a line of a shown output that stands for one or more lines


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def run(command: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Returns the output of `zoo VERB ...` or `python -m MODULE ...`; `make compare` runs without measurements.

    An error's output is that on stderr.
    """
    first, second, *args = shlex.split(command.replace("make compare", "zoo bench --static"))
    module = MODULES[second][0] if first == "zoo" else args.pop(0)
    assert first == "zoo" or (first, second) == ("python", "-m")
    with warnings.catch_warnings():  # another test may have imported it; importing zoo.build would hide the function
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        app = runpy.run_module("benchmarks.__main__" if module == "benchmarks" else module)["app"]
    assert exit_code(app, f"python -m {module}", args) == code
    out, err = capsys.readouterr()
    return err if code else out


def lines(output: str) -> list[str]:
    """Returns the lines to compare: without blank lines and rules under table heads, and without what differs between
    machines (times, and the digits of rounding errors)."""
    output = re.sub(r"in\s+\S+\s+s:", "in ... s:", re.sub(r"differs\s+by\s+\S+\s+of", "differs by N of", output))
    words = (" ".join(line.split()) for line in output.splitlines())
    return [line for line in words if line.strip("- ")]


def is_shortened(shown: list[str], printed: list[str]) -> bool:
    """Whether the shown lines are the printed ones, in order, with lines omitted only where LEFT_OUT stands."""
    pattern = "".join(r"(.+\n)+" if line == LEFT_OUT else re.escape(f"{line}\n") for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def test_a_shortened_output_is_told_from_a_wrong_one() -> None:
    for shown in ("a b c", "a ... c", "a ...", "... c"):
        assert is_shortened(shown.split(), ["a", "b", "c"])
    for shown in ("b c", "a b", "a c", "a ... d", "c ... a", "b ..."):
        assert not is_shortened(shown.split(), ["a", "b", "c"])


OUTPUTS = [
    (page, *found)
    for page in (README, COSTS, MODELS, SWAPS)
    for found in re.findall(r"```console\n\$ (.*?)\n(.*?)```", text(page), re.DOTALL)
]


@pytest.mark.parametrize(
    ("page", "command", "shown"), OUTPUTS, ids=[f"{page.name}-{command}" for page, command, _ in OUTPUTS]
)
def test_the_output_shown_is_the_output(
    page: Path, command: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(command, capsys, code=UsageError.exit_code if shown.startswith("error: ") else 0)
    if LEFT_OUT in shown.splitlines():
        assert page == README
        assert is_shortened(lines(shown), lines(printed)), printed
    else:  # times of another length may break lines elsewhere
        assert " ".join(lines(shown)).split() == " ".join(lines(printed)).split()


def test_outputs_are_shown() -> None:
    assert {page for page, *_ in OUTPUTS} == {README, COSTS, MODELS, SWAPS}


SWAP_EXAMPLES = re.findall(r"^    (\S.*)$", text(SWAPS), re.MULTILINE)


@pytest.mark.parametrize("swap", [swap for line in SWAP_EXAMPLES for swap in re.split(r"\s{2,}", line)])
def test_every_example_is_a_swap(swap: str) -> None:
    """The swap is applied to a model with routed experts or, if it has no such block, to one without."""
    specs = [zoo.spec(name) for name in zoo.names()]
    plain, routed = (next(s for s in specs if any(e.mixture for e in s.layers) == wanted) for wanted in (False, True))
    try:
        apply_swap(plain, swap)
    except zoo.ZooError:
        apply_swap(routed, swap)


def test_the_commands_of_costs_run(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    (python -m benchmarks .*?)(?: +#.*)?$", text(COSTS), re.MULTILINE)
    assert commands
    for command in commands:
        assert run(command, capsys)


def test_measured_tables_have_todays_columns_and_legends() -> None:
    """Their figures are not compared, since they come from another machine and another day."""
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


LOADING = " ".join(text(ROOT / "docs" / "loading.md").split())


def test_the_limits_of_loading_are_those_of_the_code() -> None:
    phrases = [
        f"config.json above {untrusted.CONFIG_LIMIT // untrusted.MB} MB",
        f"an index above {untrusted.INDEX_LIMIT // untrusted.MB} MB",
        f"more than {untrusted.MAX_VALUES:,} values",
        f"longer than itself, or above {untrusted.HEADER_LIMIT // untrusted.MB} MB",
        f"above {untrusted.MAX_NAME_CHARACTERS} characters",
        f"above {config.MAX_LAYERS:,} layers",
        f"above {hf_folder.MAX_EXPERTS:,} experts",
        f"above 10^{len(str(hf_folder.MAX_PARAMETERS)) - 1} parameters",
        f"more than {gguf_file.MAX_TENSORS:,} tensors or {gguf_file.MAX_FIELDS:,} fields",
        f"version {' or '.join(map(str, gguf_file.VERSIONS))} |",
        f"more than {gguf_file.MAX_ENTRIES:,} entries",
        f"more than {gguf_file.MAX_LIST:,} entries or {gguf_file.MAX_LIST_BYTES // untrusted.MB} MB",
        f"a token above {gguf_tokenizer.MAX_TOKEN:,} characters",
        f"merge in more than {gguf_tokenizer.MAX_MERGES:,} ways",
    ]
    assert [phrase for phrase in phrases if phrase not in LOADING] == []


def test_the_files_fetched_are_those_of_the_code() -> None:
    fetched = re.search(r"\*\*What is fetched\*\*: (.*?) Nothing else", LOADING)
    assert fetched is not None
    named = {name for name in sources.SMALL_FILES if "template" not in name and name != safetensors_folder.INDEX}
    assert {word.strip(",") for word in fetched[1].split() if ".json" in word} == named
