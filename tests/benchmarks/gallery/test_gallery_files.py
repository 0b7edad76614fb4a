"""What a gallery's folder holds, as far as no browser is needed to see it."""

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
from benchmarks.analytic.models import Model, chosen, one
from benchmarks.commands.gallery import read_measured
from benchmarks.gallery import chart_tables, charts, files, groups
from benchmarks.gallery.page import page
from tests.benchmarks.gallery.conftest import SHOWN
from tests.benchmarks.gallery.speeds import MEASURED
from zoo.cli.runner import exit_code
from zoo.errors import MalformedError, NotAvailable

pytestmark = pytest.mark.xdist_group("gallery")
LIMIT = 4 * 10**6
MODELS = chosen([])


class _Links(HTMLParser):
    """Every attribute by which a page loads or opens something."""

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


def test_the_page_is_small_and_needs_nothing_else(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT
    links = _Links()
    links.feed(text)
    assert [link for link in links.loaded if not link.startswith("data:")] == []
    assert [link for link in links.opened if not link.startswith("#")] == ["https://vega.github.io/vega/"]
    assert not re.search(r"@import|url\((?!['\"]?(data:|#))", text.split("<script>")[0])


def test_a_folder_of_any_name_is_on_the_page_as_text() -> None:
    odd = """a"b'<i>&</script>"""
    text = page([one("smollm3"), Model(odd, one("qwen3").spec)]).html
    assert "<i>" not in text
    assert text.count("</script>") == 4
    names = [html.unescape(name) for name in re.findall(r'<template data-diagram="(.*?)">', text)]
    assert names == ["smollm3-3b", odd]


def test_every_link_in_the_page_leads_somewhere(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= ids
    named = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', text.split("<template")[0])
    assert {word for each in named for word in each.split()} <= ids


def test_the_data_is_what_a_script_element_may_hold(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    for name in ("data", "specs"):
        (held,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', text)
        assert json.loads(held)


def test_every_table_is_a_csv_file(folder: Path) -> None:
    tables = chart_tables.tables(SHOWN, MEASURED["rows"])
    assert {path.stem for path in (folder / "data").iterdir()} == set(tables)
    for name, table in tables.items():
        with (folder / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        assert tuple(head) == table.columns
        assert rows == [["" if value is None else str(value) for value in row] for row in table.rows]


def test_every_chart_is_a_picture_for_papers(folder: Path) -> None:
    assert {path.name for path in (folder / "charts").iterdir()} == {
        f"{name}.{kind}" for name in charts.pictures() for kind in files.FORMATS
    }
    for name, picture in charts.pictures().items():
        drawn = (folder / "charts" / f"{name}.svg").read_text(encoding="utf-8")
        assert picture.title in drawn
        assert "var(--" not in drawn, "a picture has no page to take colours from"
        assert (folder / "charts" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    kv = (folder / "charts" / "kv.svg").read_text(encoding="utf-8")
    assert all(f">{model.name}<" in kv for model in groups.typical(MODELS))


def test_one_model_stands_for_each_architecture() -> None:
    found = groups.groups(MODELS)
    assert [group.name for group in found] == list(zoo.architectures.families())
    assert [model for group in found for model in group.models] == MODELS
    assert all(group.typical in group.models for group in found)
    assert groups.typical([*MODELS[:1], replace(MODELS[0], name="mine")])[1].name == "mine"


@pytest.mark.parametrize("group", groups.groups(MODELS), ids=lambda group: group.name)
def test_what_is_new_in_an_architecture_is_told_whole(group: groups.Group) -> None:
    """The file's docstring, cut in three."""
    doc = " ".join((zoo.architectures.families()[group.name].__doc__ or "").split())
    assert doc.startswith(f"{group.title} ({group.source})")
    letters = re.sub(r"\W", "", doc.replace("New here: ", "")).lower()
    assert letters == re.sub(r"\W", "", group.title + group.source + group.new).lower()


def test_crossings_are_where_the_smaller_cache_changes() -> None:
    specs = {model.name: model.spec for model in MODELS}
    rows = chart_tables.tables(MODELS)["crossings"].records()
    assert len(rows) > 20
    for row in rows:
        less, more = specs[row["less"]], specs[row["more"]]
        assert less.kv_bytes(row["context"]) < more.kv_bytes(row["context"])
        assert less.kv_bytes(row["context"] - 1) >= more.kv_bytes(row["context"] - 1)


def test_docs_are_current() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    found = files.documents()
    assert {f"blocks/{path.name}" for path in (docs / "blocks").iterdir()} == {
        name for name in found if name.startswith("blocks/")
    }
    for name, content in found.items():
        assert (docs / name).read_text(encoding="utf-8") == content.decode(), f"docs/{name} is old: make docs"


def call(*args: object) -> int:
    return exit_code(app, "python -m benchmarks", ["gallery", *map(str, args)])


def test_docs_are_written_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--docs", "--out", tmp_path) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "overview.svg").read_bytes() == files.documents()["overview.svg"]
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, NotAvailable),
        ("no json", MalformedError),
        ("[]", MalformedError),
        ('{"rows": []}', MalformedError),
        ('{"machine": {}, "rows": [{"table": "kv"}]}', MalformedError),
    ],
)
def test_speeds_that_are_none_are_refused(tmp_path: Path, text: str | None, error: type[Exception]) -> None:
    path = tmp_path / "measured.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=re.escape(str(path))):
        read_measured(path)


def test_what_is_wrong_is_told_before_anything_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert call("--measured", tmp_path / "nowhere.json", "--out", tmp_path) == 3
    assert call("--docs", "--out", tmp_path / "file") == 3
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2
    assert all(line.startswith("error: cannot ") for line in err)


def test_a_missing_extra_is_named(monkeypatch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    assert call("--out", tmp_path) == 3
    assert capsys.readouterr().err == "error: this needs the package vl_convert: pip install 'zoo-llm[gallery]'\n"
