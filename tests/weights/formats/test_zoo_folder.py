"""A folder in the zoo's own layout gives back any model bit by bit, and a damaged one is refused before it is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file

import weights
import zoo
from tests.models import randomised
from tests.presets import distinct, over
from tests.swapped import INDESCRIBABLE
from tests.test_properties import decoders
from zoo.catalog import sizes
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.model.module import Model

TENSORS = "model.safetensors"


def check_round_trip(model: Model, folder: Path, layout: Any = "zoo", **options: Any) -> None:
    """Checks that the folder has a spec.json, and gives back the same spec and the same bits in the same dtypes."""
    assert weights.save(model, folder, layout=layout, **options) == "zoo"
    read = weights.load(folder)
    assert read.spec == model.spec
    mine, theirs = model.state_dict(), read.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


@over(sizes(), by_default=distinct())
def test_every_size_comes_back(name: str) -> None:
    with TemporaryDirectory() as folder:
        check_round_trip(randomised(zoo.spec(name, tiny=True), dtype=torch.float32), Path(folder) / "saved")


@given(decoders())
def test_any_composition_comes_back(spec: zoo.Decoder) -> None:
    with TemporaryDirectory() as folder:
        check_round_trip(zoo.build(spec, dtype=torch.bfloat16), Path(folder) / "saved")


def test_a_model_that_no_config_describes_gets_this_layout(tmp_path: Path) -> None:
    for name, (spec, _, _) in INDESCRIBABLE.items():
        check_round_trip(zoo.build(spec), tmp_path / name.replace(" ", "-"), layout="auto")


def test_several_files(tmp_path: Path) -> None:
    check_round_trip(zoo.build("gpt-oss", tiny=True), tmp_path / "saved", shard_bytes=100_000)
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 3


def edit_spec(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "spec.json").read_text())
        edit(content["spec"])
        (folder / "spec.json").write_text(json.dumps(content))

    return damage


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        edit(tensors)
        save_file(tensors, folder / TENSORS)

    return damage


NORM = "layers.0.attn.pre.weight"
DAMAGE: dict[str, Callable[[Path], None]] = {
    r"spec\.json: spec: Decoder: dim must be a positive integer": edit_spec(lambda spec: spec.update(dim=-1)),
    r"spec\.json describes \d+ parameters; the files hold at most": edit_spec(lambda spec: spec.update(dim=64 * 10**9)),
    r"missing: layers\.0\.attn\.pre\.weight": edit_tensors(lambda held: held.update({NORM + ".old": held.pop(NORM)})),
    r"not understood: extra": edit_tensors(lambda held: held.update(extra=torch.ones(1))),
    r"wrong shape: layers\.0\.attn\.pre\.weight \[65\] instead of \[64\]": edit_tensors(
        lambda held: held.update({NORM: torch.ones(65)})
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_refused_by_name(message: str, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    weights.save(zoo.build("qwen3", tiny=True), folder, layout="zoo")
    DAMAGE[message](folder)
    with pytest.raises(MalformedError, match=message):
        weights.load(folder)


def test_what_is_missing(tmp_path: Path) -> None:
    weights.save(zoo.build("qwen3", tiny=True), tmp_path / "saved", layout="zoo")
    with pytest.raises(UsageError, match=r"spec\.json has no fields to ignore, got rope"):
        weights.load(tmp_path / "saved", ignore_fields=["rope"])
    (tmp_path / "saved" / TENSORS).unlink()
    with pytest.raises(NotAvailable, match=f"there is no {TENSORS}"):
        weights.load(tmp_path / "saved")
