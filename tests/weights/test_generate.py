"""The command that continues a prompt: text with a tokenizer, token ids without one."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import weights
from tests.weights.checkpoints import read, write
from weights.generate import app
from weights.tokenizer import decoder
from zoo.cli import runner

Saved = Callable[[str], Path]
WORDS = Tokenizer(models.WordLevel({f"w{i}": i for i in range(512)}, unk_token="w0"))
WORDS.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A toy model with a tokenizer whose every token is a word."""
    folder = write(tmp_path / "model", *read(saved("qwen3-0.6b")))
    WORDS.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: object) -> tuple[int, str, str]:
        code = runner.exit_code(app, "python -m weights.generate", list(map(str, args)))
        return code, *capsys.readouterr()

    return run


def continued(folder: Path, count: int, **options: object) -> list[int]:
    """The model's continuation of the tokens 5, 6, 7."""
    return weights.load(folder).generate(torch.tensor([[5, 6, 7]]), count, **options)[0].tolist()


def test_text_and_token_ids(folder: Path, run: Callable) -> None:
    new = continued(folder, 6, stop=[1])
    code, out, err = run(folder, "w5 w6 w7", "--max-new-tokens", 6)
    assert (code, out.split()) == (0, [f"w{token}" for token in new])
    assert "tokens/s" in err
    assert run(folder, "--tokens", "5,6,7", "--max-new-tokens", 6)[:2] == (0, ",".join(map(str, new)) + "\n")


def test_samples_repeat_with_their_seed(folder: Path, run: Callable) -> None:
    options = ("--temperature", 2, "--top-k", 50, "--top-p", 0.9, "--seed", 3)
    out = run(folder, "--tokens", "5,6,7", "--max-new-tokens", 6, *options)[1]
    assert out == run(folder, "--tokens", "5,6,7", "--max-new-tokens", 6, *options)[1]
    new = continued(folder, 6, temperature=2.0, top_k=50, top_p=0.9, seed=3, stop=[1])
    assert out == ",".join(map(str, new)) + "\n"


def test_published_sampling_is_used_if_asked_for_and_named_otherwise(folder: Path, run: Callable) -> None:
    """Options replace single settings. The seed is printed, so that a run can be repeated."""
    settings = {"do_sample": True, "temperature": 2, "top_k": 50}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ids = ("--tokens", "5,6,7", "--max-new-tokens", 6)
    greedy, err = run(folder, *ids)[1:]
    assert greedy == ",".join(map(str, continued(folder, 6))) + "\n"
    assert "; greedy; --sample uses the published temperature 2, top-k 50\n" in err
    for options, used in (
        ({}, {"temperature": 2.0, "top_k": 50}),
        ({"top_k": 9}, {"temperature": 2.0, "top_k": 9}),
        ({"temperature": 5.0, "top_p": 0.9}, {"temperature": 5.0, "top_k": 50, "top_p": 0.9}),
    ):
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        out, err = run(folder, *ids, "--sample", *words)[1:]
        in_words = ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in used.items())
        found = re.search(rf"; sampling with {in_words}, seed (\d+)\n", err)
        assert found is not None
        assert out == ",".join(map(str, continued(folder, 6, seed=int(found[1]), **used))) + "\n"


def test_another_sources_tokenizer(folder: Path, run: Callable, tmp_path: Path) -> None:
    """The tokenizer is that of a folder, or a file of any name, with its chat template."""
    expected = run(folder, "w5 w6 w7", "--max-new-tokens", 3)[1]
    other = tmp_path / "other"
    other.mkdir()
    (folder / "tokenizer.json").rename(other / "tokenizer.json")
    assert run(folder, "w5 w6 w7", "--max-new-tokens", 3, "--tokenizer", other)[:2] == (0, expected)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }} w7", encoding="utf-8")
    for path in (other, other / "tokenizer.json"):
        assert run(folder, "w5 w6", "--chat", "--max-new-tokens", 3, "--tokenizer", path)[:2] == (0, expected)
    named = (other / "tokenizer.json").rename(tmp_path / "words.json")
    assert run(folder, "w5 w6 w7", "--max-new-tokens", 3, "--tokenizer", named)[:2] == (0, expected)


@pytest.mark.parametrize("ends", [lambda end: end, lambda end: [511, end]])
def test_it_stops_at_the_end_token(ends: Callable, folder: Path, run: Callable) -> None:
    """generation_config.json's end token takes precedence over config.json's."""
    first = continued(folder, 1)[0]
    for name in ("config.json", "generation_config.json"):
        other = folder / "generation_config.json"
        other.unlink(missing_ok=True)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(config | {"eos_token_id": ends(first)}), encoding="utf-8")
        if name == "generation_config.json":
            (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 510}), encoding="utf-8")
        code, out, err = run(folder, "--tokens", "5,6,7", "--max-new-tokens", 6)
        assert (code, out) == (0, f"{first}\n")
        assert err.endswith(f"; stopped by end token {first}\n")


