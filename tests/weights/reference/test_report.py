"""python -m weights.parity: equal models pass, a damaged one fails, and the report says where it is damaged."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weights
import zoo
from tests.exact import BOUND, MUTANT, rms_error
from tests.presets import distinct, split
from tests.weights.checkpoints import read, write
from weights.reference.differences import compare
from weights.reference.float64 import Selections
from weights.reference.report import write_plot
from zoo.architectures import families
from zoo.cli.runner import exit_code
from zoo.errors import NotAvailable, UsageError

Saved = Callable[[str], Path]


TOKENS = 80  # past 3 windows of 16 + 1


def command(*args: object) -> int:
    app = runpy.run_module("weights.parity")["app"]
    return exit_code(app, "python -m weights.parity", list(map(str, args)))


@pytest.mark.parametrize("family", families())
def test_a_name_that_transformers_lacks_is_measured_by_another(family: str, saved: Saved, tmp_path: Path) -> None:
    """kimi_k2 is compared with deepseek_v3's implementation, although its config names its own code."""
    from transformers import CONFIG_MAPPING

    from_hf = families()[family].from_hf
    for model_type in set(from_hf.model_types) - set(CONFIG_MAPPING):
        name = next(name for name in distinct() if name in families()[family].SIZES)
        config, tensors = read(saved(name))
        code = {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}
        folder = write(tmp_path / model_type, config | {"model_type": model_type, "auto_map": code}, tensors)
        report = weights.parity(folder, tokens=TOKENS)
        assert report.passed, str(report)
        assert weights.load(folder).spec == weights.load(saved(name)).spec


Change = Callable[[torch.Tensor], torch.Tensor]


def damaged(folder: Path, original: Path, tensor: str, change: Change) -> Path:
    config, tensors = read(original)
    return write(folder, config, tensors | {tensor: change(tensors[tensor])})


def shaken(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 0.02 * tensor.std() * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))


