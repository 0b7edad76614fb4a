"""Every family's .gguf file gives the logits of the reference whose weights it holds.

The files are written here as llama.cpp's converter writes them: by a table of names of our own, rows of Llama's queries
and keys in pairs, experts stacked with gate and up apart.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import weights
from tests import toys
from tests.reference import toy_config
from tests.weights.checkpoints import Config, Tensors
from tests.weights.packers import mxfp4, mxfp4_numbers
from zoo.architectures import families
from zoo.errors import MalformedError
from zoo.hf.config import Size

KINDS = {
    "llama3.1-8b": "llama",
    "llama3.2-1b": "llama",
    "mistral-small-3.1-24b": "llama",
    "mixtral-8x7b": "llama",
    "qwen2.5-0.5b": "qwen2",
    "qwen2.5-7b": "qwen2",
    "qwen3-0.6b": "qwen3",
    "qwen3-30b-a3b": "qwen3moe",
    "olmo2-7b": "olmo2",
    "smollm3-3b": "smollm3",
    "gpt-oss-20b": "gpt-oss",
    "gemma2-2b": "gemma2",
    "gemma3-1b": "gemma3",
}
PAIRED, GEMMA = {"llama", "smollm3"}, {"gemma2", "gemma3"}
POST = {"olmo2", "gpt-oss", *GEMMA}
NAMES = [
    (r"model\.embed_tokens", "token_embd"),
    (r"model\.norm", "output_norm"),
    (r"lm_head", "output"),
    (r"model\.layers\.(\d+)\.input_layernorm", r"blk.\1.attn_norm"),
    (r"model\.layers\.(\d+)\.pre_feedforward_layernorm", r"blk.\1.ffn_norm"),
    (r"model\.layers\.(\d+)\.post_feedforward_layernorm", r"blk.\1.post_ffw_norm"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj", r"blk.\1.attn_output"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj", r"blk.\1.attn_\2"),
    (r"model\.layers\.(\d+)\.self_attn\.([qk])_norm", r"blk.\1.attn_\2_norm"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj", r"blk.\1.ffn_\2"),
    (r"model\.layers\.(\d+)\.mlp\.(router|gate)", r"blk.\1.ffn_gate_inp"),
]


def renamed(name: str, kind: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem.endswith("post_attention_layernorm"):
        return f"blk.{stem.split('.')[2]}.{'post_attention_norm' if kind in POST else 'ffn_norm'}.{leaf}"
    (new,) = [re.sub(pattern, ours, stem) for pattern, ours in NAMES if re.fullmatch(pattern, stem)]
    return f"{new}.{leaf}"


def converted(name: str, tensor: Tensor, kind: str, config: Config) -> Tensors:
    """One of transformers' tensors -> as llama.cpp stores it."""
    layer = name.split(".")[2] if ".layers." in name else ""
    if name.endswith("sinks"):
        return {f"blk.{layer}.attn_sinks.weight": tensor}
    if ".experts." in name:
        return experts(name.rpartition(".")[2], layer, tensor, kind)
    if kind in PAIRED and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        width = len(tensor) // heads
        order = [h * width + half for h in range(heads) for j in range(width // 2) for half in (j, j + width // 2)]
        tensor = tensor[order]
    if kind in GEMMA and "norm" in name:
        tensor = tensor + 1
    return {renamed(name, kind): tensor}


def experts(part: str, layer: str, tensor: Tensor, kind: str) -> Tensors:
    """transformers' experts: gate and up in one, for gpt-oss transposed and by turns."""
    place, bias = f"blk.{layer}.ffn", part.endswith("_bias")
    if kind == "gpt-oss" and not bias:
        tensor = tensor.transpose(1, 2)
    leaf = "bias" if bias else "weight"
    if part.startswith("down"):
        return {f"{place}_down_exps.{leaf}": tensor}
    half = tensor.shape[1] // 2
    gate, up = (tensor[:, 0::2], tensor[:, 1::2]) if kind == "gpt-oss" else (tensor[:, :half], tensor[:, half:])
    return {f"{place}_gate_exps.{leaf}": gate, f"{place}_up_exps.{leaf}": up}


def fields(config: Config, kind: str) -> dict[str, Any]:
    """The metadata that the converter writes for a config."""
    said = {
        "context_length": config["max_position_embeddings"],
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "vocab_size": config["vocab_size"],
    }
    if config.get("head_dim"):
        said |= {"attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"]}
    if kind == "qwen3moe":
        said |= {"expert_count": config["num_experts"], "expert_used_count": config["num_experts_per_tok"]}
        said |= {"expert_feed_forward_length": config["moe_intermediate_size"]}
    if "num_local_experts" in config:
        said |= {"expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"]}
    if kind == "gpt-oss":
        said |= {"expert_feed_forward_length": config["intermediate_size"]}
        said |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 64}
    if kind in ("gpt-oss", *GEMMA):
        said["attention.sliding_window"] = config["sliding_window"]
    if kind == "gemma2":
        del said["rope.freq_base"]
        said |= {key: config[key] for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    return said


def rope_freqs(config: Config) -> np.ndarray:
    """Llama 3.1's factors, by the converter's formula (in float64)."""
    scaling, width = config["rope_scaling"], config.get("head_dim") or 16
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor, found = scaling["original_max_position_embeddings"], scaling["factor"], []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (i / width)
        smooth = (original / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        found.append(1 if wavelength < original / high else factor if wavelength > original / low else between)
    return np.array(found, dtype=np.float32)


def write(path: Path, kind: str, said: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """A .gguf file. A pair of blocks and scales is written in the file's own form of MXFP4."""
    writer = gguf.GGUFWriter(path, kind)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in said.items():
        add[type(value)](f"{kind}.{key}", value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, mxfp4_bytes(*tensor), raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def mxfp4_bytes(blocks: Tensor, scales: Tensor) -> np.ndarray:
    """gpt-oss's blocks -> 17 bytes each: the scale, then elements 0 to 15 in low halves and 16 to 31 in high halves."""
    codes = torch.stack([blocks % 16, blocks // 16], dim=-1).flatten(-2)
    packed = torch.cat([scales[..., None], codes[..., :16] + 16 * codes[..., 16:]], dim=-1)
    return packed.flatten(-2).numpy()


class Case:
    """A toy reference, and its .gguf file's fields and tensors."""

    def __init__(self, name: str) -> None:
        self.name, self.kind = name, KINDS[name]
        self.config = toys.config(name)
        self.reference: nn.Module = toys.reference(name)
        tied = self.config.get("tie_word_embeddings") or self.kind in GEMMA
        self.said, self.tensors = fields(self.config, self.kind), dict[str, Any]()
        for key, tensor in self.reference.state_dict().items():
            if key != "lm_head.weight" or not tied:
                self.tensors |= converted(key, tensor, self.kind, self.config)
        if "llama3" in str(self.config.get("rope_scaling")):
            self.tensors["rope_freqs.weight"] = rope_freqs(self.config)

    @torch.no_grad()
    def logits(self) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, self.config["vocab_size"], (2, 80), generator=torch.Generator().manual_seed(1))
        return tokens, self.reference(tokens).logits


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], Case]:
    """Registers a preset "toy" with a case's dimensions."""

    def register(case: Case) -> Case:
        family = next(module for module in families().values() if case.name in module.SIZES)
        spec = family.from_hf(case.config)
        monkeypatch.setitem(family.SIZES, "toy", Size("toy", spec.params(), spec, released="2025-01"))
        return case

    return register


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_the_reference(
    name: str, toy: Callable[[Case], Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = toy(Case(name))
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(write(tmp_path / "x.gguf", case.kind, case.said, case.tensors))
    tokens, logits = case.logits()
    assert logits.abs().max() > 1
    assert (model(tokens) - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert re.search(r"x\.gguf does not say the layer pattern.*: taken from toy, of the same dimensions", caplog.text)


@torch.no_grad()
def test_mxfp4_experts(toy: Callable[[Case], Case], tmp_path: Path) -> None:
    """gpt-oss as released in .gguf files: parameters equal the unpacked codes."""
    case = toy(Case("gpt-oss-20b"))
    for name, tensor in list(case.tensors.items()):
        if name.endswith("exps.weight"):
            case.tensors[name] = mxfp4(tensor)
    model = weights.load(write(tmp_path / "x.gguf", case.kind, case.said, case.tensors))
    for i, layer in enumerate(model.layers):
        for part in ("gate", "up", "down"):
            numbers = mxfp4_numbers(*case.tensors[f"blk.{i}.ffn_{part}_exps.weight"]).float()
            assert torch.equal(getattr(layer.ffn.block.experts, part), numbers), (i, part)


def test_rope_freqs_must_be_the_presets(toy: Callable[[Case], Case], tmp_path: Path) -> None:
    case = toy(Case("llama3.1-8b"))
    case.tensors["rope_freqs.weight"] = case.tensors["rope_freqs.weight"] * np.float32(1.001)
    with pytest.raises(MalformedError, match=r"toy is nearest, but for another table of rope_freqs"):
        weights.load(write(tmp_path / "other.gguf", case.kind, case.said, case.tensors))
    case.tensors["rope_freqs.weight"] = np.ones(3, dtype=np.float32)
    with pytest.raises(MalformedError, match=r"toy is nearest, but for another table of rope_freqs"):
        weights.load(write(tmp_path / "short.gguf", case.kind, case.said, case.tensors))


def test_missing_rope_freqs_are_logged(
    toy: Callable[[Case], Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = toy(Case("llama3.1-8b"))
    del case.tensors["rope_freqs.weight"]
    with caplog.at_level(logging.INFO, "weights"):
        weights.load(write(tmp_path / "x.gguf", case.kind, case.said, case.tensors))
    assert "does not say the layer pattern, rope_freqs: taken from toy" in caplog.text


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
def test_no_preset_is_an_error(
    change: dict[str, Any], phrase: str, toy: Callable[[Case], Case], tmp_path: Path
) -> None:
    case = toy(Case("gpt-oss-20b"))
    with pytest.raises(MalformedError, match=rf"toy is nearest, but for {re.escape(phrase)}"):
        weights.load(write(tmp_path / "x.gguf", case.kind, case.said | change, case.tensors))


def test_presets_that_differ_in_their_context_alone(tmp_path: Path) -> None:
    """Llama 3 and 3.1 with 8B have the same dimensions, and other positions."""
    from weights.formats.gguf_file import GGUFFile

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


def test_a_head_stored_although_it_is_tied(toy: Callable[[Case], Case], tmp_path: Path) -> None:
    case = toy(Case("qwen3-0.6b"))
    case.tensors["output.weight"] = case.tensors["token_embd.weight"]
    assert weights.load(write(tmp_path / "same.gguf", case.kind, case.said, case.tensors)).head is None
    case.tensors["output.weight"] = case.tensors["token_embd.weight"] + 1
    with pytest.raises(MalformedError, match="differs from"):
        weights.load(write(tmp_path / "other.gguf", case.kind, case.said, case.tensors))
