"""The metadata of a .gguf file is compared with the presets; an error is one line."""

import logging
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import weights
import zoo
from tests.weights.formats import gguf_converter
from weights.formats import gguf_file
from weights.formats.gguf_file import GGUFFile, LongList, read_gguf
from weights.formats.untrusted import CONFIG_LIMIT
from zoo.errors import MalformedError, NotAvailable
from zoo.model.sampling import GenerationConfig

GEMMA_270M = {
    "context_length": 2048,
    "block_count": 18,
    "embedding_length": 640,
    "feed_forward_length": 2048,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 256,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.sliding_window": 512,
    "rope.freq_base": 1e6,
}
GEMMA_4B = GEMMA_270M | {
    "block_count": 34,
    "embedding_length": 2560,
    "feed_forward_length": 10_240,
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
    "attention.sliding_window": 1024,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}


def write(path: Path, fields: dict[str, Any], kind: str = "gemma3", **tensors: np.ndarray) -> Path:
    """A .gguf file with these fields, a vocabulary and few tensors."""
    embedding = {"token_embd.weight": np.zeros((100, 4), dtype=np.float16)}
    return gguf_converter.write(path, kind, fields, embedding | tensors, words=5000)


@pytest.mark.parametrize(("fields", "preset"), [(GEMMA_270M, "gemma3-270m"), (GEMMA_4B, "gemma3-4b")])
def test_the_preset_of_equal_dimensions(
    fields: dict[str, Any], preset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = GGUFFile(write(tmp_path / "x.gguf", fields))
    with caplog.at_level(logging.INFO, "weights"):
        spec = file.spec()
    assert (spec.vocab, spec.context) == (100, 2048)
    assert (spec.layers, spec.norm, spec.embed_scale) == (
        (full := zoo.spec(preset)).layers,
        full.norm,
        full.embed_scale,
    )
    missing = "the layer pattern, rope.freq_base_swa"
    assert caplog.messages == [f"x.gguf does not say {missing}: taken from {preset}, of the same dimensions"]
    assert file.generation == GenerationConfig(stop=(1,))


@pytest.mark.parametrize(
    ("fields", "phrases"),
    [
        (
            {"embedding_length": 641},
            ["no preset has its dimensions; gemma3-270m is nearest", "embedding_length 641 instead of 640"],
        ),
        ({"rope.freq_base": 1e4}, ["gemma3-270m is nearest", "rope.freq_base 10000.0 instead of 1000000.0"]),
        ({"rope.freq_base_swa": 1e5}, ["rope.freq_base_swa 100000.0 instead of 10000.0"]),
        ({"attention.layer_norm_rms_epsilon": 1.01e-6}, ["attention.layer_norm_rms_epsilon 1.0"]),
        ({"attention.sliding_window": 1024}, ["attention.sliding_window 1024 instead of 512"]),
        ({"rope.scaling.factor": 8.0}, ["not understood: gemma3.rope.scaling.factor=8.0", "--ignore-field"]),
        ({"final_logit_softcapping": 30.0}, ["not understood: gemma3.final_logit_softcapping=30.0"]),
        ({"context_length": 0}, ["context must be a positive integer"]),
    ],
)
def test_files_of_no_preset(fields: dict[str, Any], phrases: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", GEMMA_270M | fields)
    with pytest.raises(MalformedError) as caught:
        weights.load(path)
    assert all(phrase in str(caught.value) for phrase in [str(path), *phrases]), caught.value
    assert "\n" not in str(caught.value)


def test_a_dimension_may_not_be_left_out(tmp_path: Path) -> None:
    fields = {key: value for key, value in GEMMA_270M.items() if key != "attention.head_count"}
    with pytest.raises(MalformedError, match=r"attention\.head_count None instead of 4"):
        weights.load(write(tmp_path / "x.gguf", fields))


def test_a_field_can_be_ignored_and_all_tensors_are_named(tmp_path: Path) -> None:
    fields = GEMMA_270M | {"final_logit_softcapping": 30.0}
    path = write(tmp_path / "x.gguf", fields, **{"wings.weight": np.ones(8, dtype=np.float32)})
    with pytest.raises(MalformedError) as caught:
        weights.load(path, ignore_fields=["final_logit_softcapping"])
    for phrase in (
        "missing: model.layers.{0-17}.input_layernorm.weight, ",
        "not understood: wings.weight",
        "wrong shape: model.embed_tokens.weight [100, 4] instead of [100, 640]",
    ):
        assert phrase in str(caught.value)


def test_unprintable_names(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match=r"names that cannot be printed: 'gemma3\.\\x1b\[2J'$"):
        weights.load(write(tmp_path / "x.gguf", GEMMA_270M | {"\x1b[2J": 1}))


def test_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="unknown GGUF architecture 'gemma9'; did you mean gemma"):
        weights.load(write(tmp_path / "x.gguf", {}, kind="gemma9"))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"GGML"),  # magic
        (4, struct.pack("<I", 99)),  # version
        (4, struct.pack(">I", 3)),  # the other byte order
        (8, struct.pack("<Q", 100)),  # more tensors than there are
        (16, struct.pack("<Q", 1)),  # fewer fields than there are
        (8, struct.pack("<Q", 2**60)),  # number of tensors
        (16, struct.pack("<Q", 2**60)),  # number of fields
        (24, struct.pack("<Q", 2**60)),  # length of the first key
    ],
)
def test_a_damaged_header(at: int, value: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", GEMMA_270M)
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(MalformedError, match=r"not a readable \.gguf file"):
        weights.load(path)


def test_a_list_of_absurd_length(tmp_path: Path) -> None:
    """Reading stops at the end of the file."""
    path = write(tmp_path / "x.gguf", GEMMA_270M)
    data = path.read_bytes()
    at = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    assert data[at : at + 8] == struct.pack("<Q", 5000)
    path.write_bytes(data[:at] + struct.pack("<Q", 2**60) + data[at + 8 :])
    with pytest.raises(MalformedError, match="cut short"):
        weights.load(path)


def test_a_file_cut_short_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", GEMMA_270M)
    data = path.read_bytes()
    for length in [*range(1, len(data) - 1, len(data) // 50), len(data) - 40]:
        path.write_bytes(data[:length])
        with pytest.raises(MalformedError, match=r"not a readable \.gguf file"):
            weights.load(path)


def test_skipping_long_lists_leaves_the_rest_unchanged(tmp_path: Path) -> None:
    """The result equals that of the library's own reader, which reads every entry."""
    path = write(tmp_path / "x.gguf", GEMMA_270M)
    whole = gguf.GGUFReader(path)
    fields, tensors = read_gguf(path)
    lists = {name: value for name, value in fields.items() if isinstance(value, LongList)}
    assert lists.keys() == {f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")}
    read = {name: value.read() for name, value in lists.items()}
    assert fields | read == {name: field.contents() for name, field in whole.fields.items()}
    assert [(t.name, t.data_offset) for t in tensors.values()] == [(t.name, t.data_offset) for t in whole.tensors]


def test_lists_longer_than_any_vocabulary_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.gguf", GEMMA_270M)
    tokens = read_gguf(path)[0]["tokenizer.ggml.tokens"]
    for limit, most in (("MAX_LIST", tokens.length), ("MAX_LIST_BYTES", tokens.nbytes)):
        monkeypatch.setattr(gguf_file, limit, most)
        assert len(tokens.read()) == 5000
        monkeypatch.setattr(gguf_file, limit, most - 1)
        with pytest.raises(MalformedError, match=rf"x\.gguf: a list of 5000 entries in {tokens.nbytes} bytes is above"):
            tokens.read()
        monkeypatch.undo()
    data = path.read_bytes()
    path.write_bytes(data[: tokens.start + 100])  # after the fields were read
    with pytest.raises(MalformedError, match=r"x\.gguf is cut short in a list of 5000 entries"):
        tokens.read()
    path.write_bytes(data.replace(b"token 7", b"token \xff", 1))
    with pytest.raises(MalformedError, match=r"x\.gguf: an entry of a list is not UTF-8"):
        tokens.read()


def test_a_text_longer_than_any_chat_template_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for size, is_read in ((CONFIG_LIMIT, True), (CONFIG_LIMIT + 1, False)):
        writer = gguf.GGUFWriter(path, "gemma3")
        writer.add_chat_template("x" * size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert ("tokenizer.chat_template" in read_gguf(path)[0]) == is_read


def test_settings_of_generation(tmp_path: Path) -> None:
    """They are every token that ends a text, a turn or a message, and decimal numbers as they were before float32."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(106)
    writer.add_uint32("tokenizer.ggml.eom_token_id", 1)
    writer.add_float32("general.sampling.temp", 0.6)
    writer.add_int32("general.sampling.top_k", 20)
    writer.add_float32("general.sampling.top_p", 0.95)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert GGUFFile(path).generation == GenerationConfig((1, 106), 0.6, 20, 0.95)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.gguf", GEMMA_270M)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NotAvailable, match=r"pip install -e '\.\[gguf\]'"):
        weights.load(path)
