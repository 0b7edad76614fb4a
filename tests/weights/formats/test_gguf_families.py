"""Every family's .gguf file gives the logits of the reference whose weights it holds."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

import weights
import zoo
from tests import toys
from tests.exact import assert_equal
from tests.presets import over
from tests.reference import published, toy_config
from tests.weights.formats.gguf_converter import KINDS, PREDICTION, Case, write
from tests.weights.formats.gguf_fields import fields
from tests.weights.packers import mxfp4, mxfp4_numbers
from weights.formats.gguf_file import GGUFFile
from weights.formats.gguf_layout import ARCHITECTURES
from weights.formats.gguf_metadata import SHAPES, metadata_of, spec_differences
from weights.loading import open_source
from weights.reference.model import config_of
from zoo.architectures import families
from zoo.blocks import MoE
from zoo.catalog import allocate
from zoo.errors import MalformedError
from zoo.hf.config import Size

Toy = Callable[[str], Case]


def family_of(name: str) -> ModuleType:
    return next(module for module in families().values() if name in module.SIZES)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The case of a preset, whose dimensions are registered as a preset "toy"."""

    def make(name: str) -> Case:
        case, family = Case(name), family_of(name)
        spec = family.from_hf(case.config)
        monkeypatch.setitem(family.SIZES, "toy", Size("toy", spec.params(), spec, released="2025-01"))
        return case

    return make


def refused(case: Case, path: Path, phrase: str) -> None:
    with pytest.raises(MalformedError, match=phrase):
        weights.load(case.write(path))


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_the_reference(name: str, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = toy(name)
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(case.write(tmp_path / "x.gguf"), dtype=torch.float64)
    tokens, logits = case.logits()
    assert logits.abs().max() > 1
    assert_equal(model(tokens), logits)
    assert re.search(r"x\.gguf does not say the layer pattern.*: taken from toy, of the same dimensions", caplog.text)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("gemma3")])
def test_the_reference_computes_with_the_decimal_numbers_of_a_file_in_float32(
    name: str, toy: Toy, tmp_path: Path
) -> None:
    """A norm's eps of 9.99999997e-07 moves logits by more than rounding does."""
    source = open_source(toy(name).write(tmp_path / "x.gguf"))
    assert source.spec().norm.eps == config_of(source).rms_norm_eps == 1e-6


@over(KINDS)
def test_the_library_knows_these_tensors(name: str) -> None:
    """The library knows each name for the architecture: a name that GGUF does not have would prove nothing."""
    case = Case(name)
    arch = next(arch for arch, kind in gguf.MODEL_ARCH_NAMES.items() if kind == case.kind)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    stems = {re.sub(r"\.(weight|bias|scale)$", "", name) for name in case.tensors if not name.endswith(PREDICTION)}
    assert {re.sub(r"^blk\.\d+", "blk.{bid}", stem) for stem in stems} <= known


WITHOUT_POSITIONS = {"rope.freq_base", "rope.dimension_count"}
# Fields that change nothing, apart from the context and the size of the vocabulary.
INERT = dict.fromkeys(("granitehybrid", "kimi-linear", "nemotron_h_moe"), WITHOUT_POSITIONS)
INERT |= {kind: {"rope.dimension_sections"} for kind in ("qwen35", "qwen35moe")}


@pytest.mark.parametrize("name", KINDS)
def test_every_other_field_of_a_file_is_compared(name: str, tmp_path: Path) -> None:
    case = Case(name)
    spec = family_of(name).from_hf(case.config)
    metadata = GGUFFile(write(tmp_path / "x.gguf", case.kind, case.said, {}))._metadata
    assert spec_differences(case.kind, metadata, spec) == []
    inert = {"context_length", "vocab_size", "nextn_predict_layers"} | SHAPES | INERT.get(case.kind, set())
    any_value = {key for key, value in metadata_of(case.kind, spec).items() if value is ...}
    assert inert & metadata.keys() == any_value & metadata.keys()
    for key in metadata.keys() - inert:
        value = metadata[key]
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2
        if key == "attention.sliding_window" and value >= metadata["context_length"]:
            other = 7  # longer ones are none, too
        differences = spec_differences(case.kind, metadata | {key: other}, spec)
        assert f"{key} {other} instead of {metadata_of(case.kind, spec)[key]}" in differences


