"""A refusal takes little memory, whatever the file says: at most 100 MB above the imports."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gguf
import pytest

from tests.presets import split
from tests.weights.checkpoints import read, write, write_index
from weights.formats.gguf_file import MAX_ENTRIES, MAX_FIELDS, MAX_TENSORS
from weights.formats.untrusted import CONFIG_LIMIT, HEADER_LIMIT, INDEX_LIMIT

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc"),
    pytest.mark.xdist_group("refusal_memory"),  # its files are written once
]
LIMIT = 100 * 10**6
# Imports once, then one process for each source: its peak starts at what the imports take.
SCRIPT = """
import os, sys
from pathlib import Path
import gguf, torch, weights, weights.formats.gguf_file
from zoo.errors import MalformedError

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

for source in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        try:
            weights.load(source)
        except MalformedError as error:
            print(memory("VmHWM") - before, str(error)[:200], flush=True)
        os._exit(0)
    os.wait()
"""
CASES: dict[str, Callable[[Path], Path | None]] = {}


def case(hostile: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
    """Register a way to make a valid folder hostile. It may return the path of another source."""
    CASES[hostile.__name__] = hostile
    return hostile


def lists(size: int, start: str) -> bytes:
    """The JSON that takes most memory for its bytes: an object with one field that holds empty lists."""
    text = start + "[" + "[]," * ((size - len(start) - 8) // 3) + "0]}"
    return text.ljust(size).encode()


def shard(path: Path, header: bytes, size: int = 0) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def many_tensors(count: int, name: str = "{}") -> tuple[bytes, int]:
    """A header of `count` tensors of two bytes each, whose names do not fold."""
    said = {
        name.format(f"{i * 7919:x}"): {"dtype": "F16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]}
        for i in range(count)
    }
    return json.dumps(said, separators=(",", ":")).encode(), 2 * count


@case
def header_of_lists(folder: Path) -> None:
    shard(folder / "model.safetensors", lists(HEADER_LIMIT, '{"x":'))


@case
def header_above_the_limit(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 86 * 10**6))
        file.truncate(87 * 10**6)


@case
def header_of_many_tensors(folder: Path) -> None:
    header, size = many_tensors(84_000, "model.layer.{}.the.weight")
    assert 0.9 * HEADER_LIMIT < len(header) < HEADER_LIMIT
    shard(folder / "model.safetensors", header, size)


@case
def many_tensors_and_layers(folder: Path) -> None:
    header_of_many_tensors(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"num_hidden_layers": 1000, "layer_types": None}
    path.write_text(json.dumps(config))


@case
def shards_of_many_tensors(folder: Path) -> None:
    """Each header is within its limit; the index bounds how many there are in all."""
    names = [f"model-{i}.safetensors" for i in range(6)]
    for name in names:
        header, size = many_tensors(60_000, f"{name[:8]}{{}}")
        shard(folder / name, header, size)
    (folder / "model.safetensors").unlink()
    write_index(folder, {name: name for name in names})


@case
def index_of_lists(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(lists(INDEX_LIMIT, '{"weight_map":'))


@case
def index_of_many_names(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    write_index(folder, {f"{i * 7919:x}{'x' * 280}": "model-1.safetensors" for i in range(99_000)})
    assert 0.9 * INDEX_LIMIT < (folder / "model.safetensors.index.json").stat().st_size < INDEX_LIMIT


@case
def config_of_lists(folder: Path) -> None:
    (folder / "config.json").write_bytes(lists(CONFIG_LIMIT, '{"model_type":"qwen3","x":'))


@case
def config_of_many_fields(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {f"{i:x}": 0 for i in range(90_000)}))


@case
def config_of_many_experts(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen3_moe", "num_experts": 10**9}
    more = {"num_experts_per_tok": 1, "norm_topk_prob": True, "moe_intermediate_size": 1, "decoder_sparse_step": 1}
    (folder / "config.json").write_text(json.dumps(config | more | {"mlp_only_layers": []}))


def gguf_start(tensors: int, fields: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@case
def gguf_of_impossible_counts(folder: Path) -> Path:
    path = folder / "x.gguf"
    path.write_bytes(gguf_start(2**40, 2**40))
    return path


@case
def gguf_of_many_fields(folder: Path) -> Path:
    path, kind = folder / "x.gguf", struct.pack("<I", gguf.GGUFValueType.STRING)
    path.write_bytes(
        gguf_start(0, MAX_FIELDS) + b"".join(string(f"{i}") + kind + string("x") for i in range(MAX_FIELDS))
    )
    return path


@case
def gguf_of_many_lists(folder: Path) -> Path:
    path = folder / "x.gguf"
    head = struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING, 4000)
    lists = [string(f"{i}") + head + string("x") * 4000 for i in range(100)]
    assert len(lists) * 4000 > MAX_ENTRIES
    path.write_bytes(gguf_start(0, len(lists)) + b"".join(lists))
    return path


@case
def gguf_of_many_tensors(folder: Path) -> Path:
    path = folder / "x.gguf"
    infos = [string(f"{i}") + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(MAX_TENSORS)]
    kind = string("general.architecture") + struct.pack("<I", gguf.GGUFValueType.STRING) + string("gemma3")
    path.write_bytes((gguf_start(MAX_TENSORS, 1) + kind + b"".join(infos)).ljust(10**6, b"\0"))
    return path


# One of each kind of file and the cheap ones by default, all others in the slow tests.
BY_DEFAULT = {"header_above_the_limit", "header_of_lists", "config_of_many_fields"}
BY_DEFAULT |= {"gguf_of_impossible_counts", "gguf_of_many_tensors"}


@pytest.fixture(scope="module")
def peaks(
    saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], dict[str, tuple[int, str]]]:
    """Whether of the default cases -> case -> its peak in bytes, and the error message."""

    @cache
    def measured(by_default: bool) -> dict[str, tuple[int, str]]:
        sources = {}
        for name in (name for name in CASES if (name in BY_DEFAULT) == by_default):
            folder = write(tmp_path_factory.mktemp("refused") / name, *read(saved("qwen3-0.6b")))
            sources[name] = str(CASES[name](folder) or folder)
        command = [sys.executable, "-c", SCRIPT, *sources.values()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
        lines = done.stdout.splitlines()
        assert len(lines) == len(sources), done.stdout + done.stderr
        return {name: (int(line.split()[0]), line.partition(" ")[2]) for name, line in zip(sources, lines, strict=True)}

    return measured


@pytest.mark.parametrize("name", split(CASES, BY_DEFAULT))
def test_peak(name: str, peaks: Callable[[bool], dict[str, tuple[int, str]]]) -> None:
    peak, told = peaks(name in BY_DEFAULT)[name]
    assert peak < LIMIT, f"{peak / 1e6:.0f} MB to say {told}"
