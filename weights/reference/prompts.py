"""What both sides are given: random token ids, and text where the source has a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import MalformedError, NotAvailable, UsageError, require_package
from zoo.model.decoder import Decoder

FEWEST, PAST = 256, 64  # tokens by default, and tokens past the widest window
MOST = 4096  # by default, however wide the window: attention's scores grow with the square
# The second paragraph of the Declaration of Independence, 1776.
TEXT = """We hold these truths to be self-evident, that all men are created equal, that they are endowed by their \
Creator with certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.--That to \
secure these rights, Governments are instituted among Men, deriving their just powers from the consent of the \
governed, --That whenever any Form of Government becomes destructive of these ends, it is the Right of the People to \
alter or to abolish it, and to institute new Government, laying its foundation on such principles and organizing its \
powers in such form, as to them shall seem most likely to effect their Safety and Happiness. """


@dataclass(frozen=True)
class Prompts:
    """Token ids (batch, t), and what each row is."""

    tokens: Tensor
    rows: tuple[str, ...]


def prompts(path: Path, spec: Decoder, length: int | None, text: str | None, seed: int) -> Prompts:
    """A row of random ids and, where a tokenizer.json lies in the source's folder, a row of text.

    `length` None is long enough to leave every window. `text` replaces the text that we bring; the text is repeated
    until the row is full.
    """
    length = _length(spec, length)
    generator = torch.Generator().manual_seed(seed)
    rows = {f"random ids, seed {seed}": torch.randint(spec.vocab, (length,), generator=generator)}
    file = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if file.is_file():
        rows = {"text": _words(file, TEXT if text is None else text, length, spec.vocab)} | rows
    elif text is not None:
        raise NotAvailable(f"{file.parent} has no tokenizer.json to read a text with")
    return Prompts(torch.stack(list(rows.values())), tuple(rows))


def widest(spec: Decoder) -> int:
    """Tokens of the widest window, 0 if there is none."""
    return max((layer.cache_spec().window or 0 for layer in spec.layers), default=0)


def _length(spec: Decoder, length: int | None) -> int:
    if length is None:
        length = min(max(FEWEST, widest(spec) + PAST), MOST, spec.context or MOST)
    if length < 2:
        raise UsageError(f"--tokens {length}: a prompt needs 2 at least, one to see the other")
    if spec.context is not None and length > spec.context:
        raise UsageError(f"--tokens {length} are more than the {spec.context} that the model was made for")
    return length


def _words(file: Path, text: str, length: int, vocab: int) -> Tensor:
    tokenizers = require_package("tokenizers", "text")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no errors of its own
        raise MalformedError(f"{file}: no readable tokenizer: {error}") from error
    first = tokenizer.encode(text).ids
    again = tokenizer.encode(text, add_special_tokens=False).ids
    if not again:
        raise UsageError("the text holds no token")
    ids = torch.tensor(first + again * (length // len(again) + 1))[:length]
    if int(ids.max()) >= vocab:
        raise MalformedError(f"{file} makes token {int(ids.max())}, of a model that has {vocab}")
    return ids
