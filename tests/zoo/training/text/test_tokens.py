"""The token file: whole or refused, and batches that are the same whoever draws them."""

import dataclasses
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.training.losses import IGNORED
from zoo.training.text import tokens as module
from zoo.training.text.data import Corpus, read_text
from zoo.training.text.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from zoo.training.text.tokens import (
    HEADER_BYTES,
    MAGIC,
    TokenFile,
    heldout_batches,
    open_tokens,
    token_file,
    training_batch,
)

SPLITS = ("train", "tuning", "heldout")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(80):
        (folder / f"{i}.txt").write_text(f"größer {i} 😀\r\n" * (1 + i % 13), "utf-8", newline="")
    return read_text(folder)


@pytest.fixture(scope="module")
def tokenizers(corpus: Corpus) -> dict[str, Tokenizer]:
    return {"bytes": ByteTokenizer(), "bpe": train_bpe(corpus, 280)}


@pytest.fixture(scope="module")
def files(
    corpus: Corpus, tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TokenFile]:
    folder = tmp_path_factory.mktemp("tokens")
    return {kind: token_file(folder, corpus, tokenizer) for kind, tokenizer in tokenizers.items()}


KINDS = pytest.mark.parametrize("kind", ["bytes", "bpe"])


@KINDS
def test_a_file_holds_the_text_of_its_splits(
    kind: str, corpus: Corpus, tokenizers: dict[str, Tokenizer], files: dict[str, TokenFile]
) -> None:
    tokens, tokenizer = files[kind], tokenizers[kind]
    for split in SPLITS:
        ids, texts = getattr(tokens, split), list[str]()
        assert ids[0] == ids[-1] == tokenizer.separator
        ends = np.flatnonzero(ids == tokenizer.separator)
        for start, end in pairwise(ends):
            texts.append(tokenizer.decode(ids[start + 1 : end]))
        assert texts == ["".join(piece.blocks()) for piece in getattr(corpus.splits, split)]
        assert getattr(tokens, f"{split}_bytes") == len("".join(texts).encode()) + len(texts)
    assert (tokens.vocab, tokens.separator) == (tokenizer.vocab, tokenizer.separator)
    assert tokens.train.dtype == (np.uint8 if kind == "bytes" else np.uint16)
    assert (tokens.name, tokens.text_hash) == (corpus.name, corpus.hash)
    assert not tokens.train.flags.writeable


def test_a_uniform_guess_of_bytes_costs_eight_bits_and_a_longer_token_spreads_its_bits(
    files: dict[str, TokenFile],
) -> None:
    tokens, bpe = files["bytes"], files["bpe"]
    scored = sum(int(batch.scored()) for batch in heldout_batches(tokens, 3, 7))
    assert scored == tokens.heldout_bytes
    for count, split in ((scored, "heldout"), (5, "heldout"), (5, "tuning")):  # a part stands for the whole
        assert tokens.bits_per_byte(count * math.log(256), count, split) == pytest.approx(8)
    scored = len(bpe.heldout) - 1
    assert scored < bpe.heldout_bytes
    assert bpe.bits_per_byte(100 * math.log(2), scored) == pytest.approx(100 / bpe.heldout_bytes)


@given(
    batch=st.integers(1, 5),
    context=st.integers(1, 3000),
    limit=st.none() | st.integers(1, 900),
    split=st.sampled_from(["heldout", "tuning"]),
)
def test_each_token_is_scored_once(
    files: dict[str, TokenFile], batch: int, context: int, limit: int | None, split: module.Split
) -> None:
    ids = getattr(files["bytes"], split).astype(np.int64)
    batches = list(heldout_batches(files["bytes"], batch, context, limit, split))
    assert all(each.inputs.shape == each.targets.shape == (batch, context) for each in batches)
    inputs, targets = (torch.cat([each[i].flatten() for each in batches]) for i in (0, 1))
    scored = targets != IGNORED
    end = len(ids) if limit is None else limit + 1
    assert targets[scored].tolist() == ids[1:end].tolist()
    assert inputs[scored].tolist() == ids[: min(end, len(ids)) - 1].tolist()
    assert bool(batches[-1].scored())


@given(step=st.integers(0, 10**9), rows=st.integers(1, 9), context=st.integers(1, 600), seed=st.integers(-5, 2**70))
def test_a_row_follows_from_seed_and_step(
    files: dict[str, TokenFile], step: int, rows: int, context: int, seed: int
) -> None:
    tokens = files["bytes"]
    batch = training_batch(tokens, step, 9, context, seed)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.shape == batch.targets.shape == (9, context)
    fewer = training_batch(open_tokens(tokens.path), step, rows, context, seed)
    assert torch.equal(fewer.inputs, batch.inputs[:rows])
    assert torch.equal(fewer.targets, batch.targets[:rows])
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    stream = tokens.train.tobytes()
    assert all(
        bytes([*row, int(last)]) in stream
        for row, last in zip(batch.inputs.tolist(), batch.targets[:, -1], strict=True)
    )


def philox(key: tuple[int, int], block: int) -> list[int]:
    """Four numbers of Philox4x64-10 (Salmon et al. 2011, section 4)."""
    (k0, k1), counter, wrap = key, [block, 0, 0, 0], 2**64
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [second // wrap ^ counter[1] ^ k0, second % wrap, first // wrap ^ counter[3] ^ k1, first % wrap]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % wrap, (k1 + 0xBB67AE8584CAA73B) % wrap
    return counter


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 3), (-1, 2**40)])
def test_the_windows_of_a_seed_never_change(seed: int, step: int, files: dict[str, TokenFile]) -> None:
    """They follow from the published generator, whatever numpy's version."""
    tokens = dataclasses.replace(files["bytes"], train=np.arange(256, dtype=np.uint8))
    drawn = training_batch(tokens, step, 6, 56, seed).inputs[:, 0].tolist()
    key = seed % 2**64, step
    assert drawn == [number % 200 for number in (*philox(key, 1), *philox(key, 2))][:6]


