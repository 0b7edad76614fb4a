"""Ways to damage a folder of three shards in Hugging Face's layout, each with the phrases of its error."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.checkpoints import read_index, write, write_index
from zoo.errors import MalformedError, NotAvailable, ZooError

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


@case(MalformedError, "dtype must be one of float32, bfloat16, float16, float64, got 'int8'")
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
