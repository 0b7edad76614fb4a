"""The token file: a text's token ids in a memory-mapped file made once, and the batches that are drawn from it.

A file is 4096 bytes of header (a magic word and one JSON object), then the ids of the training, tuning and held-out
text. Ids are little-endian integers of the size that the vocabulary needs. Each of the three texts begins with a
separator, and one follows every file's text. Reading it runs no code.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zoo.errors import MalformedError, UsageError, accessing
from zoo.new_files import write_new_file
from zoo.training.losses import IGNORED, Batch
from zoo.training.text.data import Corpus, Piece
from zoo.training.text.tokenizers import Ids, Tokenizer, id_dtype

VERSION = 1  # version of the layout, of the splits and of the blocks
MAGIC, HEADER_BYTES = b"ZOOTOKEN", 4096
ENCODED_AT_ONCE = 1 << 21  # characters; the library keeps about 100 bytes for each token
FIELDS: dict[str, type] = dict.fromkeys(("name", "hash", "text_hash", "tokenizer"), str)
FIELDS |= dict.fromkeys(("version", "vocab", "separator"), int) | dict.fromkeys(("tokens", "bytes"), list)
Split = Literal["train", "tuning", "heldout"]


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The token ids of a text, memory-mapped and read-only: (tokens,) uint8, uint16 or uint32.

    `hash` follows from the text, the tokenizer and VERSION, `text_hash` from the text alone. `..._bytes` count the
    UTF-8 text, with one for the end of each file. A split holds one token more than it scores; with bytes as tokens it
    scores as many tokens as it has bytes. `tuning` is for choosing learning rates, `heldout` for results.
    """

    path: Path
    name: str
    hash: str
    text_hash: str
    tokenizer: str
    vocab: int
    separator: int
    train: Ids
    tuning: Ids
    heldout: Ids
    train_bytes: int
    tuning_bytes: int
    heldout_bytes: int

    def bits_per_byte(self, nats: float, scored: int, split: Split = "heldout") -> float:
        """Returns the bits per byte of a split's text, from the sum of `nats` over `scored` targets.

        If `scored` is not all of the split, its mean stands for the whole, with the whole split's tokens per byte.
        """
        tokens, nbytes = len(getattr(self, split)) - 1, getattr(self, f"{split}_bytes")
        return nats / math.log(2) / scored * (tokens / nbytes)


def token_file(folder: str | Path, corpus: Corpus, tokenizer: Tokenizer) -> TokenFile:
    """Returns the token file of a text in `folder`, and makes it if it does not exist.

    Its name is its hash. It is never there in part, and two processes may make it at once. Raises MalformedError for
    another file of that name, UsageError where the text changes meanwhile or cannot be split, NotAvailable where the
    disk fails.
    """
    key = f"{VERSION} {corpus.hash} {tokenizer.hash}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = Path(folder) / f"tokens-{digest}.bin"
    if not path.exists():
        _make(path, digest, corpus, tokenizer)
    tokens = open_tokens(path)
    if tokens.hash != digest:
        raise MalformedError(f"{path} holds the tokens {tokens.hash}, not those of its name; remove it")
    return tokens


def open_tokens(path: str | Path) -> TokenFile:
    """Opens an existing token file. Raises NotAvailable if it cannot be read, MalformedError if it is another kind of
    file, of another version, or incomplete."""
    path = Path(path)
    with accessing(path):
        with path.open("rb") as file:
            head, size = file.read(HEADER_BYTES), path.stat().st_size
        header = _header(path, head, size)
        ids = np.memmap(path, header["dtype"], "r", HEADER_BYTES)
    parts = np.split(ids, np.cumsum(header["tokens"])[:-1])
    named = (header[each] for each in ("name", "hash", "text_hash", "tokenizer", "vocab", "separator"))
    return TokenFile(path, *named, *parts, *header["bytes"])


