"""The token file, a memory-mapped file of a text's token ids, and the batches that are read from it.

The file has 4096 bytes of header (a magic number and one JSON object), then the ids of the training, tuning and
held-out text. Ids are little-endian integers of the smallest size that holds the vocabulary. Each of the three texts
begins with a separator, and a separator follows the text of each file. Reading the file runs no code.
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

VERSION = 1  # version of the file layout, the splits and the blocks
MAGIC, HEADER_BYTES = b"ZOOTOKEN", 4096
ENCODED_AT_ONCE = 1 << 21  # characters; the library needs about 100 bytes for each token
FIELDS: dict[str, type] = dict.fromkeys(("name", "hash", "text_hash", "tokenizer"), str)
FIELDS |= dict.fromkeys(("version", "vocab", "separator"), int) | dict.fromkeys(("tokens", "bytes"), list)
Split = Literal["train", "tuning", "heldout"]


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The token ids of a text, memory-mapped and read-only: (tokens,) uint8, uint16 or uint32.

    `hash` depends on the text, the tokenizer and VERSION, `text_hash` only on the text. `train_bytes`, `tuning_bytes`
    and `heldout_bytes` count the UTF-8 bytes, and one for the end of each file. The first token of a split is not
    scored. With bytes as tokens, a split thus scores as many tokens as it has bytes. Use `tuning` to choose learning
    rates, and `heldout` only for results.
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
        """Returns the bits per byte of a split, from the sum of `nats` over `scored` targets.

        If only a part of the split was scored, the mean of this part is taken for the whole split.
        """
        tokens, nbytes = len(getattr(self, split)) - 1, getattr(self, f"{split}_bytes")
        return nats / math.log(2) / scored * (tokens / nbytes)


def token_file(folder: str | Path, corpus: Corpus, tokenizer: Tokenizer) -> TokenFile:
    """Returns the token file of a text in `folder`. If it does not exist, it is written.

    The name of the file contains its hash. The file never exists in part, and two processes may write it at the same
    time. Raises MalformedError for a different file of this name, UsageError if the text changes while it is read or
    cannot be split, NotAvailable if the disk fails.
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
    """Opens an existing token file. Raises NotAvailable if it cannot be read. Raises MalformedError if it is
    incomplete, has another version, or is not a token file."""
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
    """Returns a batch of windows of `context` tokens, with the next token of each position as its target: (batch,
    context).

    The result depends only on the seed, the step and the row, so a resumed run needs no other state. Windows start at
    any token, are drawn with replacement, and may extend over the end of a file. Raises UsageError if the training text
    has no more than `context` tokens, MalformedError for an id outside the vocabulary.
    """
    starts = len(tokens.train) - context
    if starts < 1:
        raise UsageError(
            f"the training text has {len(tokens.train)} tokens, too few for a context of {context}: give more text"
        )
    # Raw output of Philox: unlike numpy's distributions, it is the same in every version.
    key = np.array([seed % 2**64, step % 2**64], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(batch)
    windows = np.stack([tokens.train[start : start + context + 1] for start in (words % np.uint64(starts)).tolist()])
    return _batch(tokens, windows[:, :-1], windows[:, 1:].astype(np.int64))


def heldout_batches(
    tokens: TokenFile, batch: int, context: int, limit: int | None = None, split: Split = "heldout"
) -> Iterator[Batch]:
    """Yields batches (batch, context) of consecutive windows, which score each token of a split exactly once, in order.

    `limit` is the number of tokens to score, from the start of the split. IGNORED targets fill up the last batch.
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
    """Yields the ids of the pieces in parts: a separator first, then for each piece its ids and a separator."""
    separator = np.array([tokenizer.separator], dtype=id_dtype(tokenizer.vocab))
    yield separator
    for texts in _batches(pieces):
        encoded = iter(tokenizer.encode_batch([text for text in texts if text is not None]))
        yield from (separator if text is None else next(encoded) for text in texts)


def _batches(pieces: Sequence[Piece]) -> Iterator[list[str | None]]:
    """Yields lists of text blocks that are encoded together. None marks the end of each piece."""
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
    """Returns the header after checking it, with the dtype of the ids as an additional entry."""
    broken = MalformedError(f"{path} is not a token file, or only a part of one; remove it, and it is written again")
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
