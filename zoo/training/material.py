"""The data of a run: the token file in its folder, made from a text or found there, and a sample of its model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.errors import MalformedError, UsageError
from zoo.model.module import Model
from zoo.training.options import HELDOUT_TOKENS, Options
from zoo.training.run import Material
from zoo.training.text.data import Corpus, read_text, standard_library
from zoo.training.text.tokenizers import TOKENIZER, ByteTokenizer, Tokenizer, read_tokenizer, train_bpe
from zoo.training.text.tokens import TokenFile, heldout_batches, open_tokens, token_file, training_batch

LIBRARY_PROMPT = "import "  # Python's own source often begins with it
PROMPT_TOKENS, SAMPLE_TOKENS, TEMPERATURE = 16, 120, 0.8


def read_corpus(options: Options, folder: Path) -> Corpus:
    """Returns the text that the options name, without the files in the run's own `folder`."""
    return standard_library() if options.text is None else read_text(options.text, leave_out=folder)


def make_tokens(
    options: Options, folder: Path, source: Path | None, progress: Callable[[int], object] | None = None
) -> tuple[TokenFile, Tokenizer]:
    """Returns the token file and the tokenizer of a new run, both written to its folder.

    The tokenizer is that of the `source` folder, if it has one; or else a BPE of `vocab` tokens, or else bytes. Raises
    as `read_text`, `train_bpe` and `token_file` do.
    """
    corpus = read_corpus(options, folder)
    tokenizer: Tokenizer = ByteTokenizer()
    if source is not None and (source / TOKENIZER).is_file():
        tokenizer = read_tokenizer(source)
    elif options.vocab is not None:
        tokenizer = train_bpe(corpus, options.vocab)
    tokens = token_file(folder, corpus, tokenizer, progress)
    tokenizer.save(folder)
    return tokens, tokenizer


def find_tokens(
    data: dict[str, Any], folder: Path, options: Options, check_text: bool = False
) -> tuple[TokenFile, Tokenizer]:
    """Returns the token file and the tokenizer in the folder of a run that recorded this `data`.

    With `check_text` the options' text is read too. Raises UsageError if the text differs, MalformedError if the file
    does.
    """
    if check_text and (found := read_corpus(options, folder).hash) != data["text_hash"]:
        raise UsageError(f"the text is not that of the run: its hash is {found}, and was {data['text_hash']}")
    tokens = open_tokens(folder / f"tokens-{data['hash']}.bin")
    if described(tokens) != data:
        raise MalformedError(f"{tokens.path} is not the token file of this run")
    return tokens, read_tokenizer(folder)


def described(tokens: TokenFile) -> dict[str, Any]:
    """Returns the facts about a run's data, for its checkpoints and tables."""
    return {name: getattr(tokens, name) for name in ("name", "hash", "text_hash", "tokenizer", "vocab")}


def material(model: Model, tokens: TokenFile, tokenizer: Tokenizer, options: Options) -> Material:
    """Returns the training and held-out data, in the batches that the options ask for."""
    batch, context = options.batch, options.context
    limit = min(HELDOUT_TOKENS, len(tokens.heldout) - 1)
    return Material(
        batch=lambda step: training_batch(tokens, step, batch, context, options.seed),
        heldout=lambda: heldout_batches(tokens, batch, context, limit),
        bits_per_byte=tokens.bits_per_byte,
        sample=lambda: write_sample(model, tokens, tokenizer, options),
    )


def write_sample(model: Model, tokens: TokenFile, tokenizer: Tokenizer, options: Options) -> str:
    """Returns a prompt and the model's continuation, at most to the end of its context. Equal weights write equal text.

    The prompt is that of the options, "import " for Python's own source, or else the beginning of the held-out text.
    """
    prompt = options.sample or (LIBRARY_PROMPT if options.text is None else None)
    ids = tokens.heldout[1 : PROMPT_TOKENS + 1] if prompt is None else tokenizer.encode(prompt)
    given = [int(each) for each in ids][-max(options.context // 2, 1) :]
    inputs = torch.tensor([given], device=next(model.parameters()).device)
    new = model.generate(inputs, min(SAMPLE_TOKENS, options.context), temperature=TEMPERATURE, seed=0)
    known = [token for token in new[0].tolist() if token < tokenizer.vocab]  # a released head can be wider
    return tokenizer.decode([*given, *known])
