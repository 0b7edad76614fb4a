"""A saved model is read back bit by bit, and by the reference with equal logits; a failure leaves nothing behind."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import weights
import zoo
from tests.exact import assert_equal, in_float64
from tests.models import randomised, tokens_of
from tests.presets import distinct, of_families, screen_by_family, split
from tests.reference import family_of
from tests.swapped import DESCRIBABLE, INDESCRIBABLE
from tests.weights.checkpoints import read, read_index
from weights import saving
from weights.reference.model import PLAIN_KERNELS, causal_class
from zoo.errors import NotAvailable, SpecError, UsageError
from zoo.model.module import Model

DENSE, LATENT = "qwen3-0.6b", "deepseek-v3-671b"
MODELS = {name: zoo.spec(name, tiny=True) for name in distinct()}
MODELS |= {name: spec for name, (_, spec) in DESCRIBABLE.items()}


@pytest.fixture
def dense() -> Model:
    return randomised(zoo.spec(DENSE, tiny=True), dtype=torch.float32)


def check_equal(one: Model, other: Model) -> None:
    """Checks that two models have the same spec, and the same bits in the same dtypes."""
    assert one.spec == other.spec
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def check_reference(folder: Path, model: Model) -> None:
    """Checks that the reference fills all its parameters from the folder and computes equal logits."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    assert config.dtype == model.embed.weight.dtype
    options = {"dtype": torch.float64, "output_loading_info": True, **PLAIN_KERNELS}
    tokens = tokens_of(model.spec, 2, 80)
    with torch.no_grad(), in_float64():
        reference, loading = causal_class(config).from_pretrained(folder, **options)
        assert not any(loading.values()), loading
        expected = reference.eval()(tokens).logits
    with torch.no_grad():
        assert_equal(weights.load(folder, dtype=torch.float64)(tokens), expected)


@pytest.mark.parametrize("name", split(MODELS, [*of_families(), *DESCRIBABLE]))
def test_the_round_trip(name: str, tmp_path: Path) -> None:
    """Every released architecture, and every swapped one that a config can describe."""
    model = randomised(MODELS[name], dtype=torch.float32)
    weights.save(model, tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}
    check_equal(weights.load(tmp_path / "saved"), model)
    check_reference(tmp_path / "saved", model)
    # `to_checkpoint` gives the same, and does not copy the tensors that are stored as the model holds them.
    config, tensors = saving.to_checkpoint(model)
    written_config, written = read(tmp_path / "saved")
    assert config == written_config
    assert tensors.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in tensors.items())
    stored = {tensor.data_ptr() for tensor in tensors.values()}
    assert model.norm.weight.data_ptr() in stored


