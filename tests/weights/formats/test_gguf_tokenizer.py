"""A tokenizer written into a .gguf file's lists gives the ids of the tokenizer that it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Regex as Pattern

from weights.formats import gguf_tokenizer as gguf_tokenizer_module
from weights.formats.gguf_tokenizer import SPACE, WORDS, gguf_tokenizer
from zoo.errors import MalformedError, NotAvailable

TEXT = Path(re.__file__).read_text(encoding="utf-8") + "naïve café 你好 こんにちは 12345 don't WE'LL\r\n\n  \t x" * 20
TEXTS = st.text(st.sampled_from(" \n\t'ab sSABé你a1234_-/;.👋\r") | st.characters(codec="utf-8"), max_size=60)
PRE = "tokenizer.ggml."
Lists = dict[str, Sequence[Any]]


def read(fields: dict[str, Any], lists: Lists) -> Any:
    return gguf_tokenizer({PRE + name: value for name, value in fields.items()}, lists_reader(lists), "x.gguf")


def lists_reader(lists: Lists) -> Any:
    return lambda name: lists.get(name.removeprefix(PRE), [])


def in_order(tokenizer: Tokenizer) -> list[str]:
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


def byte_level(rule: str) -> tuple[Tokenizer, Lists]:
    """A trained BPE over bytes with words as in `rule`, and its lists in a .gguf file."""
    made = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Pattern(pattern), "isolated") for pattern in WORDS[rule]]
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    merges = [" ".join(pair) for pair in model_of(made)["merges"]]
    made.add_special_tokens(["<|end|>"])
    tokens = in_order(made)
    return made, {"tokens": tokens, "merges": merges, "token_type": [3 if t == "<|end|>" else 1 for t in tokens]}


def model_of(tokenizer: Tokenizer) -> Any:
    return json.loads(tokenizer.to_str())["model"]


BYTE_LEVEL = {rule: byte_level(rule) for rule in ("gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "deepseek-v3")}


@given(TEXTS, st.sampled_from(sorted(BYTE_LEVEL)))
def test_byte_level_tokens_are_those_of_the_original(text: str, rule: str) -> None:
    made, lists = BYTE_LEVEL[rule]
    found = read({"model": "gpt2", "pre": rule, "add_bos_token": False}, lists)
    for each in (text, text + "<|end|>" + text):
        assert found.encode(each).ids == made.encode(each).ids
    assert found.decode(found.encode(text).ids) == text


def test_every_rule_splits_a_text_without_losing_a_character() -> None:
    for rule in WORDS:
        _, lists = BYTE_LEVEL["gpt-2"]
        found = read({"model": "gpt2", "pre": rule, "add_bos_token": False}, lists)
        assert found.decode(found.encode(TEXT).ids) == TEXT, rule


def sentencepiece() -> tuple[Tokenizer, Lists]:
    """A trained BPE with spaces as ▁ and bytes for unknown characters, and its lists; scores fall with the rank."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    made.train_from_iterator(
        [line.replace(" ", SPACE) for line in TEXT.splitlines()],
        trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", *bytes_], show_progress=False),
    )
    tokens, model = in_order(made), model_of(made)
    ranks = {"".join(pair): -float(i) for i, pair in reversed([*enumerate(model["merges"])])}
    types = [2, 3] + [6] * 256 + [1] * (len(tokens) - 258)
    plain = Tokenizer(
        models.BPE(
            **{name: model[name] for name in ("vocab", "unk_token", "fuse_unk", "byte_fallback")},
            merges=[tuple(pair) for pair in model["merges"]],
        )
    )
    plain.normalizer = made.normalizer
    plain.add_tokens([AddedToken("<s>", special=True, normalized=False)])
    return plain, {"tokens": tokens, "scores": [ranks.get(token, -1e6) for token in tokens], "token_type": types}


SENTENCEPIECE = sentencepiece()


@given(TEXTS)
def test_sentencepiece_tokens_are_those_of_the_original(text: str) -> None:
    made, lists = SENTENCEPIECE
    fields = {"model": "llama", "bos_token_id": 1, "unknown_token_id": 0, "add_space_prefix": False}
    found = read(fields, lists)
    assert found.encode(text).ids == [1, *made.encode(text).ids]
    assert found.decode(found.encode(text).ids) == text
    prefixed = read(fields | {"add_space_prefix": True, "add_bos_token": False}, lists)
    assert prefixed.encode(text).ids == (made.encode(" " + text).ids if text else [])
    assert prefixed.decode(prefixed.encode(text).ids) == text


def test_tokens_that_would_take_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges follow from every way to cut a token in two: for a run of one letter, every cut gives a merge."""
    lists: Lists = {"tokens": ["a" * i for i in range(1, 50)], "scores": [float(-i) for i in range(49)]}
    assert read({"model": "llama", "add_space_prefix": False}, lists).encode("a" * 49).ids == [48]
    monkeypatch.setattr(gguf_tokenizer_module, "MAX_MERGES", 49 * 48 // 2 - 1)
    with pytest.raises(MalformedError, match="its tokens merge in more than 1175 ways"):
        read({"model": "llama"}, lists)
    monkeypatch.setattr(gguf_tokenizer_module, "MAX_TOKEN", 48)
    with pytest.raises(MalformedError, match=r"x\.gguf: a token of 49 characters is above the limit of 48"):
        read({"model": "llama"}, lists)


def test_what_is_not_read() -> None:
    _, lists = BYTE_LEVEL["gpt-2"]
    for fields, found in (
        ({}, "no tokenizer"),
        ({"model": "t5"}, "a tokenizer 't5' with words as in 'default'"),
        ({"model": "gpt2", "pre": "kimi-k2"}, "a tokenizer 'gpt2' with words as in 'kimi-k2'"),
    ):
        with pytest.raises(
            NotAvailable, match=rf"x\.gguf holds {found}, which is not read; name another .*--tokenizer"
        ):
            read(fields, lists)
    with pytest.raises(MalformedError, match=r"x\.gguf: \d+ tokens, \d+ different ones, and 1 types"):
        read({"model": "gpt2", "pre": "qwen2"}, lists | {"token_type": [1]})
    with pytest.raises(MalformedError, match=r"x\.gguf holds no readable tokenizer"):
        read({"model": "gpt2", "pre": "qwen2"}, lists | {"merges": ["no such"]})
    with pytest.raises(MalformedError, match=r"x\.gguf holds no readable tokenizer"):
        read({"model": "llama"}, lists | {"scores": [0.0]})
