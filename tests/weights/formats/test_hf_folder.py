"""What a broken or hostile folder gets: one line that says what, where and what to do; its exit code; no model."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weights
from tests.weights.checkpoints import read, read_index, write, write_index
from weights.formats.hf_folder import HFFolder
from weights.generate import app
from weights.matching import folded
from zoo.cli import runner
from zoo.errors import MalformedError, NotAvailable, ZooError

Saved = Callable[[str], Path]
SHARD = "model-00002-of-00003.safetensors"
CASES: dict[str, tuple[Callable[[Path], None], type[ZooError], list[str]]] = {}


def case(error: type[ZooError], *phrases: str) -> Callable:
    """Register a way to damage a folder of three shards, with the phrases of its error."""

    def register(damage: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[damage.__name__] = (damage, error, list(phrases))
        return damage

    return register


@case(NotAvailable, "there is no config.json")
def no_config(folder):
    (folder / "config.json").unlink()


@case(MalformedError, "config.json is not JSON")
def config_cut_short(folder):
    (folder / "config.json").write_text('{"model_type": "qwen3",')


@case(MalformedError, "config.json is not JSON")
def config_nested_too_deep(folder):
    (folder / "config.json").write_text("[" * 100_000)


@case(MalformedError, "config.json is not JSON")
def config_of_bytes(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")


@case(MalformedError, "config.json holds a list, not an object")
def config_of_a_list(folder):
    (folder / "config.json").write_text("[]")


@case(MalformedError, "config.json is not JSON: duplicate key: 'hidden_size'")
def config_says_a_field_twice(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"hidden_size": 128, ', 1))


@case(
    MalformedError,
    "config.json describes an impossible model; layers: 1000 with 24 tensors in the files, parameters: ",
    "above 100000000000000",
)
def config_of_an_absurd_model(folder):
    set_config(folder, num_hidden_layers=1000, vocab_size=2**31 - 1, hidden_size=2**31 - 1, layer_types=None)


@case(MalformedError, "config.json has 2000002 bytes, above the 1000000")
def config_too_large(folder):
    (folder / "config.json").write_text(" " * 2_000_000 + "{}")


@case(MalformedError, "config.json: unknown model_type 'qwen33'", "did you mean qwen3")
def config_of_another_architecture(folder):
    set_config(folder, model_type="qwen33")


@case(MalformedError, "config.json: not understood: wings=2", "--ignore-field")
def config_with_an_unread_field(folder):
    set_config(folder, wings=2)


@case(MalformedError, "config.json: not understood: '\\x1b[2J'=0, 'nnnnnnnnnnnn...nnnnnnnnnnnnn'=0; pass --ignore")
def config_with_names_for_no_terminal(folder):
    set_config(folder, **{"\x1b[2J": 0, "n" * 1000: 0})


@case(MalformedError, "dtype must be one of float32, bfloat16, float16, got 'int8'")
def config_of_an_unknown_dtype(folder):
    set_config(folder, dtype="int8")


@case(NotAvailable, "there is no model.safetensors")
def no_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, never opened")


@case(NotAvailable, f"names files that are not there: {SHARD}")
def missing_shard(folder):
    (folder / SHARD).unlink()


@case(
    MalformedError,
    f"{SHARD} lacks model.extra.weight, model.norm.weight; ",
    "-00003.safetensors holds model.norm.weight against",
)
def index_names_a_missing_tensor(folder):
    write_index(folder, read_index(folder) | {"model.norm.weight": SHARD, "model.extra.weight": SHARD})


@case(MalformedError, "holds model.norm.weight against the index")
def index_leaves_out_a_tensor(folder):
    index = read_index(folder)
    del index["model.norm.weight"]
    write_index(folder, index)


@case(MalformedError, "weight_map must say for each tensor which file holds it")
def index_of_numbers(folder):
    write_index(folder, {"model.norm.weight": 2})


@case(MalformedError, "weight_map must say for each tensor which file holds it")
def index_without_a_map(folder):
    write_index(folder, [])


@case(MalformedError, "index.json is not JSON")
def index_cut_short(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {')


@case(
    MalformedError,
    "not the plain name of a .safetensors file",
    "'../outside.safetensors'",
    "'/etc/x.safetensors'",
    "'x.bin'",
)
def index_leaves_the_folder(folder):
    outside = ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", "..", "a\\b.safetensors"]
    outside += [f"{'n' * 201}.safetensors", "\x1b.safetensors", "a\0.safetensors"]
    write_index(folder, {f"model.{i}": name for i, name in enumerate(outside)} | read_index(folder))


@case(MalformedError, "is a link that leads out of its folder")
def shard_is_a_link_out(folder):
    outside = (folder / SHARD).rename(folder.parent / "outside.safetensors")
    (folder / SHARD).symlink_to(outside)


@case(MalformedError, "index.json is not JSON: duplicate key: 'model.norm.weight'")
def index_names_a_tensor_twice(folder):
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"weight_map": {', f'"weight_map": {{"model.norm.weight": "{SHARD}", '))


@case(MalformedError, "index.json has 32000001 bytes, above the 32000000")
def index_too_large(folder):
    (folder / "model.safetensors.index.json").write_bytes(b"{" + b" " * 31_999_999 + b"}")


@case(MalformedError, "index.json holds more than the 100000 values that it can need")
def index_of_too_much(folder):
    write_index(folder, {f"x{i}": SHARD for i in range(100_001)})


@case(MalformedError, "is a link that leads out of its folder")
def config_is_a_link_out(folder):
    outside = (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(outside)


@case(MalformedError, SHARD, "cut short: 4 bytes")
def shard_of_four_bytes(folder):
    (folder / SHARD).write_bytes(b"1234")


@case(
    MalformedError, f"{SHARD} is cut short: 10 bytes are missing at the end, of model.", "; /", "-00003.safetensors is"
)
def two_shards_cut_short(folder):
    for path in (folder / SHARD, folder / "model-00003-of-00003.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])


@case(MalformedError, SHARD, "cut short")
def header_longer_than_the_file(folder):
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(struct.pack("<Q", len(data)) + data[8:])


@case(MalformedError, SHARD, "a header of 9000000 bytes is above the limit of 8000000")
def header_too_large(folder):
    (folder / SHARD).write_bytes(struct.pack("<Q", 9_000_000) + b" " * 9_000_000)


@case(MalformedError, SHARD, "the header is not JSON")
def header_is_not_json(folder):
    (folder / SHARD).write_bytes(struct.pack("<Q", 16) + b"{" * 16)


@case(MalformedError, f"{SHARD}: the header is not JSON: duplicate key: 'model.norm.weight'")
def one_name_twice_in_a_header(folder):
    """The library keeps the last one."""
    said = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = f'{{"model.norm.weight":{said % (0, 4)},"model.norm.weight":{said % (4, 8)}}}'.encode()
    (folder / SHARD).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


@case(MalformedError, f"{SHARD}: tensors overlap: a and b, b and c")
def overlapping_tensors(folder):
    write_header(folder / SHARD, {"a": ("F32", [2], 0, 8), "b": ("F32", [2], 4, 12), "c": ("F32", [2], 8, 16)}, 16)


@case(MalformedError, f"{SHARD} holds 20 bytes of tensors, of which its header leaves some unnamed")
def a_hole_between_tensors(folder):
    write_header(folder / SHARD, {"a": ("F32", [2], 0, 8), "b": ("F32", [2], 12, 20)}, 20)


@case(MalformedError, f"{SHARD} holds 9 bytes of tensors, of which its header leaves some unnamed")
def bytes_after_the_last_tensor(folder):
    write_header(folder / SHARD, {"a": ("F32", [2], 0, 8)}, 9)


@case(
    MalformedError,
    f"{SHARD}: the header does not describe a tensor under 'bools', '\\x1b[2J', 'dtype', 'few', 'floats', '{'n' * 512}'"
    ", 'negative', 'rank', 'signed', 'types', ''",
)
def headers_of_no_tensors(folder):
    tensors = {
        "bools": ("F32", [True, 2], 0, 8),
        "\x1b[2J": ("F32", [2], 0, 8),
        "dtype": ("F31", [2], 0, 8),
        "few": ("F32", [3], 0, 8),
        "fine": ("F32", [2], 0, 8),
        "floats": ("F32", [2.0], 0, 8),
        "n" * 513: ("F32", [2], 0, 8),
        "negative": ("F32", [-2], 8, 0),
        "rank": ("F32", [1] * 16 + [2], 0, 8),
        "signed": ("F32", [2], -8, 0),
        "types": (["F32"], 2, 0, 8),
        "": ("F32", [2], 0, 8),
    }
    write_header(folder / SHARD, tensors, 8)


@case(MalformedError, SHARD, "the header's __metadata__ holds more than text")
def metadata_of_numbers(folder):
    header = json.dumps({"__metadata__": {"format": 1}}).encode()
    (folder / SHARD).write_bytes(struct.pack("<Q", len(header)) + header)


@case(MalformedError, f"{SHARD} is a pickle, which can run code and is never opened")
def shard_is_a_pickle(folder):
    torch.save(Trap(), folder / SHARD)


@case(MalformedError, f"{SHARD} is a pickle, which can run code and is never opened")
def shard_is_an_old_pickle(folder):
    torch.save(Trap(), folder / SHARD, _use_new_zipfile_serialization=False)


@case(MalformedError, "-00003.safetensors holds model.norm.weight against the index")
def one_tensor_in_two_shards(folder):
    home = read_index(folder)["model.norm.weight"]
    other = next(path for path in sorted(folder.glob("model-*")) if path.name != home)
    save_file(load_file(other) | {"model.norm.weight": torch.ones(64)}, other)


@case(MalformedError, "the head is tied to the embedding, yet lm_head.weight differs from model.embed_tokens.weight")
def tied_head_differs(folder):
    config, tensors = read_all(folder)
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    rewrite(folder, config, tensors | {"lm_head.weight": head})


@case(MalformedError, "yet lm_head.weight differs from model.embed_tokens.weight")
def tied_head_has_another_shape(folder):
    config, tensors = read_all(folder)
    rewrite(folder, config, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"][:, 1:]})


@case(
    MalformedError,
    "missing: model.layers.{0-1}.self_attn.q_norm.weight, model.norm.weight",
    "not understood: model.layers.{0-1}.self_attn.q_proj.bias, model.spare",
    "wrong shape: model.layers.1.mlp.up_proj.weight [96, 65] instead of [96, 64]",
    "neither float32, bfloat16, float16 nor float64: model.layers.0.mlp.gate_proj.weight",
)
def many_things_at_once(folder):
    config, tensors = read_all(folder)
    del tensors["model.norm.weight"]
    for i in range(2):
        del tensors[f"model.layers.{i}.self_attn.q_norm.weight"]
        tensors[f"model.layers.{i}.self_attn.q_proj.bias"] = torch.zeros(64)
    tensors["model.spare"] = torch.zeros(1)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(96, 65)
    tensors["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(96, 64, dtype=torch.int8)
    rewrite(folder, config, tensors)


@case(MalformedError, "are both stored, for the same parameter")
def two_spellings_of_one_tensor(folder):
    config, tensors = read_all(folder)
    rewrite(folder, config, tensors | {"language_model.model.norm.weight": tensors["model.norm.weight"]})


class Trap:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def write_header(path, tensors, size):
    """A safetensors file with any header: name -> (dtype, shape, begin, end)."""
    said = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for name, (dtype, shape, begin, end) in tensors.items()
    }
    header = json.dumps(said).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def read_all(folder):
    """Config and tensors of a folder of shards."""
    config, tensors = json.loads((folder / "config.json").read_text()), {}
    for shard in sorted(set(read_index(folder).values())):
        tensors |= load_file(folder / shard)
    return config, tensors


def rewrite(folder, config, tensors):
    for path in folder.glob("*"):
        path.unlink()
    write(folder, config, tensors, shards=3)


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


def test_more_experts_than_can_be_named(saved: Saved, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", *read(saved("qwen3-30b-a3b")))
    set_config(folder, num_local_experts=2**31 - 1)
    with pytest.raises(MalformedError, match=r"impossible model; experts in all layers: \d+ above 100000"):
        weights.load(folder)


@pytest.mark.parametrize("ends", [[1, True], -1, 1.0, "</s>", {}])
def test_malformed_end_tokens(ends: object, folder: Path) -> None:
    set_config(folder, eos_token_id=ends)
    with pytest.raises(MalformedError, match=r"eos_token_id must be a token id or a list of them, got "):
        HFFolder(folder).end_tokens  # noqa: B018


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
