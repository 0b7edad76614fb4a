"""The tokenizer that a .gguf file holds, as an object of the library `tokenizers`.

A file holds the tokens, with either merges (byte-level BPE) or scores (SentencePiece's BPE), and the name of the rule
that splits a text into words before merging. Other kinds of tokenizers and unknown rules are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from reprlib import repr as brief
from typing import Any

from zoo.errors import MalformedError, NotAvailable, require_package

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
CONTROL, USER_DEFINED = 3, 4  # types of tokens
MAX_TOKEN, MAX_MERGES = 1024, 1_000_000  # characters; merges derived from scores (Gemma 3: 514,847)
NO_TOKENIZER = (None, "none", "no_vocab")
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in SentencePiece's tokens

# Patterns of words in published tokenizers.
ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"  # one character before the letters
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ENDS}|{BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{PUNCTUATION}|{SPACES}"
QWEN2 = rf"{ENDS}|{BEFORE}\p{{L}}+|\p{{N}}|{PUNCTUATION}|{SPACES}"
QWEN3_5 = rf"{ENDS}|{BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
TEKKEN = rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}|{PATHS}|{SPACES}"
GPT4O = rf"{BEFORE}{UPPER}*{LOWER}+{ENDS}?|{BEFORE}{UPPER}+{LOWER}*{ENDS}?|\p{{N}}{{1,3}}|{PATHS}|{SPACES}"
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + SPACES,
)
WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "olmo", "mpt"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "command-r", "refact"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "lfm2", "pixtral", "dbrx", "smaug-bpe", "glm4"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2"), (QWEN2,)),
    "qwen35": (QWEN3_5,),
    "tekken": (TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4", "minimax-m2"), (GPT4O,)),
    "deepseek-v3": DEEPSEEK,
}
STARTS_WITH_BOS = {"llama-bpe", "llama3", "llama-v3", "lfm2", "pixtral"}  # if the file does not say


def gguf_tokenizer(fields: Mapping[str, Any], read_list: Callable[[str], Sequence[Any]], where: str) -> Any:
    """Returns the tokenizer of a file with these `fields`; `read_list` returns a long list by the name of its field.

    Raises NotAvailable for a file without a tokenizer, or with an unsupported kind of tokenizer, and MalformedError for
    lists that contradict each other.
    """
    tokenizers = require_package("tokenizers", "text")
    kind, rule = fields.get("tokenizer.ggml.model"), str(fields.get("tokenizer.ggml.pre", "default"))
    if kind not in (BYTE_LEVEL, SENTENCEPIECE) or (kind == BYTE_LEVEL and rule not in WORDS):
        found = "no tokenizer" if kind in NO_TOKENIZER else f"a tokenizer {brief(kind)} with words as in {brief(rule)}"
        raise NotAvailable(f"{where} holds {found}, which is not read; name another source's: --tokenizer SOURCE")
    tokens = read_list("tokenizer.ggml.tokens")
    types = read_list("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(types) != len(tokens) or len(vocab) != len(tokens):
        raise MalformedError(f"{where}: {len(tokens)} tokens, {len(vocab)} different ones, and {len(types)} types")
    if (longest := max(map(len, tokens), default=0)) > MAX_TOKEN:
        raise MalformedError(f"{where}: a token of {longest} characters is above the limit of {MAX_TOKEN}")
    try:
        build = _byte_level if kind == BYTE_LEVEL else _sentencepiece
        tokenizer = build(tokenizers, fields, read_list, vocab)
    except Exception as error:  # the library has no error types of its own
        raise MalformedError(f"{where} holds no readable tokenizer: {error}") from error
    for special, number in ((True, CONTROL), (False, USER_DEFINED)):
        added = [token for token, of in zip(tokens, types, strict=True) if of == number]
        tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False, special=special) for token in added])
    bos = fields.get("tokenizer.ggml.bos_token_id")
    if bos is not None and fields.get("tokenizer.ggml.add_bos_token", kind == SENTENCEPIECE or rule in STARTS_WITH_BOS):
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], int(bos))]
        )
    return tokenizer


def _byte_level(
    tokenizers: Any, fields: Mapping[str, Any], read_list: Callable[[str], Sequence[str]], vocab: dict[str, int]
) -> Any:
    """Returns a byte-level BPE with the file's merges."""
    merges = [tuple(merge.split(" ")) for merge in read_list("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, ignore_merges=True))
    words = WORDS[str(fields["tokenizer.ggml.pre"])]
    split = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in words]
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _sentencepiece(
    tokenizers: Any, fields: Mapping[str, Any], read_list: Callable[[str], Sequence[Any]], vocab: dict[str, int]
) -> Any:
    """Returns a BPE whose merges follow from the scores: every pair of tokens that joins into a token, sorted by the
    score of the joined token. Characters without a token become byte tokens."""
    scores, tokens = read_list("tokenizer.ggml.scores"), list(vocab)
    pairs = (
        (-score, vocab[token[:i]], vocab[token[i:]])
        for token, score in zip(vocab, scores, strict=True)
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    )
    ranked = sorted(islice(pairs, MAX_MERGES + 1))
    if len(ranked) > MAX_MERGES:
        raise ValueError(f"its tokens merge in more than {MAX_MERGES} ways")
    merges = [(tokens[left], tokens[right]) for _, left, right in ranked]
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    model = tokenizers.models.BPE(
        vocab, merges, unk_token=None if unknown is None else tokens[unknown], fuse_unk=True, byte_fallback=True
    )
    tokenizer, normalizers = tokenizers.Tokenizer(model), tokenizers.normalizers
    prefix = [normalizers.Prepend(SPACE)] if fields.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [tokenizers.decoders.Strip(" ", 1, 0)] if prefix else []
    of = tokenizers.decoders
    tokenizer.decoder = of.Sequence([of.Replace(SPACE, " "), of.ByteFallback(), of.Fuse(), *strip])
    return tokenizer
