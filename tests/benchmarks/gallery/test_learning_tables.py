"""The gallery's tables of a comparison of learning, and the files that it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import app
from benchmarks.commands import gallery
from benchmarks.commands.gallery import read_learned
from benchmarks.gallery import learning_curves
from benchmarks.gallery.learning_curves import PLACES, label_places
from benchmarks.gallery.learning_tables import learning_tables, section
from tests.benchmarks.gallery.samples import NAMES, SWAP, learned_rows, sample
from zoo.cli.runner import exit_code
from zoo.cli.tables import SCHEMA_VERSION, Row
from zoo.errors import MalformedError

pytestmark = pytest.mark.xdist_group("gallery")
MODELS = [each for name in NAMES for each in (name, f"{name} {SWAP}")]


def test_tables_hold_the_figures_of_the_rows() -> None:
    tables = learning_tables(sample())
    models = [row for row in sample() if row["table"] == "learn"]
    assert [row["model"] for row in tables["learning"]] == MODELS
    for row, model in zip(tables["learning"], models, strict=True):
        assert row["kv_bytes_per_token"] * model["context"] == model["kv_bytes"]
        assert row["bits_per_byte_low"] < row["bits_per_byte"] < row["bits_per_byte_high"]
        curve = [point for point in tables["learning_curves"] if point["model"] == row["model"]]
        assert [point["tokens"] for point in curve] == sorted({point["tokens"] for point in curve})
        assert curve[-1]["bits_per_byte"] == pytest.approx(row["bits_per_byte"])
        assert all(point["low"] <= point["bits_per_byte"] <= point["high"] for point in curve)
    figures = [row for row in sample() if row["table"] == "learn_figures"]
    shown = [*tables["learning_lengths"], *tables["learning_accuracy"]]
    assert [row["mean"] for row in shown] == [row["mean"] for row in figures]


def test_section_says_what_was_trained_on_what() -> None:
    found = section(sample())
    facts = "; ".join(found.facts)
    for part in ("a <library> (0123456789abcdef)", "200k parameters", "600k tokens (bytes)", "8 x 256", "3 seeds"):
        assert part in facts
    assert [cells[0] for cells in found.cells] == MODELS
    assert all(len(cells) == len(found.head) for cells in found.cells)
    against = found.head.index("bits against llama3")
    words = [row["words"] for row in sample() if row["table"] == "learn_differences" and row["task"] == "text"]
    assert [cells[against] for cells in found.cells] == ["", *words]
    assert re.fullmatch(r"\d+\.\d ±\d+\.\d %", found.cells[0][found.head.index("recall, 4 pairs")])


def test_comparison_without_text_has_no_bits() -> None:
    rows = learned_rows(["llama3"], (), ("recall",))
    found, tables = section(rows), learning_tables(rows)
    assert found.facts == ("200k parameters", "3 seeds")
    assert not any("bits" in head for head in found.head)
    assert list(learning_curves.drawable(tables)) == ["learning-accuracy"]
    assert tables["learning_curves"] == []


def test_names_overlap_neither_names_nor_points() -> None:
    """Six points at one x, as of swaps that do not change the cache, near the right edge."""
    names = [f"a model with a swap {i}" for i in range(6)]
    places = label_places(names, [256.0] * 6, [2.0, 2.01, 2.02, 2.3, 2.31, 2.6], [32, 300])
    assert all(place.align == "right" for place in places)
    assert len(set(places[:3])) == 3
    assert label_places(["alone"], [64], [2.0], [32, 128]) == [PLACES[0]]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text(json.dumps({"schema_version": SCHEMA_VERSION, "machine": {}, "rows": rows}))
    return path


def _set(**values: Any) -> Callable[[list[Row]], None]:
    return lambda rows: rows[-1].update(values)


def test_written_rows_are_read(tmp_path: Path) -> None:
    rows = read_learned(write(tmp_path / "learned.json", sample()))
    assert learning_tables(rows) == learning_tables(sample())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows.clear(), "holds no comparison"),
        (_set(data_hash="another"), "different data_hash cannot stand side by side: 0123456789abcdef and another"),
        (_set(tokens=17), "different tokens cannot"),
        (_set(kv_bytes="many"), "not rows of"),
        (_set(params=None), "params is None"),
        (_set(bits_per_byte=float("nan")), "bits_per_byte is nan"),
        (_set(data=7), "data is 7"),
        (_set(runs=[{"curve": 3}]), "not rows of"),
        (_set(context=0), "not rows of"),
        (lambda rows: rows[-1].pop("params"), "'params'"),
        (lambda rows: rows.append({"table": "learn_figures"}), "'unit'"),
        (lambda rows: rows.append(rows[0] | {"table": "learn_differences", "measure": "bits per byte"}), "'words'"),
    ],
)
def test_foreign_rows_are_refused(tmp_path: Path, change: Callable[[list[Row]], None], reason: str) -> None:
    rows = deepcopy([row for row in sample() if row["table"] == "learn"])
    change(rows)
    with pytest.raises(MalformedError, match=re.escape(str(tmp_path))) as error:
        read_learned(write(tmp_path / "learned.json", rows))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_kept_comparison_is_shown_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gallery, "DOCS", tmp_path)
    folder = tmp_path / "learning"
    folder.mkdir()
    write(folder / "attention.json", sample())
    write(folder / "default.json", [])
    assert exit_code(app, "python -m benchmarks", ["gallery", "--out", str(tmp_path / "out")]) == 4
    assert f"{folder / 'default.json'}: holds no comparison" in capsys.readouterr().err