def test_the_reason_for_stopping_is_printed(folder: Path, run: Callable) -> None:
    """This includes an end token that is the first new token, which has no text, and one that is the last allowed
    token."""
    new = continued(folder, 6)
    assert len(set(new[:3])) == 3
    text = ("w5 w6 w7", "--max-new-tokens")
    assert run(folder, *text, 2)[2].endswith("; stopped after --max-new-tokens 2\n")
    for place in (0, 2):
        end = new[place]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"eos_token_id": [end]}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "generation_config.json").unlink(missing_ok=True)
        for most in (place + 1, 6):
            code, out, err = run(folder, *text, most)
            assert (code, out.split()) == (0, [f"w{token}" for token in new[: place + 1]])
            assert err.endswith(f"; stopped by end token {end}\n")
    special = Tokenizer.from_str(WORDS.to_str())
    special.add_special_tokens([f"w{end}"])
    special.save(str(folder / "tokenizer.json"))
    code, out, err = run(folder, *text, 6)
    assert (code, out.split()) == (0, [f"w{token}" for token in new[:2]])
    assert err.endswith(f"; stopped by end token {end}\n")


def test_a_character_of_several_tokens_is_printed_whole() -> None:
    """Tokens are bytes, so é consists of two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    show = decoder(tokenizer, tokenizer.encode("caf").ids)
    assert [show(token) for token in tokenizer.encode("é au").ids] == ["", "é", " ", "a", "u"]


@pytest.mark.parametrize(
    ("args", "code", "phrase"),
    [
        ([], 2, "give either a PROMPT in words or --tokens with ids"),
        (["w1", "--tokens", "1"], 2, "give either a PROMPT in words or --tokens with ids"),
        (["--tokens", "1,x"], 2, "--tokens must be ids with commas between, as in 2,818,5279, got '1,x'"),
        (["--tokens", ""], 2, "must be ids with commas between"),
        ([""], 2, "the prompt has no tokens"),
        (["--tokens", "1,512,-1"], 2, "token ids must be below 512, got 512, -1"),
        (["--tokens", "1", "--max-new-tokens", "0"], 2, "max-new-tokens"),
        (["--tokens", "1", "--dtype", "int8"], 2, "int8 only stores values"),
        (["--tokens", "1", "--top-p", "2", "--temperature", "1"], 2, "top_p 2.0 is not in (0, 1]"),
        (["--tokens", "1", "--top-k", "5"], 2, "--top-k and --top-p are for samples: give --sample or a --temperature"),
        (["--tokens", "1", "--sample"], 2, "publishes no settings for --sample; give a --temperature"),
        (["--tokens", "1", "--tokenizer", "x"], 2, "--tokenizer is for a PROMPT in words"),
        (["w1", "--tokenizer", "no/such.gguf"], 3, "there is no folder and no .gguf file 'no/such.gguf'"),
        (["--tokens", "1", "--device", "gpu"], 2, "unknown device 'gpu'"),
        (["--tokens", "1", "--device", "cpu:x"], 2, "unknown device 'cpu:x'"),
        (["--tokens", "1", "--device", "cuda:99"], 3, "no device cuda:99 here"),
    ],
)
def test_usage(args: list[str], code: int, phrase: str, folder: Path, run: Callable) -> None:
    found, out, err = run(folder, *args)
    assert (found, out) == (code, "")
    assert phrase in err.splitlines()[-1]


def test_missing_files(folder: Path, run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(folder / "nothing", "w1")
    assert code == 3
    assert "no folder and no .gguf file" in err
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    code, _, err = run(folder, "w1")
    assert code == 4
    assert "is not a readable tokenizer" in err
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, _, err = run(folder, "w1")
    assert code == 3
    assert "pip install -e '.[text]'" in err
    (folder / "tokenizer.json").unlink()
    code, _, err = run(folder, "w1")
    assert code == 3
    assert "has no tokenizer.json to read a prompt with; give ids (--tokens 2,818,5279) or --tokenizer SOURCE" in err


def test_in_a_pipe(folder: Path, run: Callable) -> None:
    """The command runs as a user would run it: data on stdout, notes on stderr, with --ignore-field."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"wings": 2}), encoding="utf-8")
    command = [sys.executable, "-m", "weights.generate", str(folder), "w5 w6 w7", "--max-new-tokens", "2"]
    command += ["--ignore-field", "wings"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == [f"w{token}" for token in continued_ignoring(folder)]
    assert len(done.stderr.splitlines()) == 2
    code, out, err = run(folder, "w5 w6 w7")
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert err.startswith("error: config.json: not understood: wings=2")


def continued_ignoring(folder: Path) -> list[int]:
    model = weights.load(folder, ignore_fields=["wings"])
    return model.generate(torch.tensor([[5, 6, 7]]), 2)[0].tolist()
