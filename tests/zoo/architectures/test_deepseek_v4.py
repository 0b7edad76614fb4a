"""DeepSeek-V4's configs and files are read in every spelling that exists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import weights
import zoo
from tests import toys
from tests.configs import newer, older
from tests.weights.checkpoints import read, write
from zoo.architectures.deepseek_v4 import CSA, HCA, SLIDING
from zoo.errors import MalformedError

NAME = "deepseek-v4-flash-284b"
FULL = zoo.spec(NAME)


def kinds(spec: zoo.Decoder) -> list[str]:
    return [layer.mixer.names()[0] for layer in spec.layers]


def refusal(**changes: Any) -> str:
    with pytest.raises(MalformedError) as refused:
        zoo.from_hf(older(NAME) | changes)
    return str(refused.value)


def test_the_layers_are_those_of_the_paper() -> None:
    """Flash has two layers with only a window, then CSA and HCA in turns; Pro begins with two HCA layers. In both,
    three layers choose experts by token id."""
    assert kinds(FULL) == ["SWA", "SWA", *["CSA", "HCA"] * 20, "CSA"]
    pro = zoo.spec("deepseek-v4-pro-1.6t")
    assert kinds(pro) == ["HCA", "HCA", *["CSA", "HCA"] * 29, "CSA"]
    assert [layer.reads_tokens for layer in pro.layers] == [True] * 3 + [False] * 58
    assert FULL.kv_growth()[1] < zoo.spec("deepseek-v3.2-671b").kv_growth()[1] / 12


def test_layers_are_listed_in_three_ways() -> None:
    """They are listed by name, by ratio (followed by the multi-token prediction layers), or not at all."""
    listed = [SLIDING, CSA, HCA, CSA]
    by_name = zoo.from_hf(older(NAME, num_hidden_layers=4, compress_ratios=None, layer_types=listed))
    by_ratio = zoo.from_hf(older(NAME, num_hidden_layers=4, compress_ratios=[0, 4, 128, 4, 0]))
    assert by_name == by_ratio
    assert kinds(by_name) == ["SWA", "CSA", "HCA", "CSA"]
    usual = zoo.from_hf(older(NAME, num_hidden_layers=5, compress_ratios=None))
    assert kinds(usual) == ["HCA", "HCA", "HCA", "CSA", "HCA"]
    assert "compress_ratios must have an entry for each of 43 layers" in refusal(compress_ratios=[0, 4])
    assert "compress_ratios has 8; known: 0, 4, 128" in refusal(compress_ratios=[8] * 44)
    assert "compress_ratios has False" in refusal(compress_ratios=[False] * 44)


def test_ratios_may_be_other_numbers() -> None:
    older_spelling = zoo.from_hf(older(NAME, compress_rate_csa=8, compress_rate_hca=64))
    newer_spelling = zoo.from_hf(older(NAME, compress_rates={CSA: 8, HCA: 64}))
    assert older_spelling == newer_spelling
    rates = {part.every for part in newer_spelling.walk() if isinstance(part, zoo.Compressor)}
    assert rates == {8, 64}
    assert "compress_rates.full_attention=2" in refusal(compress_rates={"full_attention": 2})


def test_hashed_layers_are_counted_or_listed() -> None:
    none = zoo.from_hf(older(NAME, num_hash_layers=0))
    assert not any(layer.reads_tokens for layer in none.layers)
    listed = zoo.from_hf(older(NAME, mlp_layer_types=["moe"] * 42 + ["hash_moe"]))
    assert [layer.reads_tokens for layer in listed.layers] == [False] * 42 + [True]
    assert "mlp_layer_types[0]='dense' is unknown" in refusal(mlp_layer_types=["dense"] * 43)
    assert "num_hash_layers" in refusal(num_hash_layers=-1)


def test_yarn_changes_no_magnitude_in_published_files() -> None:
    """Only the newer spelling, which has an entry per kind of layer, has a gain if it states none."""
    compressed = FULL.layers[-1].mixer.rope
    assert (compressed.theta, compressed.scaling.gain) == (1.6e5, 1.0)
    assert FULL.layers[0].mixer.rope == zoo.RoPE(1e4)
    written = newer(NAME)
    assert zoo.from_hf(written) == FULL
    del written["rope_parameters"]["compress"]["attention_factor"]
    gain = zoo.from_hf(written).layers[-1].mixer.rope.scaling.gain
    assert gain == pytest.approx(1.2772588722239782, rel=1e-15)


def test_what_contradicts_itself_or_is_unknown_is_refused() -> None:
    assert "qk_rope_head_dim=32 is not partial_rotary_factor=0.125" in refusal(
        qk_rope_head_dim=32, partial_rotary_factor=0.125
    )
    assert "n_shared_experts=2 is not supported, only 1" in refusal(n_shared_experts=2)
    assert "scoring_func='sigmoid' is not supported" in refusal(scoring_func="sigmoid")
    assert "hc_mult" in refusal(hc_mult=0)
    assert "at least 2 streams" in refusal(hc_mult=1)
    assert "surprise=1" in refusal(surprise=1)


def test_multi_token_prediction_and_int32_tables_are_read(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Multi-token prediction is not read. Expert ids may be int32 or int64, and must be ids of existing experts."""
    config, tensors = read(saved(NAME))
    tables = [name for name in tensors if name.endswith("tid2eid")]
    assert len(tables) == 3
    expected = weights.load(saved(NAME))
    changed = {name: tensor.int() if name in tables else tensor for name, tensor in tensors.items()}
    changed["mtp.0.attn.wq_a.weight"] = torch.zeros(2, 2)
    write(tmp_path / "int32", config, changed)
    loaded = weights.load(tmp_path / "int32")
    assert all(torch.equal(a, b) for a, b in zip(loaded.buffers(), expected.buffers(), strict=True))
    tokens = torch.randint(0, 512, (1, 20))
    assert torch.equal(loaded(tokens), expected(tokens))
    for name, wrong, says in (
        ("low", -1, "expert ids from -1 to 7, of 8 experts"),
        ("high", 8, "expert ids from 0 to 8, of 8 experts"),
    ):
        bad = tensors[tables[0]].clone()
        bad[5, 1] = wrong
        write(tmp_path / name, config, tensors | {tables[0]: bad})
        with pytest.raises(MalformedError, match=says):
            weights.load(tmp_path / name)
    write(tmp_path / "float", config, tensors | {tables[0]: tensors[tables[0]].float()})
    with pytest.raises(MalformedError, match=r"neither int32 nor int64: model\.layers\.0\.ffn\.gate\.tid2eid"):
        weights.load(tmp_path / "float")


def test_a_toy_compresses_more_than_it_keeps() -> None:
    """Prompts are longer than every window and than many blocks, so that comparisons with the reference cover all of
    it."""
    small = zoo.spec(NAME, tiny=True)
    assert toys.config(NAME)["compress_rates"] == {CSA: 4, HCA: 8}
    assert {part.every for part in small.walk() if isinstance(part, zoo.Compressor)} == {4, 8}
    assert {part.k for part in small.walk() if isinstance(part, zoo.EntryIndexer)} == {6}  # of 20 in 80 tokens
