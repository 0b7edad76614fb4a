"""python -m zoo.build NAME --svg FILE."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.zoo.diagram.drawing import SVG, texts
from zoo import names, spec
from zoo.catalog import counterpart, sizes, title
from zoo.cli.runner import exit_code
from zoo.diagram import callouts, svg
from zoo.diagram.palette import PALETTE
from zoo.swaps.differences import structure_differences

APP = runpy.run_module("zoo.build")["app"]


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    assert exit_code(APP, "python -m zoo.build", args) == code
    out, err = capsys.readouterr()
    return out, err


def test_drawing_imports_no_command_line_package() -> None:
    """In a fresh process: `zoo` and `zoo.diagram` load neither typer nor tabulate, also while a diagram is drawn."""
    draw = "import sys, zoo.diagram; zoo.diagram.svg(zoo.spec('gpt-oss'), 'a title')"
    script = f"{draw}; print({{'typer', 'tabulate', 'vl_convert'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_command_writes_a_file(capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    assert run(capsys, "gemma3", "--svg", str(file)) == ("", "")
    about = callouts(structure_differences(spec("gemma3"), spec(known := counterpart("gemma3-270m"))), spec("gemma3"))
    heading, hub = f"New compared with {title(known)}", "google/gemma-3-270m"
    drawing = svg(spec("gemma3"), "Gemma 3 270M", theme="light", subtitle=hub, callouts=about, heading=heading)
    assert file.read_text(encoding="utf-8") == drawing + "\n"
    assert run(capsys, "gemma3", "--svg", "-") == (file.read_text(encoding="utf-8"), "")
    pytest.importorskip("vl_convert")
    file = tmp_path / "a.png"
    assert run(capsys, "qwen3", "--svg", str(file), "--theme", "dark") == ("", "")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_command_draws_a_theme_and_costs(capsys) -> None:
    plain, _ = run(capsys, "qwen3", "--svg", "-")
    dark, _ = run(capsys, "qwen3", "--svg", "-", "--theme", "dark", "--costs")
    for text, scheme in ((plain, 0), (dark, 1)):
        assert ElementTree.fromstring(text).find(f"{SVG}rect").get("fill") == PALETTE["paper"][scheme]
    assert not any("of FLOPs" in text for text in texts(ElementTree.fromstring(plain)))
    assert any("of FLOPs" in text for text in texts(ElementTree.fromstring(dark)))


def test_the_command_draws_swapped_and_tiny_models(capsys) -> None:
    out, err = run(capsys, "gpt-oss", "--tiny", "--swap", "GQA(sinks=false)", "--swap", "attn=MQA", "--svg", "-")
    root = ElementTree.fromstring(out)
    assert root.find(f"{SVG}title").text == "gpt-oss 20B at toy widths with GQA(sinks=false), attn=MQA"
    heads = next(text for text in root.iter(f"{SVG}text") if text.text == "4 heads on one KV head")
    assert heads.get("fill") == PALETTE["differs"][0]
    assert "sinks" not in texts(root)
    assert {"Swapped", "No sinks", "MQA instead of GQA"} <= {*texts(root)}
    assert err == ""
    _, err = run(
        capsys, "gpt-oss", "--swap", "attn=MLA(q_rank=none, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8)", "--svg", "-"
    )
    assert err == "dropped: window 128, biases, sinks\n"


HEADINGS = {
    ("gpt2",): "",  # the first
    ("gpt2", "--swap", "norm=RMSNorm"): "Swapped",
    ("qwen3", "--swap", "GQA(head_dim=64)"): "Swapped: only sizes",
    ("olmo2-32b",): "New compared with Llama 3",
    ("olmo2-32b", "--tiny"): "",
}


@pytest.mark.parametrize(("args", "heading"), HEADINGS.items())
def test_the_figure_says_what_is_new(capsys, args: tuple[str, ...], heading: str) -> None:
    out, _ = run(capsys, *args, "--svg", "-")
    found = [text for text in texts(ElementTree.fromstring(out)) if text.startswith(("New compared", "Swapped"))]
    assert len(found) == bool(heading)
    assert all(text.startswith(heading) for text in found)
    assert all((":" in text) == (":" in heading) for text in found)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--svg", "/proc/no/such/folder/a.svg"], 3, "error: /proc/no/such/folder/a.svg cannot be written: "),
        (["--svg", "a.gif"], 2, "a.gif must end in .svg, .png or .pdf"),
        (["--svg", "-", "--json"], 2, "leave --json and --device out"),
        (["--svg", "-", "--device", "cpu"], 2, "leave --json and --device out"),
        (["--svg", "-", "--swap", "GQA(kv_heads=3)"], 2, "kv_heads=3 must divide heads"),
        (["--svg", "-", "--theme", "auto"], 2, "--theme"),
        (["--theme", "dark"], 2, "--theme and --costs change a diagram"),
        (["--costs"], 2, "--theme and --costs change a diagram"),
        (["--svg"], 2, "--svg"),
    ],
)
def test_a_wrong_call_is_a_one_line_error(capsys, args: list[str], code: int, says: str) -> None:
    out, err = run(capsys, "qwen3", *args, code=code)
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_titles_are_spelled_as_published() -> None:
    """A title has the letters and digits of its preset's name, spelled as its family or its hub id spells them."""
    for name in names():
        shown = "".join(filter(str.isalnum, title(name).lower()))
        assert shown == "".join(filter(str.isalnum, name))
    assert title("deepseek-v3-671b") == "DeepSeek-V3 671B"
    assert title("llama3.1-8b") == "Llama 3.1 8B"
    assert title("qwen3-30b-a3b") == "Qwen3 30B A3B"
    assert title("mixtral-8x7b") == "Mixtral 8x7B"
    assert title("gpt2-xl") == "GPT-2 XL"
    assert sizes()["gpt2-xl"].hub == "openai-community/gpt2-xl"
