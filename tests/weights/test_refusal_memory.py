"""A refusal takes little memory, whatever the file contains: at most 100 MB above the imports."""

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
from weights.formats.gguf_file import MAX_FIELDS, MAX_TENSORS
from weights.formats.untrusted import CONFIG_LIMIT, HEADER_LIMIT, INDEX_LIMIT

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc"),
    pytest.mark.xdist_group("refusal_memory"),  # its files are written once
]
LIMIT = 100 * 10**6
SINGLE = "model.safetensors"
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


def lists(size: int, start: str) -> bytes:
    """The JSON that takes most memory for its bytes: an object with one field that holds empty lists."""
    text = start + "[" + "[]," * ((size - len(start) - 8) // 3) + "0]}"
    return text.ljust(size).encode()


def shard(path: Path, header: bytes, size: int = 0) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def many_tensors(path: Path, count: int, name: str) -> None:
    """A file of `count` tensors of two bytes each, whose names do not fold."""
    said = {
        name.format(f"{i * 7919:x}"): {"dtype": "F16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]}
        for i in range(count)
    }
    header = json.dumps(said, separators=(",", ":")).encode()
    assert 0.6 * HEADER_LIMIT < len(header) < HEADER_LIMIT
    shard(path, header, 2 * count)


def set_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def header_above_the_limit(folder: Path) -> None:
    with (folder / SINGLE).open("wb") as file:
        file.write(struct.pack("<Q", 86 * 10**6))
        file.truncate(87 * 10**6)


def many_tensors_and_layers(folder: Path) -> None:
    many_tensors(folder / SINGLE, 84_000, "model.layer.{}.the.weight")
    set_config(folder, num_hidden_layers=1000, layer_types=None)


def shards_of_many_tensors(folder: Path) -> None:
    """Each header is within its limit; the index limits the total number of tensors."""
    names = [f"model-{i}.safetensors" for i in range(6)]
    for name in names:
        many_tensors(folder / name, 70_000, f"{name[:8]}{{}}")
    (folder / SINGLE).unlink()
    write_index(folder, {name: name for name in names})


def config_of_lists(folder: Path) -> None:
    (folder / "config.json").write_bytes(lists(CONFIG_LIMIT, '{"model_type":"qwen3","x":'))


def index_of_lists(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "model.safetensors.index.json").write_bytes(lists(INDEX_LIMIT, '{"weight_map":'))


def index_of_many_names(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-1.safetensors")
    write_index(folder, {f"{i * 7919:x}{'x' * 280}": "model-1.safetensors" for i in range(99_000)})
    assert 0.9 * INDEX_LIMIT < (folder / "model.safetensors.index.json").stat().st_size < INDEX_LIMIT


def gguf_file(tensors: int, fields: int, content: bytes = b"") -> Callable[[Path], Path]:
    """Writes a .gguf file with these counts."""

    def write(folder: Path) -> Path:
        path = folder / "x.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + content)
        return path

    return write


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


TEXT = struct.pack("<I", gguf.GGUFValueType.STRING)
LIST = struct.pack("<I", gguf.GGUFValueType.ARRAY) + TEXT + struct.pack("<Q", 4000) + string("x") * 4000
FIELDS = b"".join(string(f"{i}") + TEXT + string("x") for i in range(MAX_FIELDS))
KIND = string("general.architecture") + TEXT + string("gemma3")
TENSORS = b"".join(string(f"{i}") + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(MAX_TENSORS))
EXPERTS = dict(model_type="qwen3_moe", num_experts=10**9, num_experts_per_tok=1, norm_topk_prob=True)
EXPERTS |= dict(moe_intermediate_size=1, decoder_sparse_step=1, mlp_only_layers=[])
# Each makes a valid folder hostile. It may return the path of another source.
CASES: dict[str, Callable[[Path], Path | None]] = {
    "header of lists": lambda folder: shard(folder / SINGLE, lists(HEADER_LIMIT, '{"x":')),
    "header above the limit": header_above_the_limit,
    "header of many tensors": lambda folder: many_tensors(folder / SINGLE, 84_000, "model.layer.{}.the.weight"),
    "many tensors and layers": many_tensors_and_layers,
    "shards of many tensors": shards_of_many_tensors,
    "index of lists": index_of_lists,
    "index of many names": index_of_many_names,
    "config of lists": config_of_lists,
    "config of many fields": lambda folder: set_config(folder, **{f"{i:x}": 0 for i in range(90_000)}),
    "config of many experts": lambda folder: set_config(folder, **EXPERTS),
    "gguf of impossible counts": gguf_file(2**40, 2**40),
    "gguf of many fields": gguf_file(0, MAX_FIELDS, FIELDS),
    "gguf of many lists": gguf_file(0, 100, b"".join(string(f"{i}") + LIST for i in range(100))),
    "gguf of many tensors": gguf_file(MAX_TENSORS, 1, (KIND + TENSORS).ljust(10**6, b"\0")),
}
# One of each kind of file and the cheap ones by default, all others in the slow tests.
BY_DEFAULT = {"header above the limit", "header of lists", "config of many fields"}
BY_DEFAULT |= {"gguf of impossible counts", "gguf of many tensors"}


@pytest.fixture(scope="module")
def peaks(
    saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], dict[str, tuple[int, str]]]:
    """Maps each of the default cases (True) or of the others to its peak in bytes and its error message."""

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
