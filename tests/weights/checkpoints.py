"""Writing checkpoints in forms that transformers does not write: test code, independent of the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Config = dict[str, Any]
Tensors = dict[str, Tensor]


def read(folder: Path) -> tuple[Config, Tensors]:
    """A folder's config and tensors."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, load_file(folder / "model.safetensors")


def write(folder: Path, config: Config, tensors: Tensors, shards: int = 1) -> Path:
    """A folder in Hugging Face layout; tensors are distributed over the shards in turn."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: names[i % shards] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({name: tensors[name] for name, held in weight_map.items() if held == shard}, folder / shard)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    """The index of a sharded checkpoint."""
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def read_index(folder: Path) -> dict[str, str]:
    """Tensor -> the shard that holds it."""
    return json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