@pytest.mark.parametrize("name", screen_by_family())
def test_tensors_are_those_that_the_reference_stores(name: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Names and values are the same: each expert in its own tensor, and no tensor for a tied head."""
    weights.save(weights.load(saved(name)), tmp_path / "again")
    _, expected = read(saved(name))
    _, tensors = read(tmp_path / "again")
    others = {other for other in distinct() if MODELS[other] == MODELS[name]} - {name}
    if others:  # a model_type of equal models, which may store them otherwise
        pytest.skip(f"its tiny form is that of {', '.join(others)}")
    expected = {released_name(name, key): tensor for key, tensor in expected.items()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


def released_name(name: str, key: str) -> str:
    """The name in released files of a tensor that the reference writes."""
    for written, released in family_of(name).misnamed.items():
        key = key.replace(written, released)
    return key


@pytest.mark.parametrize("name", [DENSE, LATENT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """All tensors have the model's dtype, except a router's correction, which stays float32."""
    model = randomised(zoo.spec(name, tiny=True)).to(dtype)
    weights.save(model, tmp_path / "saved")
    config, tensors = read(tmp_path / "saved")
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    for key, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if "correction" in key else dtype), key
    check_equal(weights.load(tmp_path / "saved"), model)


@pytest.mark.parametrize("name", [DENSE, LATENT, "gpt-oss-20b"])
def test_shards(name: str, tmp_path: Path) -> None:
    """Shards are numbered, none is above the limit unless it holds one larger tensor, and every tensor is in the
    index."""
    model = randomised(zoo.spec(name, tiny=True), dtype=torch.float32)
    folder, most = tmp_path / "saved", 100_000
    weights.save(model, folder, shard_bytes=most)
    index = read_index(folder)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    total = 0
    for shard in shards:
        with safe_open(folder / shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
        assert sum(sizes.values()) <= most or len(sizes) == 1
        assert {key for key, held in index.items() if held == shard} == sizes.keys()
        total += sum(sizes.values())
    metadata = json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]
    assert metadata == {"total_size": total}
    check_equal(weights.load(folder), model)
    check_reference(folder, model)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_a_failure_in_the_second_shard_leaves_nothing(
    error: BaseException, dense: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun = saving._write_safetensors, []

    def fail(path: Path, *args: object) -> None:
        assert not (tmp_path / "saved").exists()
        begun.append(path.name)
        if len(begun) == 2:
            raise error
        write(path, *args)

    monkeypatch.setattr(saving, "_write_safetensors", fail)
    with pytest.raises(NotAvailable if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        weights.save(dense, tmp_path / "saved", shard_bytes=100_000)
    assert len(begun) == 2
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert str(raised.value) == f"{tmp_path / 'saved'} cannot be written: No space left on device"


def test_a_full_disk_is_one_line_and_exit_3(dense: Model, tmp_path: Path) -> None:
    """The limit is real: no file may exceed 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(NotAvailable, match=r"saved cannot be written: File too large$") as raised:
            weights.save(dense, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_known_at_once(dense: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5, 5))
    with pytest.raises(NotAvailable, match=r"saved needs 0\.00 GB, and 0\.00 GB are free"):
        weights.save(dense, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(dense: Model, tmp_path: Path) -> None:
    folder, file = tmp_path / "there", tmp_path / "file"
    folder.mkdir()
    (folder / "mine").write_text("kept")
    file.write_text("kept")
    for place in (folder, file):
        with pytest.raises(UsageError, match="already exists"):
            weights.save(dense, place)
    assert (folder / "mine").read_text() == file.read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"there", "file"}


def test_a_folder_that_comes_meanwhile_is_kept(dense: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write = tmp_path / "saved", saving._write_safetensors

    def slow(*args: object) -> None:
        write(*args)
        folder.mkdir()
        (folder / "mine").write_text("kept")

    monkeypatch.setattr(saving, "_write_safetensors", slow)
    with pytest.raises(NotAvailable, match="cannot be written: Directory not empty"):
        weights.save(dense, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["saved", "mine"]


def test_an_empty_folder_and_missing_parents_are_accepted(dense: Model, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", str(tmp_path / "a" / "b")):
        weights.save(dense, folder)
        check_equal(weights.load(folder), dense)


def test_files_have_the_usual_permissions(dense: Model, tmp_path: Path) -> None:
    weights.save(dense, tmp_path / "saved")
    usual, file = tmp_path / "usual", tmp_path / "file"
    usual.mkdir()
    file.touch()
    assert (tmp_path / "saved").stat().st_mode == usual.stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "saved").iterdir()} == {file.stat().st_mode}


@pytest.mark.parametrize("swapped", INDESCRIBABLE)
def test_a_model_that_no_config_can_describe_is_refused_before_anything_is_written(
    swapped: str, tmp_path: Path
) -> None:
    spec, _, differs = INDESCRIBABLE[swapped]
    with pytest.raises(SpecError) as raised:
        weights.save(randomised(spec, dtype=torch.float32), tmp_path / "saved", layout="hf")
    assert differs in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_swapped_arguments_are_refused(dense: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"save\(model, folder\) expects a model of the zoo first, not a str"):
        weights.save(str(tmp_path / "saved"), dense)  # type: ignore[arg-type]


def test_models_that_cannot_be_saved(dense: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="meta device has no weights"):
        weights.save(zoo.build(DENSE, tiny=True, device="meta"), tmp_path / "saved")
    with pytest.raises(UsageError, match=r"torch\.float8_e4m3fn cannot be saved"):
        weights.save(randomised(zoo.spec(DENSE, tiny=True)).to(torch.float8_e4m3fn), tmp_path / "saved")
    with pytest.raises(UsageError, match="unknown layout 'gguf'; known: auto, hf, zoo"):
        weights.save(dense, tmp_path / "saved", layout="gguf")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shard_bytes must be at least 1, got 0"):
        weights.save(dense, tmp_path / "saved", shard_bytes=0)
    dense.layers[0].ffn.block.up = torch.nn.Linear(64, 90, bias=False)
    dense.layers[1].attn.pre.bfloat16()
    with pytest.raises(UsageError) as raised:
        weights.save(dense, tmp_path / "saved")
    assert str(raised.value) == (
        "the model is not what its spec says: layers.0.ffn.block.up.weight (float32 [90, 64] instead of float32 [96, "
        "64]), layers.1.attn.pre.weight (bfloat16 [64] instead of float32 [64])"
    )
    assert list(tmp_path.iterdir()) == []


MEASURE = """
import resource
import sys
from dataclasses import replace
import torch, weights, zoo

toy, folder = zoo.spec("gpt-oss", tiny=True), sys.argv[1]
spec = replace(zoo.swap(toy, zoo.GLU, lambda glu: replace(glu, hidden=512)), dim=1024, layers=toy.layers * 3)
spec = zoo.swap(spec, zoo.MoE, lambda moe: replace(moe, expert=replace(moe.expert, hidden=512)))
weights.save(zoo.build(toy), f"{folder}/warm")
model = zoo.build(spec)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights.save(model, f"{folder}/saved", shard_bytes=100_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_at_one_tensor(tmp_path: Path) -> None:
    """Experts are stored in another layout than in the model. The largest tensor has 34 MB; all 4 files have 300 MB."""
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    largest = 8 * 2 * 512 * 1024 * 4
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) == 4
    assert int(done.stdout) * 1024 <= 1.75 * largest  # the allocator keeps some of what was freed
