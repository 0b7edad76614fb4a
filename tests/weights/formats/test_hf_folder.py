"""What a broken or hostile folder gets: one line that says what, where and what to do; its exit code; no model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import weights
from tests.weights.checkpoints import read, write
from tests.weights.formats.folder_damage import CASES, read_all, rewrite, set_config
from weights.generate import app
from weights.matching import folded
from zoo.cli import runner
from zoo.errors import MalformedError, NotAvailable

Saved = Callable[[str], Path]


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    return write(tmp_path / "model", *read(saved("qwen3-0.6b")), shards=3)


@pytest.mark.parametrize("name", CASES)
def test_damage(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, kind, phrases = CASES[name]
    damage(folder)
    with pytest.raises(kind) as caught:
        weights.load(folder)
    assert type(caught.value) is kind
    told = str(caught.value)
    assert all(phrase in told for phrase in phrases), told
    assert "\n" not in told
    code = runner.exit_code(app, "python -m weights.generate", [str(folder), "--tokens", "1,2"])
    assert code == {NotAvailable: 3, MalformedError: 4}[kind]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("left alone")] == [f"error: {told}"]


def test_the_blobs_of_the_hub_cache_are_no_way_out(saved: Saved, tmp_path: Path) -> None:
    """Its snapshots are folders of links into blobs/ beside them."""
    snapshot, blobs = tmp_path / "models--org--name/snapshots/0123abc", tmp_path / "models--org--name/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in saved("qwen3-0.6b").iterdir():
        (blobs / f"{path.name}-blob").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{path.name}-blob")
    assert weights.load(snapshot).spec == weights.load(saved("qwen3-0.6b")).spec


def test_a_link_from_the_hub_cache_to_elsewhere_is_one(saved: Saved, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name/snapshots/0123abc"
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--org--name/blobs").mkdir()
    write(snapshot, *read(saved("qwen3-0.6b")))
    outside = (snapshot / "model.safetensors").rename(tmp_path / "elsewhere")
    (snapshot / "model.safetensors").symlink_to(outside)
    with pytest.raises(MalformedError, match="is a link that leads out of its folder"):
        weights.load(snapshot)


def test_weights_that_are_not_finite(folder: Path) -> None:
    """They are loaded as they are; `check_finite` names all of them."""
    config, tensors = read_all(folder)
    tensors["model.norm.weight"][3] = torch.nan
    for i in range(2):
        tensors[f"model.layers.{i}.mlp.down_proj.weight"][-1, -1] = -torch.inf
    rewrite(folder, config, tensors)
    assert weights.load(folder).norm.weight.isnan().sum() == 1
    with pytest.raises(MalformedError) as caught:
        weights.load(folder, check_finite=True)
    wrong = "model.layers.{0-1}.mlp.down_proj.weight, model.norm.weight"
    assert str(caught.value) == f"{folder}: NaN or infinite numbers in {wrong}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_finite(dtype: torch.dtype, folder: Path) -> None:
    config, tensors = read_all(folder)
    tensors["model.norm.weight"][3] = torch.finfo(torch.float16).max
    rewrite(folder, config, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    weights.load(folder, check_finite=True)


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim", "num_local_experts")
NO_SIZES = (True, 64.0, -1, 0, 2**31, 10**30, "64", [64], {}, float("nan"), float("inf"))


@pytest.mark.parametrize("field", SIZES)
def test_sizes_must_be_positive_integers(
    field: str, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is allocated."""
    folder = write(tmp_path / "model", *read(saved("qwen3-30b-a3b")))
    monkeypatch.setattr("zoo.catalog.allocate", lambda *_: pytest.fail("allocated"))
    for value in NO_SIZES:
        set_config(folder, **{field: value})
        with pytest.raises(MalformedError, match=rf"config\.json: {field} must be an integer from 1 to"):
            weights.load(folder)


@pytest.mark.parametrize(("name", "field"), [("qwen3-30b-a3b", "num_local_experts"), ("gemma4-26b-a4b", "num_experts")])
def test_more_experts_than_can_be_named(name: str, field: str, saved: Saved, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", *read(saved(name)))
    set_config(folder, **{field: 2**31 - 1})
    with pytest.raises(MalformedError, match=r"impossible model; experts in all layers: \d+ above 100000"):
        weights.load(folder)


@pytest.mark.parametrize("ends", [[1, True], -1, 1.0, "</s>", {}])
def test_malformed_end_tokens(ends: object, folder: Path) -> None:
    set_config(folder, eos_token_id=ends)
    with pytest.raises(MalformedError, match=r"eos_token_id must be a token id or a list of them, got "):
        weights.load(folder)


def test_long_lists_of_names_are_cut(folder: Path) -> None:
    config, tensors = read_all(folder)
    rewrite(folder, config, tensors | {f"spare{i}": torch.ones(1) for i in range(1000)})
    with pytest.raises(MalformedError, match=r"not understood: spare0, .*, \.\.\. \(1000 in all\)$") as caught:
        weights.load(folder)
    assert len(str(caught.value)) < 2000


def test_names_are_folded_without_loss() -> None:
    experts = [f"model.layers.{i}.mlp.experts.{e}.up_proj.weight" for i in range(3) for e in (0, 1, 2, 5)]
    assert folded(experts) == ["model.layers.{0-2}.mlp.experts.{0-2,5}.up_proj.weight"]
    assert folded(experts[1:]) == [
        "model.layers.0.mlp.experts.{1-2,5}.up_proj.weight",
        "model.layers.{1-2}.mlp.experts.{0-2,5}.up_proj.weight",
    ]
    assert folded(["norm.weight", "model.layers.10.x", "model.layers.9.x"]) == ["model.layers.{9-10}.x", "norm.weight"]
    assert folded([]) == []
