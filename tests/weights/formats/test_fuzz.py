"""Mutated headers, indexes, configs and .gguf files: each ends in a clean load or a typed error of one line."""

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import weights
from tests.weights.checkpoints import read, write
from tests.weights.formats.test_gguf_file import GEMMA_270M
from tests.weights.formats.test_gguf_file import write as write_gguf
from tests.weights.packers import packed_toy
from zoo.errors import MalformedError, NotAvailable

Saved = Callable[[str], Path]
INDEX = "model.safetensors.index.json"
NUMBERS = ["0", "-1", "1", "2", "3", "7.5", "1e999", "NaN", "true", "null", '"5"', "[]", "{}", str(2**31), str(2**63)]
VALUES = [*map(json.loads, NUMBERS), 10**40, "", "\ud800", "..", "model", "default", [1, 2], {"a": 1}, [[[]]], 1e-300]
FAMILIES = ("qwen3-0.6b", "gemma3-4b", "deepseek-v3-671b", "gpt-oss-20b", "llama3.1-8b", "smollm3-3b")


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every node."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from nodes(value[key])


def mutate_tree(text: str, rng: random.Random) -> str:
    """Replace, remove, add, copy or rename a node of a JSON document."""
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        found = list(nodes(tree))
        if not found:
            break
        (place, key), (other, theirs) = rng.choice(found), rng.choice(found)
        match rng.randrange(5):
            case 0:
                place[key] = rng.choice(VALUES)
            case 1:
                del place[key]
            case 2:
                place[key] = json.loads(json.dumps(other[theirs]))
            case 3 if isinstance(place, dict):
                place[rng.choice((f"{key}x", "dtype", "quantization_config", "text_config", ""))] = place.pop(key)
            case _:
                place[key] = [place[key]] if rng.random() < 0.5 else {"x": place[key]}
    return json.dumps(tree)


def mutate_text(text: str, rng: random.Random) -> str:
    """Change a number or a string in the text, which can also break the document or duplicate a key."""
    spots = list(re.finditer(r"-?\d+(\.\d+)?|\"[^\"]*\"", text))
    spot, other = rng.choice(spots), rng.choice(spots)
    new = rng.choice((rng.choice(NUMBERS), other.group(), spot.group()[:-1], spot.group() * 2))
    return text[: spot.start()] + new + text[spot.end() :]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or lose bytes."""
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 100))
    match rng.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.randbytes(length) + data[at + length :]
        case 2:
            return data[:at] + rng.randbytes(length) + data[at:]
        case 3:
            return data[:at] + data[at + length :]
        case _:
            return data[:at] + data[at : at + length] * rng.choice((2, 50)) + data[at + length :]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (
            lambda: mutate_tree(data.decode(), rng).encode(),
            lambda: mutate_text(data.decode(), rng).encode(),
            lambda: mutate_bytes(data, rng),
        )
    )()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Mutate the header, mostly with the right length, or any bytes of the file."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + length], rng)
    said = len(header) if rng.random() < 0.9 else rng.choice((0, 1, length, 2**63, len(header) - 1, len(data)))
    return struct.pack("<Q", said) + header + data[8 + length :]


def mutate_gguf(data: bytes, rng: random.Random) -> bytes:
    """Mutate the start, which holds the metadata, and a few of the bytes after it."""
    start = rng.choice((24, 200, 700))
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    return mutate_bytes(data[:start], rng) + data[start:]


Mutate = Callable[[bytes, random.Random], bytes]
KINDS: dict[str, tuple[str, Mutate]] = {
    "config": ("config.json", mutate_json),
    "index": (INDEX, mutate_json),
    "header": ("model-00002-of-00003.safetensors", mutate_safetensors),
    "gguf": ("x.gguf", mutate_gguf),
}


@pytest.fixture(scope="module")
def sources(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Kind -> valid sources to mutate."""
    root = tmp_path_factory.mktemp("fuzz")

    def make(kind: str) -> list[Path]:
        if kind == "gguf":
            return [write_gguf(root / "x.gguf", GEMMA_270M)]
        names = FAMILIES if kind == "config" else FAMILIES[:1]
        plain = [write(root / f"{kind}-{name}", *read(saved(name)), shards=3) for name in names]
        packed = (
            (name, packed_toy(name, layers)[:2]) for name, layers in (("deepseek-v3-671b", 4), ("gpt-oss-20b", 2))
        )
        good = [*plain, *(write(root / f"{kind}-packed-{name}", *form, shards=3) for name, form in packed)]
        for source in good:
            weights.load(source)
        return good

    return make


def fuzz(sources: list[Path], kind: str, count: int, seed: int) -> dict[str, int]:
    """Returns the numbers of mutants that were loaded and refused."""
    name, mutate = KINDS[kind]
    ends = {"loaded": 0, "refused": 0}
    for i in range(count):
        rng, source = random.Random(f"{kind} {seed} {i}"), sources[i % len(sources)]
        path = source if source.is_file() else source / name
        good = path.read_bytes()
        mutant = mutate(good, rng)
        path.write_bytes(mutant)
        told = ""
        try:
            weights.load(source)
        except (MalformedError, NotAvailable) as error:
            told = str(error)
        except BaseException as error:
            raise AssertionError(f"{kind} {seed} {i}: {type(error).__name__}: {error}; {mutant[:3000]!r}") from error
        finally:
            path.write_bytes(good)
        assert told.isprintable(), (kind, seed, i)
        assert len(told) < 50_000, (kind, seed, i)
        ends["refused" if told else "loaded"] += 1
    return ends


COUNTS = {"config": 3500, "index": 2500, "header": 3000, "gguf": 1000}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", COUNTS)
def test_mutants(kind: str, seed: int, sources: Callable[[str], list[Path]]) -> None:
    """There are a hundred mutants by default, and ten thousand in the slow test."""
    count = COUNTS[kind] if seed else 100
    ends = fuzz(sources(kind), kind, count, seed)
    assert ends["refused"] > 0.3 * count, ends