def training_batch(tokens: TokenFile, step: int, batch: int, context: int, seed: int) -> Batch:
    """Returns `batch` windows of `context` tokens and the token after each, (batch, context).

    The result depends only on seed, step and row, so a resumed run needs no state. Windows start anywhere, are drawn
    with replacement, and may reach over the end of a file. Raises UsageError for a training text of no more than
    `context` tokens, MalformedError for an id outside `vocab`.
    """
    starts = len(tokens.train) - context
    if starts < 1:
        raise UsageError(
            f"the training text has {len(tokens.train)} tokens, too few for a context of {context}: give more text"
        )
    # Philox's own words: unlike numpy's distributions, they are the same in every version.
    key = np.array([seed % 2**64, step % 2**64], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(batch)
    windows = np.stack([tokens.train[start : start + context + 1] for start in (words % np.uint64(starts)).tolist()])
    return _batch(tokens, windows[:, :-1], windows[:, 1:].astype(np.int64))


def heldout_batches(
    tokens: TokenFile, batch: int, context: int, limit: int | None = None, split: Split = "heldout"
) -> Iterator[Batch]:
    """Yields batches (batch, context) that score each token of a split once, in order, in consecutive windows.

    With `limit` they score the first `limit` tokens. The last batch is filled up with IGNORED targets.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"at least 1 token must be scored, got a limit of {limit}")
    ids = getattr(tokens, split)
    ids = ids if limit is None else ids[: limit + 1]
    for start in range(0, len(ids) - 1, batch * context):
        part = ids[start : start + batch * context + 1]
        inputs = np.full(batch * context, tokens.separator, dtype=ids.dtype)
        targets = np.full(batch * context, IGNORED, dtype=np.int64)
        inputs[: len(part) - 1], targets[: len(part) - 1] = part[:-1], part[1:]
        yield _batch(tokens, inputs.reshape(batch, context), targets.reshape(batch, context))


def _batch(tokens: TokenFile, inputs: Ids, targets: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
    if (largest := max(int(inputs.max()), int(targets.max()))) >= tokens.vocab:
        raise MalformedError(f"{tokens.path} holds the id {largest}, and its vocab is {tokens.vocab}; remove the file")
    return Batch(torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(targets))


def _make(path: Path, digest: str, corpus: Corpus, tokenizer: Tokenizer) -> None:
    dtype = id_dtype(tokenizer.vocab).newbyteorder("<")
    counts = []
    with write_new_file(path) as file:
        file.write(bytes(HEADER_BYTES))
        for pieces in corpus.splits:
            count = 0
            for ids in _encoded(pieces, tokenizer):
                file.write(ids.astype(dtype).tobytes())
                count += len(ids)
            counts.append(count)
        header = {
            "version": VERSION,
            "name": corpus.name[:200],
            "hash": digest,
            "text_hash": corpus.hash,
            "tokenizer": tokenizer.name[:100],
            "vocab": tokenizer.vocab,
            "separator": tokenizer.separator,
            "tokens": counts,
            "bytes": [sum(map(len, pieces)) + len(pieces) for pieces in corpus.splits],
        }
        file.seek(0)
        file.write((MAGIC + json.dumps(header).encode()).ljust(HEADER_BYTES - 1) + b"\n")


def _encoded(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Iterator[Ids]:
    """Yields, in parts, a separator, and then each piece's ids and a separator."""
    separator = np.array([tokenizer.separator], dtype=id_dtype(tokenizer.vocab))
    yield separator
    for texts in _batches(pieces):
        encoded = iter(tokenizer.encode_batch([text for text in texts if text is not None]))
        yield from (separator if text is None else next(encoded) for text in texts)


def _batches(pieces: Sequence[Piece]) -> Iterator[list[str | None]]:
    """Yields blocks of text to encode at once, with None at the end of each piece."""
    texts, total = list[str | None](), 0
    for piece in pieces:
        for text in piece.blocks():
            texts.append(text)
            total += len(text)
            if total >= ENCODED_AT_ONCE:
                yield texts
                texts, total = [], 0
        texts.append(None)
    yield texts


def _header(path: Path, head: bytes, size: int) -> dict[str, Any]:
    """Returns the checked header, with the dtype of the ids."""
    broken = MalformedError(f"{path} is not a token file, or only a part of one; remove it, and it is made again")
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        raise broken
    try:
        header = json.loads(head[len(MAGIC) :])
    except (ValueError, RecursionError) as error:
        raise broken from error
    if isinstance(header, dict) and header.get("version") != VERSION:
        raise MalformedError(f"{path} is a token file of version {header.get('version')!r}, not {VERSION}; remove it")
    if not isinstance(header, dict) or {name: type(value) for name, value in header.items()} != FIELDS:
        raise broken
    counts = [*header["tokens"], *header["bytes"]]
    if len(header["tokens"]) != 3 or len(counts) != 6 or any(type(n) is not int or n < 1 for n in counts):
        raise broken
    if not 0 <= header["separator"] < header["vocab"] <= 1 << 32:
        raise broken
    header["dtype"] = id_dtype(header["vocab"]).newbyteorder("<")
    if size != HEADER_BYTES + header["dtype"].itemsize * sum(header["tokens"]):
        raise broken
    return header
