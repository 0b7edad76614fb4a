"""Memory of loading: shared pages of the file where possible, else the model plus one layer's experts. Each load runs
in a separate process, which samples its memory every millisecond.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.reference import toy_config
from tests.weights.checkpoints import Config, Tensors, write
from tests.weights.packers import FP8_CONFIG, FP8_NAMES, MXFP4_CONFIG, per_expert
from weights.reference.model import causal_class

ROOT = Path(__file__).parents[2]
LAYERS = 6
WIDTHS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "num_experts": 16,
    "n_routed_experts": 16,
    "num_local_experts": 16,
    "vocab_size": 8192,
    "kv_lora_rank": 512,
    "q_lora_rank": 512,
}
FP8_HEADS = dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 128)  # a head is whole blocks
SLACK = 12 * 2**20  # what threads, buffers and the forward pass take


class Made(NamedTuple):
    """A checkpoint on disk, the bytes of its files, and the bytes of its largest unpacked piece: a layer's experts or a
    tensor."""

    folder: Path
    file_bytes: int
    piece_bytes: int


def widened(name: str, layers: int = LAYERS, **more: int) -> Config:
    """A preset's config at these widths, with its first layers."""
    config = toy_config(name, layers)
    return config | {field: value for field, value in (WIDTHS | more).items() if field in config}


def shapes(config: Config) -> Tensors:
    """A model's tensors in bfloat16, by transformers' names for them, without memory behind them."""
    from transformers import AutoConfig

    known = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = causal_class(known)._from_config(known, dtype=torch.bfloat16)
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight" or not tied(config)}


def tied(config: Config) -> bool:
    return config.get("tie_word_embeddings", False)


def dense() -> tuple[Config, Tensors]:
    config = widened("qwen3-0.6b", layers=10, hidden_size=1024, intermediate_size=8192)
    return config, shapes(config)


def experts() -> tuple[Config, Tensors]:
    """A tensor for each expert, as Qwen3's are stored."""
    config = widened("qwen3-30b-a3b")
    return config, per_expert(shapes(config))


def fused_experts() -> tuple[Config, Tensors]:
    config = widened("qwen3-30b-a3b")
    return config, shapes(config)


def transposed_experts() -> tuple[Config, Tensors]:
    """gpt-oss's bf16 layout."""
    config = widened("gpt-oss-20b", intermediate_size=512)
    return config, shapes(config)


def fp8() -> tuple[Config, Tensors]:
    config = widened("deepseek-v3-671b", **FP8_HEADS)
    stored = {}
    for name, tensor in per_expert(shapes(config)).items():
        stored[name] = tensor.to(torch.float8_e4m3fn) if FP8_NAMES.fullmatch(name) else tensor
        if FP8_NAMES.fullmatch(name):
            stored[f"{name}_scale_inv"] = torch.empty([-(-side // 128) for side in tensor.shape], device="meta")
    return config | {"quantization_config": FP8_CONFIG}, stored


def mxfp4() -> tuple[Config, Tensors]:
    config, tensors = transposed_experts()
    stored = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj")]:
        count, width, rows = stored.pop(name).shape
        stored[f"{name}_blocks"] = torch.empty(count, rows, width // 32, 16, dtype=torch.uint8, device="meta")
        stored[f"{name}_scales"] = torch.empty(count, rows, width // 32, dtype=torch.uint8, device="meta")
    return config | {"quantization_config": MXFP4_CONFIG}, stored


FORMS: list[Callable[[], tuple[Config, Tensors]]] = [dense, experts, fused_experts, transposed_experts, fp8, mxfp4]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Each form on disk, in turn. All values are zero, which does not change the memory they take."""
    config, tensors = request.param()
    real = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    folder = write(tmp_path_factory.mktemp("made"), config | {"torch_dtype": "bfloat16"}, real, shards=2)
    expert = 3 * WIDTHS["hidden_size"] * WIDTHS["moe_intermediate_size"]
    largest = max(tensor.numel() for name, tensor in tensors.items() if "experts" not in name)
    piece = max(largest, 0 if request.param is dense else WIDTHS["num_experts"] * expert)
    return Made(folder, sum(path.stat().st_size for path in folder.glob("*.safetensors")), piece)


def measured(*command: str) -> dict[str, Any]:
    """Runs Python in a process of its own, which prints its memory in bytes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    run = [sys.executable, *command]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def load(made: Made, dtype: str) -> dict[str, Any]:
    """Peaks of a load."""
    return measured("-m", "benchmarks.measure.loading", "zoo", str(made.folder), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_anonymous_memory(made: Made, dtype: str, request: pytest.FixtureRequest) -> None:
    """It is zero if the files hold the model's parameters unchanged; else at most the model plus one tensor or one
    layer's experts."""
    held = load(made, dtype)
    shared = dtype == "auto" and "dense" in request.node.name
    width = 4 if dtype == "float32" else 2
    allowed = 0 if shared else held["model_bytes"] + made.piece_bytes * width
    print(f"{dtype}: {held}, allowed {allowed}, file {made.file_bytes}")
    assert held["anonymous_bytes"] <= allowed + SLACK
    if shared:
        assert held["model_bytes"] > 100 * 2**20
        assert held["peak_bytes"] <= 1.05 * made.file_bytes


# Loads the part of one of several ranks, without the other ranks.
PART = """
import json, sys
import torch
from benchmarks.measure.loading import poll_memory
from weights.loading import fill, open_source
from zoo.architectures import families
from zoo.core.collectives import Group
from zoo.model.parallel import Ranks
from zoo.sharding import Rank

families()
source, dtype, index, ranks, ep = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
opened = open_source(source)
spec = opened.spec()
stop = poll_memory()
model = fill(spec, opened, "cpu", dtype, ranks=Ranks(Group("none", Rank(index, ranks)), bool(ep)))
print(json.dumps({"model_bytes": sum(each.nbytes for each in model.parameters())} | stop()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ep", [0, 1])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_takes_its_share_and_one_tensor(made: Made, ranks: int, ep: int) -> None:
    """The last rank's own memory, beside pages of the file, holds its part and one tensor or one layer's experts, of
    which the rank has a part too."""
    held = measured("-c", PART, str(made.folder), "float32", str(ranks - 1), str(ranks), str(ep))
    whole = load(made, "float32")["model_bytes"]
    assert held["model_bytes"] < whole * (1 / ranks + 0.15)  # norms, routers and latents are whole in each
    assert held["anonymous_bytes"] <= held["model_bytes"] + made.piece_bytes * 4 + SLACK
