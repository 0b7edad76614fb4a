"""The data of a run: its token file and tokenizer, the batches, and samples that its model generates."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from zoo.errors import MalformedError, UsageError
from zoo.model.module import Model
from zoo.training.losses import Batch
from zoo.training.options import Options
from zoo.training.text.data import Corpus, read_text, standard_library
from zoo.training.text.tokenizers import TOKENIZER, ByteTokenizer, Tokenizer, read_tokenizer, train_bpe
from zoo.training.text.tokens import TokenFile, heldout_batches, open_tokens, token_file, training_batch

HELDOUT_TOKENS = 65_536  # maximum per evaluation, from the start of the held-out text
LIBRARY_PROMPT = "import "  # Python files often begin with it
PROMPT_TOKENS, SAMPLE_TOKENS, TEMPERATURE = 16, 120, 0.8


@dataclass(frozen=True)
class Material:
    """Training and held-out data, in batches as the options describe them."""

    tokens: TokenFile
    tokenizer: Tokenizer
    options: Options

    @classmethod
    def make(cls, options: Options, folder: Path, source: Path | None) -> Self:
        """Writes the token file and the tokenizer of a new run to its folder.

        The tokenizer is that of the `source` folder, if it has one. Otherwise it is a BPE of `vocab` tokens or, without
        `vocab`, the bytes. Raises the errors of `read_text`, `train_bpe` and `token_file`.
        """
        corpus = _corpus(options, folder)
        tokenizer: Tokenizer = ByteTokenizer()
        if source is not None and (source / TOKENIZER).is_file():
            tokenizer = read_tokenizer(source)
        elif options.vocab is not None:
            tokenizer = train_bpe(corpus, options.vocab)
        tokens = token_file(folder, corpus, tokenizer)
        tokenizer.save(folder)
        return cls(tokens, tokenizer, options)

    @classmethod
    def find(cls, facts: dict[str, Any], folder: Path, options: Options, check_text: bool = False) -> Self:
        """Opens the token file and the tokenizer of a run that recorded these `facts`.

        With `check_text`, also reads the text that the options name. Raises UsageError if that text has changed,
        MalformedError if the token file is another one.
        """
        if check_text and (text := _corpus(options, folder).hash) != facts["text_hash"]:
            raise UsageError(f"the text is not that of the run: its hash is {text}, and was {facts['text_hash']}")
        tokens = open_tokens(folder / f"tokens-{facts['hash']}.bin")
        found = cls(tokens, read_tokenizer(folder), options)
        if found.facts != facts:
            raise MalformedError(f"{tokens.path} is not the token file of this run")
        return found

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Facts about the data, for checkpoints and tables."""
        return {name: getattr(self.tokens, name) for name in ("name", "hash", "text_hash", "tokenizer", "vocab")}

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step, counted from 0."""
        return training_batch(self.tokens, step, self.options.batch, self.options.context, self.options.seed)

    def heldout(self) -> Iterator[Batch]:
        """Yields the batches of an evaluation."""
        limit = min(HELDOUT_TOKENS, len(self.tokens.heldout) - 1)
        return heldout_batches(self.tokens, self.options.batch, self.options.context, limit)

    def sample(self, model: Model) -> str:
        """Returns a prompt followed by the text that the model generates, at most to the end of its context. Equal
        weights generate equal text.

        The prompt comes from the options. By default it is "import " for Python's standard library, or else the
        beginning of the held-out text.
        """
        options, tokenizer = self.options, self.tokenizer
        prompt = options.sample or (LIBRARY_PROMPT if options.text is None else None)
        ids = self.tokens.heldout[1 : PROMPT_TOKENS + 1] if prompt is None else tokenizer.encode(prompt)
        given = [int(each) for each in ids][-max(options.context // 2, 1) :]
        inputs = torch.tensor([given], device=next(model.parameters()).device)
        new = model.generate(inputs, min(SAMPLE_TOKENS, options.context), temperature=TEMPERATURE, seed=0)
        known = [token for token in new[0].tolist() if token < tokenizer.vocab]  # a released head can be wider
        return tokenizer.decode([*given, *known])


def _corpus(options: Options, folder: Path) -> Corpus:
    """Returns the text that the options name. Files in the run's own `folder` are left out."""
    return standard_library() if options.text is None else read_text(options.text, leave_out=folder)
