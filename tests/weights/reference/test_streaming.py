"""The streamed report equals the one made in memory, and takes the memory of two layers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import weights
from tests.presets import screen, split
from tests.weights.checkpoints import read, write, write_index

Saved = Callable[[str], Path]
TOKENS = 80
MB = 10**6


def without_provenance(report: weights.ParityReport) -> weights.ParityReport:
    """The report without the fields that say how it was made."""
    return replace(report, streaming=False, reference="")


@pytest.mark.parametrize("dtype", split(["float32", "bfloat16"], ["float32"]))
@pytest.mark.parametrize("name", screen())
def test_streaming_gives_the_same_report(saved: Saved, name: str, dtype: str) -> None:
    whole = weights.parity(saved(name), tokens=TOKENS, dtype=dtype)
    parts = weights.parity(saved(name), tokens=TOKENS, dtype=dtype, streaming=True)
    assert parts.streaming
    assert parts.passed
    assert without_provenance(parts) == without_provenance(whole)


def test_streaming_finds_damage(saved: Saved, tmp_path: Path) -> None:
    config, tensors = read(saved("qwen3-30b-a3b"))
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    copy = write(tmp_path / "copy", config, tensors | {name: tensors[name] * 1.05}, shards=3)
    report = weights.parity(copy, reference=saved("qwen3-30b-a3b"), tokens=TOKENS, streaming=True)
    assert not report.passed
    assert str(report.first) == "layer 1's feed-forward"
    assert without_provenance(report) == without_provenance(
        weights.parity(copy, reference=saved("qwen3-30b-a3b"), tokens=TOKENS)
    )


def checkpoint(folder: Path, layers: int, dim: int, hidden: int, vocab: int) -> Path:
    """A Llama in bfloat16 with a tied head, a shard for each layer, of which one at a time is in memory."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": dim // 128,
        "num_key_value_heads": dim // 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator, weight_map = torch.Generator().manual_seed(0), {}

    def keep(shard: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).normal_(std=shape[-1] ** -0.5, generator=generator)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / shard)
        weight_map.update(dict.fromkeys(tensors, shard))

    keep("outside.safetensors", {"model.embed_tokens.weight": (vocab, dim), "model.norm.weight": (dim,)})
    for i in range(layers):
        shapes: dict[str, tuple[int, ...]] = {f"self_attn.{p}_proj.weight": (dim, dim) for p in "qkvo"}
        shapes |= {f"mlp.{p}_proj.weight": (hidden, dim) for p in ("gate", "up")}
        shapes |= {"mlp.down_proj.weight": (dim, hidden)}
        shapes |= {f"{norm}_layernorm.weight": (dim,) for norm in ("input", "post_attention")}
        keep(f"layer-{i}.safetensors", {f"model.layers.{i}.{name}": shape for name, shape in shapes.items()})
    write_index(folder, weight_map)
    return folder


MEASURE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads({threads})
import weights
def peak():  # not ru_maxrss, which begins with that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
weights.parity(sys.argv[1], tokens=8, streaming=True)  # everything is imported
before = peak()
report = weights.parity(sys.argv[2], tokens={tokens}, streaming=True)
print(json.dumps([report.passed, len(report.parts), peak() - before]))
"""


def measured(small: Path, large: Path, tokens: int) -> tuple[bool, int, int]:
    code = MEASURE.format(threads=torch.get_num_threads(), tokens=tokens)
    command = [sys.executable, "-c", code, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    result: Any = json.loads(done.stdout)
    return tuple(result)


SIZES = {
    "350 MB": dict(layers=10, dim=1024, hidden=4096, vocab=8000),
    "2 GB": dict(layers=14, dim=2048, hidden=8192, vocab=32_000),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is of Linux")
@pytest.mark.parametrize("size", ["350 MB", pytest.param("2 GB", marks=pytest.mark.slow)])
def test_peak_memory_is_the_embedding_two_layers_and_the_activations(saved: Saved, tmp_path: Path, size: str) -> None:
    """In float64, which takes the most."""
    shape, tokens, prompts = SIZES[size], 64, 3
    folder = checkpoint(tmp_path / "large", **shape)
    passed, parts, peak = measured(saved("llama3-8b"), folder, tokens)
    dim, hidden, vocab, layers = shape["dim"], shape["hidden"], shape["vocab"], shape["layers"]
    layer, embedding = 4 * dim * dim + 3 * dim * hidden, vocab * dim
    numbers = embedding + 2 * layer
    activations = 8 * prompts * tokens * (6 * vocab + 2 * layers * dim)  # logits, with what compares them; a cache
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert layers * layer > 3 * numbers  # the bound means something
    assert passed
    assert parts == 2 * layers + 2
    print(f"{peak / MB:.0f} MB peak, bound {8 * numbers / MB:.0f} + {activations / MB:.0f} + 40")
    assert peak <= 8 * numbers + activations + 40 * MB, f"{peak / MB:.0f} MB, of a file of {stored / MB:.0f}"
