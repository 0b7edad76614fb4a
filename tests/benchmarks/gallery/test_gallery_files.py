"""The files of a gallery, checked without a browser."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.__main__ import app
from benchmarks.analytic.models import NamedSpec, chosen, one
from benchmarks.commands.gallery import read_measured
from benchmarks.gallery import charts, files, learning_curves, timeline
from benchmarks.gallery.chart import FORMATS
from benchmarks.gallery.chart_tables import tables
from benchmarks.gallery.files import page
from benchmarks.gallery.learning_tables import learning_tables
from benchmarks.gallery.overview import Group, groups, typical
from tests.benchmarks.gallery.samples import MEASURED, packed, sample
from zoo.cli.runner import exit_code
from zoo.errors import MalformedError

pytestmark = pytest.mark.xdist_group("gallery")
LIMIT = 6 * 10**6
CHARTS = {**charts.CHARTS, **learning_curves.CHARTS}
MODELS = chosen([])
# Every kind of entry is there: the first architecture, ones compared with another here, several sizes of one.
FEW = [one(name) for name in ("gpt2-small", "llama3.1-8b", "llama3.2-1b", "deepseek-v3-671b", "gpt-oss-20b")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of few models, since its time grows with the square of their number."""
    out = tmp_path_factory.mktemp("gallery")
    files.write_gallery(out, FEW, MEASURED, images=True, learned=sample())
    return out


class _Links(HTMLParser):
    """The values of all attributes that make a page load or open something."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag in ("link", "use", "image")):
                self.loaded.append(value or "")
            elif name == "href":
                self.opened.append(value or "")


def test_page_is_small_and_self_contained(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT
    links = _Links()
    links.feed(text)
    assert [link for link in links.loaded if not link.startswith("data:")] == []
    assert [link for link in links.opened if not link.startswith("#")] == ["https://vega.github.io/vega/"]
    assert not re.search(r"@import|url\((?!['\"]?(data:|#))", text.split("<script>")[0])


def test_model_names_are_escaped() -> None:
    odd = """a"b'<i>&</script>"""
    text = page([one("smollm3"), NamedSpec(odd, one("qwen3").spec)])
    assert "What they learn" not in text, "there is no section without a comparison"
    assert "<i>" not in text
    assert text.count("</script>") == 2
    assert list(packed(text)["diagrams"]) == ["smollm3-3b", odd]
    assert "<i>" not in json.dumps(list(packed(text)["diagrams"].values()))


def test_list_is_complete_without_scripts(folder: Path) -> None:
    """Every architecture with its features, and how its structure differs from the one that it is compared with."""
    text = (folder / "index.html").read_text(encoding="utf-8").split("<script", 1)[0]
    assert "<noscript>" in text
    for entry in timeline.entries(FEW):
        assert f'id="{entry.group.name}"' in text
        assert all(sentence in html.unescape(text) for sentence in entry.added)
        assert all(f">{feature}</a>" in text for feature in entry.features)


def test_every_reference_in_the_page_has_a_target(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= ids
    named = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', text.split("<template")[0])
    assert {word for each in named for word in each.split()} <= ids


def test_page_holds_data_drawings_and_scripts(folder: Path) -> None:
    found = packed((folder / "index.html").read_text(encoding="utf-8"))
    assert {*found} == {"data", "specs", "diagrams", "swaps", "vega", "script"}
    assert [model["name"] for model in found["data"]["models"]] == list(found["diagrams"])
    assert {*found["specs"]} == {*CHARTS}


def test_every_table_is_a_csv_file(folder: Path) -> None:
    expected = tables(FEW, MEASURED["rows"]) | learning_tables(sample())
    assert {path.stem for path in (folder / "data").iterdir()} == set(expected)
    for name, rows in expected.items():
        with (folder / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            head, *saved = csv.reader(file)
        assert all(list(row) == head for row in rows)
        assert saved == [["" if value is None else str(value) for value in row.values()] for row in rows]


def test_every_chart_is_saved_as_images(folder: Path) -> None:
    assert {path.name for path in (folder / "charts").iterdir()} == {
        f"{name}.{kind}" for name in CHARTS for kind in FORMATS
    }
    for name, chart in CHARTS.items():
        svg = (folder / "charts" / f"{name}.svg").read_text(encoding="utf-8")
        assert chart.title in svg
        assert "var(--" not in svg, "an image cannot take colours from a page"
        assert (folder / "charts" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    kv = (folder / "charts" / "kv.svg").read_text(encoding="utf-8")
    assert all(f">{model.name}<" in kv for model in typical(FEW))


def test_one_model_represents_each_architecture() -> None:
    found = groups(MODELS)
    assert [group.name for group in found] == list(zoo.architectures.families())
    assert [model for group in found for model in group.models] == MODELS
    assert all(group.typical in group.models for group in found)
    assert typical([*MODELS[:1], replace(MODELS[0], name="mine")])[1].name == "mine"


@pytest.mark.parametrize("group", groups(MODELS), ids=lambda group: group.name)
def test_docstring_of_an_architecture_is_shown_whole(group: Group) -> None:
    """And it begins with the title and the source that ABOUT states."""
    doc = " ".join((zoo.architectures.families()[group.name].__doc__ or "").split())
    assert doc == group.new
    assert doc.startswith(f"{group.title} ({group.source})")


def test_crossings_are_where_another_cache_becomes_smaller() -> None:
    specs = {model.name: model.spec for model in MODELS}
    rows = tables(MODELS)["crossings"]
    assert len(rows) > 20
    for row in rows:
        smaller, larger = specs[row["smaller"]], specs[row["larger"]]
        assert smaller.kv_bytes(row["context"]) < larger.kv_bytes(row["context"])
        assert smaller.kv_bytes(row["context"] - 1) >= larger.kv_bytes(row["context"] - 1)


def call(*args: object) -> int:
    return exit_code(app, "python -m benchmarks", ["gallery", *map(str, args)])


def test_file_without_speeds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(MEASURED | {"rows": [{"table": "kv"}]}), encoding="utf-8")
    with pytest.raises(MalformedError, match=f"{re.escape(str(path))}: holds no speeds"):
        read_measured(path)


def test_errors_are_reported_before_anything_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--measured", "--learned"):
        assert call(option, tmp_path / "nowhere.json", "--out", tmp_path) == 3
        assert capsys.readouterr().err.startswith(f"error: cannot read {tmp_path}/nowhere.json")


def test_missing_extra_is_named(monkeypatch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    assert call("--out", tmp_path) == 3
    assert (
        capsys.readouterr().err
        == "error: this needs the package vl_convert; in the zoo's folder: pip install -e '.[gallery]'\n"
    )