@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fields_that_are_not_compared_show_in_the_tensors(most: int) -> None:
    """Other sizes in a config that change such a field change a compared field too, or the tensors."""
    changing = set[str]()
    for name, kind in KINDS.items():
        config = toys.config(name)
        family = family_of(name)
        spec, said = family.from_hf(config), fields(config, kind)
        usual = spec_differences(kind, said, spec)  # the layers of multi-token prediction
        for count, changed in changed_sizes(config):
            try:
                says = fields(changed, kind)
                differ = {key for key in SHAPES & said.keys() if says.get(key) != said[key]}
                if not count <= min(most, len(differ)):
                    continue
                other = family.from_hf(changed)
            except (MalformedError, LookupError, ZeroDivisionError):
                continue
            if other.layers != spec.layers and spec_differences(kind, says, spec) == usual:
                assert shapes(other) != shapes(spec), (name, differ)
            changing |= differ
    assert changing == SHAPES


def changed_sizes(config: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the config with another value in each of its integers, in two of them whose product stays, and with the
    first value throughout each list; each with the number of changed fields."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((count, config | {key: inner}) for count, inner in changed_sizes(value))
        elif isinstance(value, list):
            yield 1, config | {key: value[:1] * len(value)}
        elif type(value) is int:
            yield from ((1, config | {key: other}) for other in (2 * value, value // 2, value + 1, value - 1))
            even = {name: other // 2 for name, other in config.items() if type(other) is int and other % 2 == 0}
            yield from ((2, config | {key: 2 * value, name: other}) for name, other in even.items())


def shapes(spec: zoo.Decoder) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in allocate(spec, "meta").state_dict().items()}


@pytest.mark.parametrize("name", ["kimi-linear-48b-a3b", "ministral3-3b", "qwen3.5-0.8b"])
def test_axes_of_length_one_come_and_go(name: str, toy: Toy, tmp_path: Path) -> None:
    """llama.cpp's quantisation drops trailing axes of length one."""
    case = toy(name)
    usual = weights.load(case.write(tmp_path / "x.gguf")).state_dict()
    for other in (Tensor.squeeze, lambda tensor: tensor[None]):
        tensors = {key: other(torch.as_tensor(tensor)) for key, tensor in case.tensors.items()}
        # The embedding's rows are counted, and the parts of keys and values are joined by their axes.
        tensors |= {key: case.tensors[key] for key in tensors if re.search("token_embd|attn_[kv]_b", key)}
        changed = weights.load(write(tmp_path / "changed.gguf", case.kind, case.said, tensors)).state_dict()
        assert all(torch.equal(changed[key], tensor) for key, tensor in usual.items())


def test_turned_tensors(toy: Toy, tmp_path: Path) -> None:
    case = toy("kimi-linear-48b-a3b")
    assert case.tensors["blk.0.ssm_conv1d_q.weight"].shape == (1, 96, 1, 4)
    case.tensors = {name: tensor.squeeze() for name, tensor in case.tensors.items()}
    case.tensors["blk.0.ssm_conv1d_q.weight"] = case.tensors["blk.0.ssm_conv1d_q.weight"].T
    refused(case, tmp_path / "turned.gguf", r"q_conv1d\.weight \[4, 96\] instead of \[96, 1, 4\]")


def test_tensors_that_are_packed_in_some_files(toy: Toy, tmp_path: Path) -> None:
    """Qwen3-Next's first files have its linear attention's projections as released; other files have gate and up in one
    tensor."""
    case = toy("qwen3-next-80b-a3b")
    usual = weights.load(case.write(tmp_path / "x.gguf")).state_dict()
    tensors = dict(case.tensors)
    del tensors["blk.0.attn_qkv.weight"], tensors["blk.0.attn_gate.weight"]
    tensors["blk.0.ssm_in.weight"] = case.reference.state_dict()["model.layers.0.linear_attn.in_proj_qkvz.weight"]
    both = [tensors.pop(f"blk.1.ffn_{part}_exps.weight") for part in ("gate", "up")]
    tensors["blk.1.ffn_gate_up_exps.weight"] = torch.cat(both, dim=1)
    packed = weights.load(write(tmp_path / "packed.gguf", case.kind, case.said, tensors)).state_dict()
    assert all(torch.equal(packed[name], tensor) for name, tensor in usual.items())


def test_rows_of_heads_without_positions(toy: Toy, tmp_path: Path) -> None:
    """Granite's rows are stored in pairs like Llama's. Its logits do not show this, since it has no rotation."""
    case = toy("granite4-h-tiny")
    model = weights.load(case.write(tmp_path / "x.gguf"))
    for part in "qk":
        stored = case.reference.state_dict()[f"model.layers.5.self_attn.{part}_proj.weight"]
        assert torch.equal(model.get_parameter(f"layers.5.attn.block.{part}.weight"), stored)
        assert not torch.equal(case.tensors[f"blk.5.attn_{part}.weight"], stored)


NOT_READ = {"deepseek-v3-2", "deepseek-v4"}  # docs/loading.md gives the reason


def test_every_family_is_read_or_named_as_not_read() -> None:
    """Every architecture that is read has a case here."""
    read = {name for architecture in ARCHITECTURES.values() for name in architecture.families}
    assert families().keys() - read == NOT_READ
    assert ARCHITECTURES.keys() == set(KINDS.values())
    assert read == {family for family, module in families().items() if module.SIZES.keys() & KINDS.keys()}


@pytest.mark.parametrize("name", ["glm4.5-355b", "nemotron3-super-120b-a12b", "qwen3.5-0.8b"])
def test_the_layer_for_multi_token_prediction(
    name: str, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not read. Files without it can be read as well."""
    case = toy(name)
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(case.write(tmp_path / "x.gguf"))
    assert "left alone: 1 tensor, the multi-token prediction layer" in caplog.text
    layers, said = len(model.layers), dict(case.said)
    assert said.pop("nextn_predict_layers") == said["block_count"] - layers == 1
    said = {key: value[:layers] if isinstance(value, list) else value for key, value in said.items()}
    tensors = {name: tensor for name, tensor in case.tensors.items() if not name.endswith(PREDICTION)}
    path = write(tmp_path / "without.gguf", case.kind, said | {"block_count": layers}, tensors)
    assert len(weights.load(path).layers) == layers


def test_keys_and_values_of_other_sizes(toy: Toy, tmp_path: Path) -> None:
    """The two parts of a matrix must fit each other."""
    case = toy("moonlight-16b-a3b")
    case.tensors["blk.1.attn_v_b.weight"] = case.tensors["blk.1.attn_v_b.weight"][:, :, 1:]
    refused(case, tmp_path / "x.gguf", r"kv_b_proj\.weight \[4, 32, 32\] instead of \[224, 32\]")
    del case.tensors["blk.1.attn_v_b.weight"]
    refused(case, tmp_path / "y.gguf", r"missing: .*1\.self_attn\.kv_b_proj\.weight.*blk\.1\.attn_k_b\.weight")


def test_keys_and_values_in_one_tensor(toy: Toy, tmp_path: Path) -> None:
    """llama.cpp's converter wrote them like this before April 2025, with the widths of each head in the metadata."""
    case = toy("moonlight-16b-a3b")
    usual = weights.load(case.write(tmp_path / "x.gguf")).state_dict()
    said, heads = dict(case.said), case.said["attention.head_count"]
    said |= {"attention.head_count_kv": heads, "attention.key_length": said.pop("attention.key_length_mla")}
    said["attention.value_length"] = said.pop("attention.value_length_mla")
    tensors = {name: tensor for name, tensor in case.tensors.items() if not re.search(r"attn_[kv]_b", name)}
    for name, tensor in case.reference.state_dict().items():
        if name.endswith("kv_b_proj.weight"):
            tensors[f"blk.{name.split('.')[2]}.attn_kv_b.weight"] = tensor
    model = weights.load(write(tmp_path / "older.gguf", case.kind, said, tensors))
    assert all(torch.equal(usual[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_mxfp4_experts(toy: Toy, tmp_path: Path) -> None:
    """gpt-oss as released in .gguf files: parameters equal the unpacked codes."""
    case = toy("gpt-oss-20b")
    for name, tensor in list(case.tensors.items()):
        if name.endswith("exps.weight"):
            case.tensors[name] = mxfp4(tensor)
    model = weights.load(case.write(tmp_path / "x.gguf"))
    for i, layer in enumerate(model.layers):
        for part in ("gate", "up", "down"):
            numbers = mxfp4_numbers(*case.tensors[f"blk.{i}.ffn_{part}_exps.weight"]).float()
            assert torch.equal(getattr(layer.ffn.block.experts, part), numbers), (i, part)


ROPE_TABLES = {
    ("llama3.1-8b", "freqs"): lambda table: table * np.float32(1.001),
    ("llama3.1-8b", "freqs "): lambda table: table[:3],
    ("gpt2-small", "freqs"): lambda _: np.ones(8, dtype=np.float32),  # a model without rotation
    **{("phi4-mini-3.8b", f"factors_{x}"): lambda table: table * np.float32(1.001) for x in ("short", "long")},
}


@pytest.mark.parametrize(("name", "table"), ROPE_TABLES)
def test_rotary_tables_must_be_the_presets(name: str, table: str, toy: Toy, tmp_path: Path) -> None:
    case, key = toy(name), f"rope_{table.strip()}"
    case.tensors[f"{key}.weight"] = ROPE_TABLES[name, table](case.tensors.get(f"{key}.weight"))
    refused(case, tmp_path / "x.gguf", f"toy is nearest, but for another table of {key}")


def test_a_window_within_the_context_is_compared(toy: Toy, tmp_path: Path) -> None:
    """A window as long as the context or longer counts as no window."""
    case = toy("phi4-mini-3.8b")
    assert case.said["attention.sliding_window"] == 2048
    case.said["attention.sliding_window"] = 1024
    weights.load(case.write(tmp_path / "x.gguf"))
    case.said["attention.sliding_window"] = 1023
    refused(case, tmp_path / "y.gguf", r"attention\.sliding_window 1023 instead of 0")


@pytest.mark.parametrize(("name", "table"), [("llama3.1-8b", "rope_freqs"), ("phi4-mini-3.8b", "rope_factors_long")])
def test_missing_rotary_tables_are_logged(
    name: str, table: str, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = toy(name)
    del case.tensors[f"{table}.weight"]
    with caplog.at_level(logging.INFO, "weights"):
        weights.load(case.write(tmp_path / "x.gguf"))
    assert f"does not say the layer pattern, {table}: taken from toy" in caplog.text


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"expert_count": 9}, "expert_count 9 instead of 8"),
        ({"expert_used_count": 2}, "expert_used_count 2 instead of 3"),
        ({"rope.scaling.factor": 16.0}, "rope.scaling.factor 16.0 instead of 32"),
        ({"attention.sliding_window": 17}, "attention.sliding_window 17 instead of 16"),
        ({"rope.scaling.type": "linear"}, "rope.scaling.type linear instead of yarn"),
    ],
)
def test_no_preset_is_an_error(change: dict[str, Any], phrase: str, toy: Toy, tmp_path: Path) -> None:
    case = toy("gpt-oss-20b")
    case.said |= change
    refused(case, tmp_path / "x.gguf", rf"toy is nearest, but for {re.escape(phrase)}")


def kinds_of(name: str) -> list[str]:
    """GGUF's names of a preset's architecture: those of its family with experts or without, if it has both."""
    family = next(family for family, module in families().items() if name in module.SIZES)
    kinds = [kind for kind, architecture in ARCHITECTURES.items() if family in architecture.families]
    has_experts = any(isinstance(part, MoE) for part in zoo.spec(name).walk())
    return [kind for kind in kinds if (f"{kind}moe" not in kinds if has_experts else not kind.endswith("moe"))]


@pytest.mark.parametrize("name", [name for name in published() if kinds_of(name)])
def test_the_file_of_a_published_config_is_that_of_the_preset(name: str, tmp_path: Path) -> None:
    for kind in kinds_of(name):
        file = GGUFFile(write(tmp_path / f"{kind}.gguf", kind, fields(published()[name]["config"], kind), {}))
        assert file.spec().layers == zoo.spec(name).layers
        assert file.preset[0] == name


def test_presets_that_differ_in_their_context_alone(tmp_path: Path) -> None:
    """Llama 3 8B and 3.1 8B have the same dimensions but different contexts."""
    said = fields(toy_config("llama3-8b", 1), "llama") | {
        "block_count": 32,
        "embedding_length": 4096,
        "feed_forward_length": 14_336,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
    }
    said |= {"attention.key_length": 128, "attention.value_length": 128}
    for context, preset in ((8192, "llama3-8b"), (131_072, "llama3.1-8b")):
        path = write(tmp_path / f"{context}.gguf", "llama", said | {"context_length": context}, {})
        assert GGUFFile(path).preset[0] == preset


def test_a_head_stored_although_it_is_tied(toy: Toy, tmp_path: Path) -> None:
    case = toy("qwen3-0.6b")
    case.tensors["output.weight"] = case.tensors["token_embd.weight"]
    assert weights.load(case.write(tmp_path / "same.gguf")).head is None
    case.tensors["output.weight"] = case.tensors["token_embd.weight"] + 1
    refused(case, tmp_path / "other.gguf", "differs from")
