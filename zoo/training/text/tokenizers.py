"""Tokenizers for training: bytes, a BPE trained on the text, or the tokenizer.json of a released model. Every tokenizer
is saved as a tokenizer.json, which `python -m weights.generate` reads."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import MalformedError, UsageError, accessing, require_package
from zoo.new_files import write_file
from zoo.training.text.data import Corpus

TOKENIZER = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# Separators of documents in released models. A vocabulary can hold several: the first one here is used.
SEPARATORS = ("<|end_of_text|>", END_OF_TEXT, "<｜end▁of▁sentence｜>", "<eos>", "</s>")
MIN_BPE_VOCAB = 257  # all bytes and the separator

Ids = NDArray[np.unsignedinteger[Any]]


class Tokenizer(ABC):
    """Converts text to token ids and back. Ids are below `vocab`. `separator` is the id between files; no text is
    encoded to it."""

    name: str
    vocab: int
    separator: int

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Returns the ids of each text. Raises UsageError for a text that is not valid Unicode (lone surrogates)."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Returns the text of ids. Bytes that are not valid UTF-8 become U+FFFD."""

    @abstractmethod
    def to_json(self, pretty: bool = False) -> str:
        """Returns the content of a tokenizer.json."""

    def encode(self, text: str) -> Ids:
        """Returns the ids of a text, shape (tokens,). Raises the errors of `encode_batch`."""
        return self.encode_batch([text])[0]

    @property
    def hash(self) -> str:
        """A hash of everything on which the ids depend."""
        return hashlib.sha256(f"{self.separator}\n{self.to_json()}".encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Writes a tokenizer.json. Raises UsageError if a different one exists."""
        path, content = Path(folder) / TOKENIZER, self.to_json(pretty=True).encode()
        if not path.exists():
            write_file(path, content)
        elif path.read_bytes() != content:
            raise UsageError(f"{path} already exists and differs; nothing is overwritten")


def id_dtype(vocab: int) -> np.dtype[Any]:
    """Returns the smallest unsigned integer type that holds every id below `vocab`."""
    return np.dtype(np.uint8 if vocab <= 1 << 8 else np.uint16 if vocab <= 1 << 16 else np.uint32)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: an id is the value of a byte. Byte 0, which text files do not contain, separates files."""

    name, vocab, separator = "bytes", 256, 0

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(_utf8(text), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return bytes(map(int, ids)).decode(errors="replace")

    def to_json(self, pretty: bool = False) -> str:
        return _byte_json()


class LibraryTokenizer(Tokenizer):
    """Wraps a `tokenizers.Tokenizer`, and changes its settings: no truncation, no padding, no beginning-of-text token.
    Special tokens in a text are encoded like other text."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Raises UsageError if the vocabulary has none of SEPARATORS."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        known = tokenizer.get_vocab()
        ids = [known[token] for token in SEPARATORS if token in known]
        if not ids:
            raise UsageError(f"the tokenizer {name} has no token {' or '.join(SEPARATORS)} to put between files")
        self.name, self.separator, self.vocab = name, ids[0], 1 + max(known.values())
        self._tokenizer, self._dtype = tokenizer, id_dtype(self.vocab)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        for text in texts:
            _utf8(text)
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return str(self._tokenizer.decode([int(each) for each in ids], skip_special_tokens=False))

    def to_json(self, pretty: bool = False) -> str:
        return str(self._tokenizer.to_str(pretty=pretty))


def train_bpe(corpus: Corpus, vocab: int) -> LibraryTokenizer:
    """Trains a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of `vocab` tokens, on the training split
    only.

    The vocabulary holds the 256 bytes, a separator, and merges. Equal text gives an equal tokenizer. Raises UsageError
    if `vocab` is below MIN_BPE_VOCAB or more than the text can fill, NotAvailable if the package is missing.
    """
    tokenizers = require_package("tokenizers", "train")
    if vocab < MIN_BPE_VOCAB:
        raise UsageError(f"a BPE needs a vocab of at least {MIN_BPE_VOCAB} (256 bytes and a separator), got {vocab}")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END_OF_TEXT], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    texts = (text for piece in corpus.splits.train for text in piece.blocks())
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if (found := tokenizer.get_vocab_size()) != vocab:
        raise UsageError(f"the training text yields a BPE of {found} tokens at most, got a vocab of {vocab}")
    return LibraryTokenizer(tokenizer, f"BPE {vocab}")


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer in a tokenizer.json, or in a folder that contains this file.

    Raises NotAvailable if it does not exist, MalformedError if it is not a tokenizer, UsageError if it has no
    separator.
    """
    path = Path(path)
    path = path / TOKENIZER if path.is_dir() else path
    try:
        with accessing(path):
            text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise MalformedError(f"{path} is not a readable tokenizer: {error}") from error
    if text == _byte_json():
        return ByteTokenizer()
    tokenizers = require_package("tokenizers", "train")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library has no error types of its own
        raise MalformedError(f"{path} is not a readable tokenizer: {error}") from error
    return LibraryTokenizer(tokenizer, path.resolve().parent.name)


def _byte_json() -> str:
    """Returns the tokenizer.json of ByteTokenizer: a byte-level BPE without merges, whose ids are byte values."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {character: byte for byte, character in enumerate(_byte_characters())},
        "merges": [],
    }
    value: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _byte_characters() -> list[str]:
    """Returns the character that stands for each byte in a byte-level vocabulary (Radford et al. 2019). A visible
    character stands for its own byte; other bytes get the next characters from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text is not valid UTF-8: {error.reason} at {error.start}") from error