def test_a_text_too_short_for_the_context_is_refused(files: dict[str, TokenFile]) -> None:
    size = len(files["bytes"].train)
    training_batch(files["bytes"], 0, 1, size - 1, 0)
    with pytest.raises(UsageError, match=f"has {size} tokens, too few for a context of {size}"):
        training_batch(files["bytes"], 0, 1, size, 0)
    with pytest.raises(UsageError, match="limit of 0"):
        next(heldout_batches(files["bytes"], 1, 8, limit=0))


def test_a_file_is_made_once_and_named_by_text_and_tokenizer(
    corpus: Corpus, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    first = token_file(tmp_path, corpus, tokenizers["bytes"])
    stamp = first.path.stat()
    again = token_file(tmp_path, corpus, tokenizers["bytes"])
    assert (again.path, again.path.stat()) == (first.path, stamp)
    other = token_file(tmp_path, corpus, tokenizers["bpe"])
    part = token_file(tmp_path, Corpus("part", corpus.files[1:]), tokenizers["bytes"])
    assert len({first.hash, other.hash, part.hash}) == 3
    assert first.text_hash == other.text_hash != part.text_hash
    assert sorted(tmp_path.iterdir()) == sorted(each.path for each in (first, other, part))  # nothing is left over


@pytest.mark.parametrize("size", [1, 50, 10**6])
def test_what_is_encoded_at_once_changes_nothing(
    size: int, corpus: Corpus, files: dict[str, TokenFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENCODED_AT_ONCE", size)
    made = token_file(tmp_path, corpus, ByteTokenizer())
    assert made.path.read_bytes() == files["bytes"].path.read_bytes()


def change_header(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header = json.loads(data[len(MAGIC) : HEADER_BYTES])
        change(header)
        return (MAGIC + json.dumps(header).encode()).ljust(HEADER_BYTES) + data[HEADER_BYTES:]

    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "only a part"),
        (lambda data: data[:100], "only a part"),
        (lambda data: data[:HEADER_BYTES], "only a part"),
        (lambda data: data[:-1], "only a part"),
        (lambda data: data + b"\0", "only a part"),
        (lambda data: b"PK" + data[2:], "not a token file"),
        (lambda data: data[:8] + b"[" * (HEADER_BYTES - 8) + data[HEADER_BYTES:], "not a token file"),
        (lambda data: data[:8] + b"\xff" + data[9:], "not a token file"),
        (change_header(lambda header: header.update(version=2)), "version 2, not 1"),
        (change_header(lambda header: header.update(tokens=[1, 2])), "not a token file"),
        (change_header(lambda header: header.update(tokens=[10**30, 1, 1])), "not a token file"),
        (change_header(lambda header: header.update(tokens=[True, 1, 1])), "not a token file"),
        (change_header(lambda header: header.update(bytes=[0, 1, 1])), "not a token file"),
        (change_header(lambda header: header.update(vocab=1 << 40)), "not a token file"),
        (change_header(lambda header: header.update(vocab=10**6)), "not a token file"),
        (change_header(lambda header: header.update(separator=256)), "not a token file"),
        (change_header(lambda header: header.update(name=3)), "not a token file"),
        (change_header(lambda header: header.pop("hash")), "not a token file"),
        (change_header(lambda header: header.update(hash="0" * 16)), "holds the tokens 0000000000000000"),
    ],
)
def test_a_file_that_is_foreign_or_not_whole_is_refused(
    damage: Callable[[bytes], bytes], message: str, corpus: Corpus, files: dict[str, TokenFile], tmp_path: Path
) -> None:
    path = tmp_path / files["bytes"].path.name
    path.write_bytes(damage(files["bytes"].path.read_bytes()))
    with pytest.raises(MalformedError, match=f"^{path}.*{message}[^\n]*$"):
        token_file(tmp_path, corpus, ByteTokenizer())


def test_an_id_outside_the_vocab_is_refused(files: dict[str, TokenFile]) -> None:
    tokens = dataclasses.replace(files["bpe"], vocab=270)
    with pytest.raises(MalformedError, match="and its vocab is 270"):
        training_batch(tokens, 0, 8, 200, 0)
    with pytest.raises(MalformedError, match="and its vocab is 270"):
        list(heldout_batches(tokens, 8, 200))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match=f"^{tmp_path / 'none'} cannot be read: No such file or directory$"):
        open_tokens(tmp_path / "none")


def test_a_text_that_changes_leaves_no_file(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n" * 99)
    changed = read_text(tmp_path / "a.txt")
    assert changed.splits.train
    (tmp_path / "a.txt").write_text("one\n" * 98)
    with pytest.raises(UsageError, match="has changed"):
        token_file(tmp_path / "out", changed, ByteTokenizer())
    assert not list((tmp_path / "out").iterdir())


def test_two_makers_at_once_make_one_file(
    corpus: Corpus, files: dict[str, TokenFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits, with its own file written, until the other one's is written too; then both rename."""
    both = threading.Barrier(2, timeout=60)
    monkeypatch.setattr("os.fsync", lambda _: both.wait())
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(token_file, tmp_path, corpus, ByteTokenizer()) for _ in range(2)]
    assert {each.result().hash for each in made} == {files["bytes"].hash}
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [files["bytes"].path.read_bytes()]
