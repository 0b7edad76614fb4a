"""The page of measured speeds: its sections are what the kept documents say, and files are gathered by processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from benchmarks import performance
from benchmarks.performance import EARLIER, FOLDER, PAGE, gather, kept, page
from tests.benchmarks.output.test_performance_section import MACHINE, speed
from zoo.errors import MalformedError, NotAvailable

SAMPLES = sorted(FOLDER.glob("*.json"))


def document(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def measured(*rows: dict, **machine: object) -> dict:
    return {"schema_version": 1, "machine": MACHINE | machine, "complete": True, "rows": list(rows)}


def put(file: Path, content: object) -> Path:
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_the_page_shows_the_kept_documents() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = page(text, {slug: document(file) for slug, file in kept().items()})
    assert shown == text, "run python -m benchmarks.performance"


def test_every_processor_has_its_section_and_earlier_samples_have_none() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert kept()
    assert EARLIER not in kept()
    assert all(f"<!-- measured: {slug} -->" in text for slug in kept())
    assert f"measured: {EARLIER}" not in text


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.name)
def test_the_kept_documents_follow_the_schema(file: Path) -> None:
    Draft202012Validator(document(PAGE.parent / "benchmarks.schema.json")).validate(document(file))


def test_documents_are_gathered_under_the_first_one(tmp_path: Path) -> None:
    tests = ("a", "b", "c", "d")
    rows = [speed("zoo", "eager", 1.0, test=test) for test in tests]
    files = [put(tmp_path / f"{n}.json", measured(*rows[2 * n : 2 * n + 2], commit=f"c{n}")) for n in range(2)]
    assert gather(files) == measured(*rows, commit="c0")
    put(files[1], measured(*rows[2:]) | {"complete": False})
    assert gather(files)["complete"] is False


def test_a_test_that_was_measured_again_is_the_last_files(tmp_path: Path) -> None:
    """As a whole: rounds of two runs are no pairs."""
    ceiling = {"table": "ceilings", "kind": "bandwidth"}
    first = measured(speed("zoo", "eager", 1.0), speed("transformers", "sdpa", 2.0), ceiling)
    again = measured(speed("zoo", "eager", 3.0), ceiling)
    found = gather([put(tmp_path / "0.json", first), put(tmp_path / "1.json", again)])
    assert found["rows"] == [ceiling, *again["rows"]]


@pytest.mark.parametrize("other", [{"cpu": "Another"}, {"isa": ["avx2"]}, {"torch": "2.99"}, {"cores": 64}])
def test_documents_of_two_processors_are_not_gathered(other: dict, tmp_path: Path) -> None:
    files = [put(tmp_path / "0.json", measured()), put(tmp_path / "1.json", measured(**other))]
    with pytest.raises(MalformedError, match=f"1.json: {next(iter(other))} is "):
        gather(files)


def test_kernels_of_all_documents_are_kept(tmp_path: Path) -> None:
    chosen = [{"kernels": {"a": "plain"}, "kernels_set": None}, {"kernels": {"b": "gemv"}, "kernels_set": None}]
    files = [put(tmp_path / f"{n}.json", measured(**each)) for n, each in enumerate(chosen)]
    machine = gather(files)["machine"]
    assert (machine["kernels"], machine["kernels_set"]) == ({"a": "plain", "b": "gemv"}, None)
    put(files[1], measured(**chosen[1] | {"kernels_set": "plain"}))
    with pytest.raises(MalformedError, match="different ZOO_KERNELS"):
        gather(files)
    put(files[0], measured())
    assert gather(files[:1])["machine"] == MACHINE


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [1], "machine": {}}', '{"rows": [], "machine": 1}'])
def test_a_file_that_holds_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(MalformedError, match="not a document"):
        gather([tmp_path / "x.json"])
    with pytest.raises(NotAvailable, match="cannot read"):
        gather([tmp_path / "nowhere.json"])


def test_sections_are_renewed_added_and_removed_and_prose_stays() -> None:
    first = page("top\n\n<!-- measured: a -->\nold\n<!-- end -->\n\nprose\n", {"a": measured(cpu="A")})
    assert first.startswith("top\n\n<!-- measured: a -->\n## A, AVX-512\n")
    assert first.endswith("\n<!-- end -->\n\nprose\n")
    assert "old" not in first
    both = page(first, {"a": measured(cpu="A"), "b": measured(cpu="B")})
    assert both.index("## A,") < both.index("## B,") < both.index("prose")
    assert page(both, {"a": measured(cpu="A"), "b": measured(cpu="B")}) == both
    assert "## A" not in page(both, {"b": measured(cpu="B")})
    assert "<!-- measured: a -->" in page("top\n", {"a": measured()})


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(performance, "FOLDER", tmp_path / "page")
    performance.PAGE.write_text("before\n<!-- measured: a-1 -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")


@pytest.mark.usefixtures("_elsewhere")
def test_writing_gathers_first_where_files_are_named(tmp_path: Path) -> None:
    file = put(tmp_path / "one.json", measured(speed("zoo", "eager", 20.0)))
    assert performance.main(["--processor", "a-1", str(file)]) == 0
    text = performance.PAGE.read_text(encoding="utf-8")
    assert "50%" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert document(performance.FOLDER / "a-1.json")["rows"] == [speed("zoo", "eager", 20.0)]
    performance.PAGE.write_text(text.replace("50%", "51%"), encoding="utf-8")
    assert performance.main([]) == 0
    assert performance.PAGE.read_text(encoding="utf-8") == text


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x.json"], "go together"),
        (["--processor", "a"], "go together"),
        (["--processor", "../a", "x.json"], "lower-case words"),
        (["--processor", EARLIER, "x.json"], "lower-case words"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        performance.main(arguments)
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("_elsewhere")
def test_a_file_that_is_not_there_is_one_line_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = performance.PAGE.read_text(encoding="utf-8")
    assert performance.main(["--processor", "a-1", "nowhere.json"]) == NotAvailable.exit_code
    assert capsys.readouterr().err == "error: cannot read nowhere.json: No such file or directory\n"
    assert performance.PAGE.read_text(encoding="utf-8") == before
    assert not performance.FOLDER.exists()
