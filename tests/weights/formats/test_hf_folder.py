"""A broken, hostile or otherwise quantised folder is refused in one line that says what, where and what to do."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weights
import zoo
from tests.configs import older, smallest
from tests.weights.checkpoints import Config, Tensors, read, read_index, write, write_index
from tests.weights.packers import FP8_CONFIG, MXFP4_CONFIG
from weights.formats.fp8_mxfp4 import FORMATS
from weights.formats.hf_folder import MODELOPT, NAMES, check_scheme, refuse
from weights.generate import app
from weights.matching import folded
from zoo.cli import runner
from zoo.errors import MalformedError, NotAvailable

Saved = Callable[[str], Path]
Damage = Callable[[Path], object]
CONFIG, INDEX, SHARD = "config.json", "model.safetensors.index.json", "model-00002-of-00003.safetensors"
THIRD = "model-00003-of-00003.safetensors"


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    return write(tmp_path / "model", *read(saved("qwen3-0.6b")), shards=3)


def set_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def read_all(folder: Path) -> tuple[Config, Tensors]:
    """Config and tensors of a folder of shards."""
    config, tensors = json.loads((folder / CONFIG).read_text()), {}
    for shard in sorted(set(read_index(folder).values())):
        tensors |= load_file(folder / shard)
    return config, tensors


def rewrite(folder: Path, config: Config, tensors: Tensors) -> None:
    for path in folder.glob("*"):
        path.unlink()
    write(folder, config, tensors, shards=3)


# Ways to damage a folder.
def holds(name: str, content: bytes) -> Damage:
    """Writes a file with this content."""
    return lambda folder: (folder / name).write_bytes(content)


def sets(**fields: Any) -> Damage:
    """Sets these fields in the config."""
    return lambda folder: set_config(folder, **fields)


def replaced(name: str, old: str, new: str) -> Damage:
    """Replaces a part of a file's text."""
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def cut(*names: str) -> Damage:
    """Cuts the last ten bytes off the files."""
    return lambda folder: [(folder / name).write_bytes((folder / name).read_bytes()[:-10]) for name in names]


def linked_out(name: str) -> Damage:
    """Replaces a file by a link to a file outside the folder."""

    def damage(folder: Path) -> None:
        outside = (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(outside)

    return damage


def indexed(more: dict[str, str], without: str = "") -> Damage:
    """Writes an index with these additional entries, and without one entry."""
    return lambda folder: write_index(folder, {k: v for k, v in (read_index(folder) | more).items() if k != without})


def header(text: bytes, size: int = 0) -> Damage:
    """Writes a shard with this header and `size` bytes of tensors."""
    return holds(SHARD, struct.pack("<Q", len(text)) + text + bytes(size))


def described(size: int, **tensors: tuple[Any, Any, int, int]) -> Damage:
    """Writes a shard whose header describes these tensors: name -> (dtype, shape, begin, end)."""
    said = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for name, (dtype, shape, begin, end) in tensors.items()
    }
    return header(json.dumps(said).encode(), size)


def stored(change: Callable[[Tensors], Tensors]) -> Damage:
    """Replaces the folder's tensors by changed ones."""

    def damage(folder: Path) -> None:
        config, tensors = read_all(folder)
        rewrite(folder, config, change(tensors))

    return damage


def no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, never opened")


def one_tensor_in_two_shards(folder: Path) -> None:
    home = read_index(folder)["model.norm.weight"]
    other = next(path for path in sorted(folder.glob("model-*")) if path.name != home)
    save_file(load_file(other) | {"model.norm.weight": torch.ones(64)}, other)


def with_another_head(tensors: Tensors) -> Tensors:
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    return tensors | {"lm_head.weight": head}


