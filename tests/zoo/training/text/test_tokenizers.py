"""Tokenizers: what they encode they decode, and what they save weights.tokenizer reads."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from weights.tokenizer import decoder, encode, read_tokenizer
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.training.text import tokenizers
from zoo.training.text.data import Corpus, read_text, standard_library
from zoo.training.text.tokenizers import ByteTokenizer, LibraryTokenizer, Tokenizer, id_dtype, train_bpe

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)  # every character that UTF-8 has, zero bytes too
BPE_VOCAB = 320


@cache
def small_corpus() -> Corpus:
    """Part of the standard library, which is there to be read."""
    corpus = standard_library()
    return Corpus("part", tuple(file for file in corpus.files if file.name.startswith("json/")))


@cache
def made(kind: str) -> Tokenizer:
    return ByteTokenizer() if kind == "bytes" else train_bpe(small_corpus(), BPE_VOCAB)


KINDS = pytest.mark.parametrize("kind", ["bytes", "bpe"])


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    made(request.param).save(folder)
    return made(request.param), folder


@KINDS
@given(text=TEXTS)
@example(text="a\r\n\n  é😀\t<|endoftext|>\u0100\n")
def test_a_text_survives(kind: str, text: str) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == id_dtype(tokenizer.vocab)
    assert (ids < tokenizer.vocab).all()
    assert tokenizer.separator not in ids or (kind == "bytes" and "\0" in text)
    assert [each.tolist() for each in tokenizer.encode_batch([text, "", text])] == [ids.tolist(), [], ids.tolist()]


@given(text=TEXTS.filter(bool))
@example(text="é\n😀<|endoftext|>")
def test_what_is_saved_encodes_and_streams_alike(saved: tuple[Tokenizer, Path], text: str) -> None:
    tokenizer, folder = saved
    library, ids = encode(folder, text, chat=False)
    if "<|" not in text:  # in a prompt, it is the separator
        assert ids == tokenizer.encode(text).tolist()
    show = decoder(library, [])
    assert "".join(map(show, tokenizer.encode(text).tolist())) == text


def test_a_saved_tokenizer_is_read_back_equal(saved: tuple[Tokenizer, Path]) -> None:
    tokenizer, folder = saved
    for path in (folder, folder / "tokenizer.json"):
        again = tokenizers.read_tokenizer(path)
        assert type(again) is type(tokenizer)
        assert (again.vocab, again.separator, again.hash) == (tokenizer.vocab, tokenizer.separator, tokenizer.hash)
    tokenizer.save(folder)  # the same once more is no harm
    (folder / "tokenizer.json").rename(folder / "kept")
    (folder / "tokenizer.json").write_text("another")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        tokenizer.save(folder)
    (folder / "kept").replace(folder / "tokenizer.json")
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]


def test_the_saved_bytes_are_the_ids(tmp_path: Path) -> None:
    """The library's own byte-level alphabet agrees with the one written here, for every byte."""
    ByteTokenizer().save(tmp_path)
    library = read_tokenizer(tmp_path)
    assert library.get_vocab_size() == 256
    assert sorted(library.get_vocab()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    text = "".join(map(chr, range(0x800)))  # one and two bytes: every byte that they can have
    assert library.encode(text).ids == list(text.encode())


@KINDS
def test_part_of_a_character_is_replaced(kind: str) -> None:
    tokenizer = made(kind)
    one = [int(tokenizer.encode(each)[0]) for each in "ab"]
    broken = tokenizer.encode("é😀").tolist()[:-1] if kind == "bytes" else tokenizer.encode("😀").tolist()[:-1]
    text = tokenizer.decode([one[0], *broken, one[1]])
    assert text.startswith("a")
    assert text.endswith("b")
    assert "\ufffd" in text


@KINDS
def test_a_text_that_is_not_unicode_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="not valid UTF-8"):
        made(kind).encode("a\ud800")


def test_a_bpe_is_learnt_from_the_training_text_alone(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"common words here {i}\n" * 9)
    corpus = read_text(tmp_path)
    for piece in (*corpus.splits.heldout, *corpus.splits.tuning):
        piece.file.path.write_text("zyzzyva " * 4000)
    tokenizer = train_bpe(read_text(tmp_path), 280)
    assert tokenizer.vocab == 280
    assert len(tokenizer.encode(" words")) == 1
    assert len(tokenizer.encode("zyzzyva")) == 7


def test_a_bpe_is_the_same_each_time() -> None:
    again = train_bpe(small_corpus(), BPE_VOCAB)
    assert again.hash == made("bpe").hash != train_bpe(small_corpus(), BPE_VOCAB + 1).hash
    text = Path(small_corpus().files[0].path).read_text()
    assert len(again.encode(text)) < 0.8 * len(text)


@pytest.mark.parametrize(
    ("vocab", "message"), [(256, "at least 257"), (100_000, "tokens at most, got a vocab of 100000")]
)
def test_a_vocab_that_cannot_be_is_refused(vocab: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_bpe(small_corpus(), vocab)


def source(*tokens: str) -> Library:
    """A tokenizer as released models have: with special tokens, truncation and a padding that must not be used."""
    alphabet = {each: i for i, each in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Library(models.BPE(vocab=alphabet, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(tokens))
    library.enable_truncation(max_length=4)
    library.enable_padding(length=8)
    return library


def test_a_sources_tokenizer_is_used_whole() -> None:
    library = source("<bos>", "<|endoftext|>", "<|end_of_text|>")
    tokenizer = LibraryTokenizer(library, "source")
    text = "longer than four <bos> and <|end_of_text|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.separator == library.token_to_id("<|end_of_text|>") == 258
    assert tokenizer.vocab == 259
    assert tokenizer.hash != LibraryTokenizer(source("<bos>", "<|endoftext|>"), "source").hash
    with pytest.raises(UsageError, match=r"has no token .* to put between files"):
        LibraryTokenizer(source("<bos>"), "source")


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="cannot be read: No such file"):
        tokenizers.read_tokenizer(tmp_path)
    for content in (b"{}", b"[", b"\xff"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(MalformedError, match="is not a readable tokenizer"):
            tokenizers.read_tokenizer(tmp_path)


def test_bytes_need_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    ByteTokenizer().save(tmp_path)
    assert isinstance(tokenizers.read_tokenizer(tmp_path), ByteTokenizer)
    with pytest.raises(NotAvailable, match=r"\.\[train\]"):
        train_bpe(small_corpus(), BPE_VOCAB)


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]
)
def test_ids_take_the_smallest_type(vocab: int, dtype: type) -> None:
    assert id_dtype(vocab) == dtype
    assert np.iinfo(dtype).max >= vocab - 1
