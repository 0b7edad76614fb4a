"""A streamed report takes the memory of two layers. (test_reference_runs.py: it equals the one made in
memory.)"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import weights
from tests.ranks import in_process
from tests.weights.checkpoints import write_index

Saved = Callable[[str], Path]
MB = 10**6


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


def peak() -> int:
    """The most bytes that this process has held so far. Not ru_maxrss, which may begin with that of another process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def measured(small: str, large: str, tokens: int) -> tuple[bool, int, int]:
    """Whether the report of `large` passes, how many parts it has, and by how much the peak grows meanwhile: for a
    process of its own."""
    weights.parity(small, tokens=8, streaming=True)  # everything is imported
    before = peak()
    report = weights.parity(large, tokens=tokens, streaming=True)
    return report.passed, len(report.parts), peak() - before


SIZES = {
    "100 MB": dict(layers=8, dim=512, hidden=3072, vocab=2000),
    "2 GB": dict(layers=14, dim=2048, hidden=8192, vocab=32_000),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is of Linux")
@pytest.mark.parametrize("size", ["100 MB", pytest.param("2 GB", marks=pytest.mark.slow)])
def test_peak_memory_is_the_embedding_two_layers_and_the_activations(saved: Saved, tmp_path: Path, size: str) -> None:
    """In float64, which takes the most."""
    shape, tokens, prompts = SIZES[size], 16, 3
    folder = checkpoint(tmp_path / "large", **shape)
    passed, parts, peak = in_process(measured, str(saved("llama3-8b")), str(folder), tokens)
    dim, hidden, vocab, layers = shape["dim"], shape["hidden"], shape["vocab"], shape["layers"]
    layer, embedding = 4 * dim * dim + 3 * dim * hidden, vocab * dim
    numbers = embedding + 2 * layer
    activations = 8 * prompts * tokens * (6 * vocab + 2 * layers * dim)  # logits, with what compares them; a cache
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert layers * layer > 3 * numbers  # the bound means something
    assert passed
    assert parts == 2 * layers + 2
    print(f"{peak / MB:.0f} MB peak, bound {8 * numbers / MB:.0f} + {activations / MB:.0f} + 30")
    assert peak <= 8 * numbers + activations + 30 * MB, f"{peak / MB:.0f} MB, of a file of {stored / MB:.0f}"