def with_many_mistakes(tensors: Tensors) -> Tensors:
    absent = {"model.norm.weight", *(f"model.layers.{i}.self_attn.q_norm.weight" for i in range(2))}
    changed = {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(64) for i in range(2)}
    changed |= {"model.spare": torch.zeros(1), "model.layers.1.mlp.up_proj.weight": torch.zeros(96, 65)}
    changed["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(96, 64, dtype=torch.int8)
    return {name: tensor for name, tensor in (tensors | changed).items() if name not in absent}


class Trap:
    """An object that leaves a trace if it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was opened",)


OUTSIDE = ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", "..", "a\\b.safetensors"]
OUTSIDE += [f"{'n' * 201}.safetensors", "\x1b.safetensors", "a\0.safetensors"]
TWICE = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
ABSURD = dict(num_hidden_layers=1000, vocab_size=2**31 - 1, hidden_size=2**31 - 1, layer_types=None)
NOT_TENSORS = {
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
# The damage, and phrases of its error.
MISSING: list[tuple[Damage, str]] = [
    (lambda folder: (folder / CONFIG).unlink(), "there is no config.json"),
    (no_weights, "there is no model.safetensors"),
    (lambda folder: (folder / SHARD).unlink(), f"names files that do not exist: {SHARD}"),
]
MALFORMED: list[tuple[Damage, str | list[str]]] = [
    (holds(CONFIG, b'{"model_type": "qwen3",'), "config.json is not JSON"),
    (holds(CONFIG, b"[" * 100_000), "config.json is not JSON"),
    (holds(CONFIG, b"\xff\xfe\x00"), "config.json is not JSON"),
    (holds(CONFIG, b"[]"), "config.json holds a list, not an object"),
    (replaced(CONFIG, "{", '{"hidden_size": 128, '), "config.json is not JSON: duplicate key: 'hidden_size'"),
    (
        sets(**ABSURD),
        [
            "config.json describes an impossible model; layers: 1000 with 24 tensors in the files, parameters: ",
            "above 100000000000000",
        ],
    ),
    (holds(CONFIG, b" " * 2_000_000 + b"{}"), "config.json has 2000002 bytes, above the 1000000"),
    (sets(model_type="qwen33"), ["config.json: unknown model_type 'qwen33'", "did you mean qwen3"]),
    (sets(wings=2), ["config.json: not understood: wings=2", "--ignore-field"]),
    (
        sets(**{"\x1b[2J": 0, "n" * 1000: 0}),
        "config.json: not understood: '\\x1b[2J'=0, 'nnnnnnnnnnnn...nnnnnnnnnnnnn'=0; pass --ignore",
    ),
    (sets(dtype="int8"), "dtype must be one of float32, bfloat16, float16, float64, got 'int8'"),
    (linked_out(CONFIG), "is a link that leads out of its folder"),
    (
        indexed({"model.norm.weight": SHARD, "model.extra.weight": SHARD}),
        [f"{SHARD} lacks model.extra.weight, model.norm.weight; ", f"{THIRD} holds model.norm.weight, contrary to"],
    ),
    (indexed({}, without="model.norm.weight"), "holds model.norm.weight, contrary to the index"),
    (one_tensor_in_two_shards, "-00003.safetensors holds model.norm.weight, contrary to the index"),
    *(
        (lambda folder, each=each: write_index(folder, each), "weight_map must map the name of each tensor to its file")
        for each in ({"model.norm.weight": 2}, [])
    ),
    (holds(INDEX, b'{"weight_map": {'), "index.json is not JSON"),
    (
        indexed({f"model.{i}": name for i, name in enumerate(OUTSIDE)}),
        [
            "not the plain name of a .safetensors file",
            "'../outside.safetensors'",
            "'/etc/x.safetensors'",
            "'x.bin'",
        ],
    ),
    (
        replaced(INDEX, '"weight_map": {', f'"weight_map": {{"model.norm.weight": "{SHARD}", '),
        "index.json is not JSON: duplicate key: 'model.norm.weight'",
    ),
    (holds(INDEX, b"{" + b" " * 31_999_999 + b"}"), "index.json has 32000001 bytes, above the 32000000"),
    (
        indexed({f"x{i}": SHARD for i in range(100_001)}),
        "index.json holds more than the 100000 values that it can need",
    ),
    (linked_out(SHARD), "is a link that leads out of its folder"),
    (holds(SHARD, b"1234"), [SHARD, "cut short: 4 bytes"]),
    (cut(SHARD, THIRD), [f"{SHARD} is cut short: 10 bytes are missing at the end, of model.", "; /", f"{THIRD} is"]),
    (holds(SHARD, struct.pack("<Q", 100) + bytes(99)), [SHARD, "cut short"]),
    (header(b" " * 9_000_000), [SHARD, "a header of 9000000 bytes is above the limit of 8000000"]),
    (header(b"{" * 16), [SHARD, "the header is not JSON"]),
    (  # the library keeps the last one
        header(f'{{"model.norm.weight":{TWICE % (0, 4)},"model.norm.weight":{TWICE % (4, 8)}}}'.encode(), 8),
        f"{SHARD}: the header is not JSON: duplicate key: 'model.norm.weight'",
    ),
    (
        described(16, a=("F32", [2], 0, 8), b=("F32", [2], 4, 12), c=("F32", [2], 8, 16)),
        f"{SHARD}: tensors overlap: a and b, b and c",
    ),
    (
        described(20, a=("F32", [2], 0, 8), b=("F32", [2], 12, 20)),
        f"{SHARD} holds 20 bytes of tensors, of which its header leaves some unnamed",
    ),
    (
        described(9, a=("F32", [2], 0, 8)),
        f"{SHARD} holds 9 bytes of tensors, of which its header leaves some unnamed",
    ),
    (
        described(8, **NOT_TENSORS),
        f"{SHARD}: the header does not describe a tensor under 'bools', '\\x1b[2J', 'dtype', 'few', 'floats', "
        f"'{'n' * 512}', 'negative', 'rank', 'signed', 'types', ''",
    ),
    (header(b'{"__metadata__": {"format": 1}}'), [SHARD, "the header's __metadata__ holds more than text"]),
    *(
        (
            lambda folder, zipped=zipped: torch.save(Trap(), folder / SHARD, _use_new_zipfile_serialization=zipped),
            f"{SHARD} is a pickle, which can run code and is never opened",
        )
        for zipped in (True, False)
    ),
    (
        stored(with_another_head),
        "the head is tied to the embedding, yet lm_head.weight differs from model.embed_tokens.weight",
    ),
    (
        stored(lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"][:, 1:]}),
        "yet lm_head.weight differs from model.embed_tokens.weight",
    ),
    (
        stored(with_many_mistakes),
        [
            "missing: model.layers.{0-1}.self_attn.q_norm.weight, model.norm.weight",
            "not understood: model.layers.{0-1}.self_attn.q_proj.bias, model.spare",
            "wrong shape: model.layers.1.mlp.up_proj.weight [96, 65] instead of [96, 64]",
            "neither float32, bfloat16, float16 nor float64: model.layers.0.mlp.gate_proj.weight",
        ],
    ),
    (
        stored(lambda tensors: tensors | {"language_model.model.norm.weight": tensors["model.norm.weight"]}),
        "are both stored, for the same parameter",
    ),
]
CASES = [(damage, NotAvailable, phrase) for damage, phrase in MISSING]
CASES += [(damage, MalformedError, phrases) for damage, phrases in MALFORMED]


@pytest.mark.parametrize(("damage", "kind", "phrases"), CASES, ids=[str(phrases)[:40] for _, _, phrases in CASES])
def test_damage(
    damage: Damage,
    kind: type[Exception],
    phrases: str | list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder)
    with pytest.raises(kind) as caught:
        weights.load(folder)
    assert type(caught.value) is kind
    told = str(caught.value)
    assert all(phrase in told for phrase in ([phrases] if isinstance(phrases, str) else phrases)), told
    assert "\n" not in told
    code = runner.exit_code(app, "python -m weights.generate", [str(folder), "--tokens", "1,2"])
    assert code == {NotAvailable: 3, MalformedError: 4}[kind]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("left alone")] == [f"error: {told}"]


def test_only_blobs_of_the_hub_cache_may_be_linked(saved: Saved, tmp_path: Path) -> None:
    """The cache's snapshots are folders of links into blobs/; a link to any other place is refused there too."""
    snapshot, blobs = tmp_path / "models--org--name/snapshots/0123abc", tmp_path / "models--org--name/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in saved("qwen3-0.6b").iterdir():
        (blobs / f"{path.name}-blob").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{path.name}-blob")
    assert weights.load(snapshot).spec == weights.load(saved("qwen3-0.6b")).spec
    linked = snapshot / "model.safetensors"
    outside = linked.resolve().rename(tmp_path / "elsewhere")
    linked.unlink()
    linked.symlink_to(outside)
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


def test_a_config_is_refused_before_anything_is_allocated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.catalog.allocate", lambda *_: pytest.fail("allocated"))
    set_config(folder, hidden_size=2**31)
    with pytest.raises(MalformedError, match=r"config\.json: hidden_size must be an integer from 1 to"):
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


MLX = {"group_size": 64, "bits": 4}
# Fields of a repository in each unsupported scheme, and the scheme's name in the error.
SCHEMES: list[tuple[dict[str, Any], str]] = [
    ({"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm", "zero_point": True}, "AWQ"),
    ({"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}, "AWQ"),  # older
    ({"bits": 4, "group_size": 128, "desc_act": False, "quant_method": "gptq", "sym": True}, "GPTQ"),
    ({"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False}, "GPTQ"),  # older
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}, "bitsandbytes"),
    ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, "bitsandbytes"),  # older
    ({"config_groups": {}, "format": "float-quantized", "quant_method": "compressed-tensors"}, "compressed-tensors"),
    ({"config_groups": {"group_0": {}}, "quant_method": "compressed_tensors"}, "compressed-tensors"),
    ({"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"}, "AutoFP8"),
    ({"activation_scale_ub": 1200.0, "quant_method": "fbgemm_fp8"}, "FBGEMM FP8"),
    ({"quant_algo": "NVFP4", "quant_method": "modelopt", "producer": {"name": "modelopt"}}, "ModelOpt"),
    (MLX | {"mode": "affine"}, "MLX"),  # newer
    ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    ({"quant_method": "q_next"}, "'q_next'"),
    ({"sparkle": 1}, "an unknown scheme"),
]


def refusal(folder: Path, config: Config, **options: Any) -> str:
    """The error message for a folder with this config and no weights, one line."""
    with pytest.raises(MalformedError) as caught:
        weights.load(write(folder, config, {}), **options)
    message = str(caught.value)
    assert message.startswith("config.json: the weights are quantised with a scheme that is not supported, ")
    assert message.isprintable()
    assert "--ignore-field" not in message
    assert all(each.description in message for each in FORMATS.values())
    return message


@pytest.mark.parametrize(("said", "name"), SCHEMES)
def test_a_scheme_is_named_before_any_field_is_judged(said: dict[str, Any], name: str, tmp_path: Path) -> None:
    """The scheme does not matter for the spec, and so for tables of parameters and caches."""
    preset = smallest()[0]
    assert zoo.from_hf(older(preset, quantization_config=said, quantization=MLX)) == zoo.spec(preset)
    config = older(preset, quantization_config=said, surprise=3)
    del config["hidden_size"]
    message = refusal(tmp_path, config, ignore_fields=["quantization_config"])
    assert name in message
    assert "surprise" not in message
    assert name in refusal(tmp_path, config | {"model_type": "none of ours"})


def test_every_named_method_is_refused_by_its_name() -> None:
    for method, name in NAMES.items():
        for spelt in (method, method.upper(), method.replace("-", "_")):
            with pytest.raises(MalformedError, match=name):
                refuse({"quantization_config": {"quant_method": spelt}})


def test_experts_in_another_format_than_the_rest() -> None:
    """The field is beside the scheme (DeepSeek-V4) or in it. Without a scheme, it says nothing about the stored
    tensors."""
    for dtype in ("fp6", ["fp4"], 4):
        for said in (
            {"expert_dtype": dtype, "quantization_config": FP8_CONFIG},
            {"quantization_config": {**FP8_CONFIG, "expert_dtype": dtype}},
            {"text_config": {"expert_dtype": dtype, "quantization_config": FP8_CONFIG}},
        ):
            with pytest.raises(MalformedError, match="experts in another format than the rest"):
                check_scheme(Path("nowhere"), said)
    refuse({"expert_dtype": "fp6"})
    for dtype in ("fp4", "fp8", None):
        refuse({"expert_dtype": dtype, "quantization_config": FP8_CONFIG})


def test_schemes_outside_quantization_config(tmp_path: Path) -> None:
    """They are MLX's, even beside a supported one, that of a wrapper's text part, and ModelOpt's in a separate file."""
    name = smallest()[0]
    for beside in ({}, {"quantization_config": MLX}, {"quantization_config": MXFP4_CONFIG}):
        assert "MLX: quantization=" in refusal(tmp_path, older(name, quantization=MLX, **beside))
    inner = {"quantization_config": {"quant_method": "gptq"}}
    assert "GPTQ" in refusal(tmp_path, {"model_type": "gemma3", "text_config": inner})
    (tmp_path / MODELOPT).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}), encoding="utf-8")
    assert f"NVIDIA ModelOpt: {MODELOPT} is there" in refusal(tmp_path, older(name, quantization_config=None))


@pytest.mark.parametrize("said", [FP8_CONFIG, MXFP4_CONFIG, None, {}])
def test_supported_schemes_are_not_refused(said: dict[str, Any] | None) -> None:
    refuse({"quantization_config": said or None, "quantization": said and None})