def flipped(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flip(0)


def exchanged(tensor: torch.Tensor) -> torch.Tensor:
    """Exchanges two query heads: every value is still present, and every shape is right."""
    return tensor.unflatten(0, (4, -1))[[1, 0, 2, 3]].flatten(0, 1)


def broken(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * float("nan")


LAST = {name: f"layers.{len(zoo.spec(name, tiny=True).layers) - 1}" for name in distinct()}
DAMAGES = [  # preset, tensor, change, the part that it is in
    ("llama3-8b", "embed_tokens", shaken, "the embedding"),
    ("llama3-8b", "layers.1.self_attn.q_proj", shaken, "layer 1's attention"),
    ("llama3-8b", "layers.0.self_attn.q_proj", exchanged, "layer 0's attention"),
    ("llama3-8b", "layers.1.self_attn.o_proj", shaken, "layer 1's attention"),
    ("llama3-8b", "layers.1.input_layernorm", shaken, "layer 1's attention"),
    ("llama3-8b", "layers.1.mlp.down_proj", shaken, "layer 1's feed-forward"),
    ("llama3-8b", "layers.0.post_attention_layernorm", shaken, "layer 0's feed-forward"),
    ("llama3-8b", "norm", shaken, "the head"),
    ("llama3-8b", "norm", broken, "the head"),
    ("qwen3-8b", "layers.1.self_attn.q_norm", shaken, "layer 1's attention"),
    *(
        (name, f"layers.0.post_{branch}_layernorm", shaken, f"layer 0's {part}")  # norms after a branch
        for name in ("gemma3-270m", "olmo2-1b")
        for branch, part in (("attention", "attention"), ("feedforward", "feed-forward"))
    ),
    *(  # other experts are chosen
        (name, f"{LAST[name]}.mlp.{router}", flipped, f"{LAST[name].replace('layers.', 'layer ')}'s feed-forward")
        for name, router in (("gpt-oss-20b", "router"), ("qwen3-30b-a3b", "gate"), ("deepseek-v3-671b", "gate"))
    ),
]


@pytest.mark.parametrize(("name", "tensor", "change", "part"), DAMAGES)
def test_damage_is_found_where_it_is(
    saved: Saved, tmp_path: Path, name: str, tensor: str, change: Change, part: str
) -> None:
    """One tensor of a copy is changed, by two percent or in its order."""
    copy = damaged(tmp_path / "copy", saved(name), f"model.{tensor}.weight", change)
    report = weights.parity(copy, reference=saved(name), tokens=TOKENS, dtype="float64")
    assert re.search(rf"FAIL: largest difference in float64 .* first in {part}$", " ".join(str(report).split()))
    assert [str(each) for each in report.parts if not each.passed] == [part]
    assert not report.passed


def indexed() -> list[str]:
    """The presets among the distinct ones that have indexers."""
    return [name for name in distinct() if any(part.role == "indexer" for part in zoo.spec(name, tiny=True).walk())]


@pytest.mark.parametrize("name", split(indexed(), indexed()[-1:]))
def test_a_damaged_indexer_is_found(saved: Saved, tmp_path: Path, name: str) -> None:
    """A damaged indexer chooses other keys."""
    names = sorted(key for key in read(saved(name))[1] if ".indexer." in key and key.endswith("_proj.weight"))
    tensor = next(key for key in names if "weights_proj" in key)
    copy = damaged(tmp_path / "copy", saved(name), tensor, lambda w: w.roll(1, 0))
    report = weights.parity(copy, reference=saved(name), tokens=TOKENS, dtype="float64")
    layer = re.search(r"layers\.(\d+)\.", tensor)
    assert layer is not None
    assert str(report.first) == f"layer {layer[1]}'s attention"
    assert not report.passed


@pytest.mark.parametrize("window", [15, 17])
def test_a_wrong_window_shows_from_the_window_on(saved: Saved, window: int) -> None:
    """A window off by one changes nothing until a token has left the narrower of the two."""
    spec = zoo.spec("gemma3-270m", tiny=True)
    first = spec.layers[0].mixer.window
    assert first == 16
    wrong = zoo.swap(spec, zoo.GQA, lambda a: a if a.window is None else replace(a, window=window))
    report = weights.parity(saved("gemma3-270m"), spec=wrong, tokens=TOKENS, dtype="float64")
    errors = [position.largest / report.exact.scale for position in report.exact.by_position]
    start = min(window, first)
    assert max(errors[:start]) <= BOUND
    assert min(errors[start:]) >= MUTANT
    assert str(report.first) == "layer 0's attention"


def test_json_holds_the_whole_report(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    assert command(saved("gpt-oss-20b"), "--tokens", TOKENS, "--json", "--out", out) == 0
    assert capsys.readouterr().out == ""
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told["schema_version"] == 2
    assert told["passed"] is True
    assert told["first_divergent"] is None
    assert len(told["exact"]["by_position"]) == TOKENS
    for side in (told["exact_cached"], told["rounded"]["zoo"], told["rounded"]["cached"], told["rounded"]["reference"]):
        assert {"rms", "largest", "mean", "p999", "kl_mean", "kl_max", "top1", "top10"} <= side.keys()
    assert all(check["passed"] for check in told["checks"])
    assert {part["name"] for part in told["parts"]} == {"embedding", "attention", "feed-forward", "head"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_table_fits_eighty_columns(saved: Saved, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    assert command(saved("gpt-oss-20b"), "--tokens", TOKENS, "--dtype", dtype) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if str(saved("gpt-oss-20b")) not in line]
    assert max(map(len, lines)) <= 80
    assert "\nPASS: " in out
    assert lines[0].startswith("float64: largest difference ")


def test_text_where_there_is_a_tokenizer(saved: Saved, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -e '.[test]'")
    copy = write(tmp_path / "copy", *read(saved("llama3-8b")))
    with pytest.raises(NotAvailable, match=r"has no tokenizer\.json to read a text with"):
        weights.parity(copy, text="one two", tokens=8)
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 1, "two": 2, "?": 0}, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(copy / "tokenizer.json"))
    report = weights.parity(copy, text="one two", tokens=8)
    assert report.prompts == ("text", *(f"random ids, seed {seed}" for seed in range(3)))
    assert report.exact.tokens == 4 * 8
    assert report.passed


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["/no/such/folder"], 3, "there is no folder and no .gguf file '/no/such/folder'"),
        (["{folder}", "--dtype", "float16"], 2, "unknown dtype to compare in 'float16'"),
        (["{folder}", "--tokens", "1"], 2, "--tokens must be at least 2, so that one sees another, got 1"),
        (["{folder}", "--tokens", "2000"], 2, "--tokens must be at most the model's context of 1024, got 2000"),
        (["{folder}", "--text", "hello"], 3, "no tokenizer.json to read a text with"),
        (["{folder}", "--nonsense"], 2, "--nonsense"),
        (["{folder}", "--plot", "errors.jpg"], 2, "must be a file that ends in .png or .svg"),
        (["{folder}", "--plot", "nowhere/errors.png"], 3, "there is no folder"),
        ([], 2, "missing argument 'source'"),
    ],
)
def test_usage_errors_are_one_line(
    saved: Saved, capsys: pytest.CaptureFixture[str], args: list[str], code: int, said: str
) -> None:
    folder = saved("llama3-8b")
    capsys.readouterr()
    assert command(*(arg.format(folder=folder) for arg in args)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("llama3-8b", "smollm3-3b", "cannot be compared: layers"),
        ("qwen3-8b", "qwen3-30b-a3b", "layers with experts 0 and"),
    ],
)
def test_models_that_cannot_be_compared(saved: Saved, one: str, other: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        weights.parity(saved(one), reference=saved(other), tokens=8)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "glm5.2-744b"])
def test_other_choices_would_dominate_the_error_in_bfloat16(
    saved: Saved, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides use the experts and keys of float64, where bfloat16 would choose others."""
    forced = weights.parity(saved(name), dtype="bfloat16", tokens=TOKENS)
    monkeypatch.setattr(Selections, "replay", lambda self: self.indices.clear())
    free = weights.parity(saved(name), dtype="bfloat16", tokens=TOKENS)
    assert forced.rounded is not None
    assert free.rounded is not None
    for side in ("zoo", "cached", "reference"):
        assert getattr(free.rounded, side).rms > 2 * getattr(forced.rounded, side).rms


def smallest() -> list[str]:
    """The smallest released size of each family that fits a machine of 32 GB in float32, twice."""
    sizes = {module: min(module.SIZES.values(), key=lambda size: size.params) for module in families().values()}
    return [size.hub for size in sizes.values() if size.params < 4e9]


@pytest.mark.network
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hub", smallest())
def test_the_released_model(hub: str, dtype: str) -> None:
    report = weights.parity(hub, dtype=dtype)
    assert report.passed, str(report)


def test_the_figures_against_plain_arithmetic() -> None:
    """The logits are few enough to sort."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 5, 40, generator=generator, dtype=torch.float64)
    other = exact + 0.3 * torch.randn(2, 5, 40, generator=generator, dtype=torch.float64)
    told = compare(exact, other)
    a, b = exact.flatten(0, 1), other.flatten(0, 1)
    apart = (a - b).abs().flatten().sort().values
    assert told.tokens == 10
    assert told.scale == exact.abs().max()
    assert told.rms == pytest.approx(rms_error(other, exact))
    assert told.largest == pytest.approx(float(apart[-1]))
    assert told.relative == told.largest / told.scale
    assert told.mean == pytest.approx(float(apart.mean()))
    assert told.p999 == pytest.approx(float(apart[-1]))  # 400 numbers: the 400th is the first with 99.9% at or below
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert told.kl_mean == pytest.approx(float(kl.mean()))
    assert told.kl_max == pytest.approx(float(kl.max()))
    assert told.kl_median == pytest.approx(float(kl.sort().values[4]))
    assert told.median == pytest.approx(float((a - b).abs().mean(-1).sort().values[4]))
    assert told.top1 == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    shared = [
        len(set(x.topk(10).indices.tolist()) & set(y.topk(10).indices.tolist())) / 10 for x, y in zip(a, b, strict=True)
    ]
    assert told.top10 == pytest.approx(sum(shared) / 10)
    assert told.by_position[4].largest == pytest.approx(float((exact - other)[:, 4].abs().max()))


def test_a_percentile_over_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weights.reference.differences.CHUNK_ELEMENTS", 3000)
    one, two = torch.zeros(1, 8, 1000), torch.arange(8000.0).view(1, 8, 1000)
    told = compare(one, two)
    assert told.p999 == 7991  # 7992 of 8000 are at most that
    assert told.relative == told.largest == 7999


def test_dtypes_as_torch_has_them(saved: Saved) -> None:
    assert weights.parity(saved("llama3-8b"), dtype=torch.float32, tokens=8).dtype == "float32"
    assert weights.parity(saved("llama3-8b"), dtype=torch.float64, tokens=8).rounded is None
    with pytest.raises(UsageError):
        weights.parity(saved("llama3-8b"), dtype=torch.float16, tokens=8)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_plot_has_a_line_for_each_comparison(saved: Saved, tmp_path: Path, dtype: str) -> None:
    """The lines are read from the SVG, in which text is text and curves have a point for each position."""
    import matplotlib

    report = weights.parity(saved("gemma3-270m"), tokens=40, dtype=dtype)
    file = tmp_path / "errors.svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "path.simplify": False}):
        write_plot(report, file)
    drawn = file.read_text(encoding="utf-8")
    expected = ["zoo, float64", "zoo through a cache, float64", "window of 16", "bound in float64"]
    if dtype != "float64":
        expected += [f"zoo, {dtype}", f"zoo through a cache, {dtype}", f"reference, {dtype}"]
    assert all(f">{label}<" in drawn for label in expected)
    points = [len(re.findall("[ML] ", path)) for path in re.findall(r'<path d="([^"]*)"', drawn)]
    nonzero = [sum(position.largest > 0 for position in side.difference.by_position) for side in report.sides]
    assert max(points) == max(nonzero) > 30
    assert list(tmp_path.iterdir()) == [file]


def test_a_plot_from_the_command_line(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "errors.png"
    assert command(saved("llama3-8b"), "--tokens", 8, "--plot", file) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "PASS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "extra", "args"), [("transformers", "parity", []), ("matplotlib", "plot", ["--plot", "errors.png"])]
)
def test_without_a_package(
    saved: Saved,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
    args: list[str],
) -> None:
    folder = saved("llama3-8b")
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, package, None)
    assert command(folder, *args) == 3
    assert capsys.readouterr().err == (
        f"error: this needs the package {package}; in the zoo's folder: pip install -e '.[{extra}]'\n"
    )
