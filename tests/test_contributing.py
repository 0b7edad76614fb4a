"""CONTRIBUTING.md, followed to the letter in a copy of the project: its architecture passes every test that is chosen
by its name, and its block goes through every command, swapped in and as an architecture's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("zoo", "weights", "benchmarks", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the files that CONTRIBUTING.md shows and the facts that it asks for, and no other change."""
    folder = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    shown = re.findall(
        r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert [path for path, _ in shown] == ["zoo/architectures/olmoe.py", "zoo/blocks/mlp.py"]
    for path, text in shown:
        (folder / path).write_text(text, encoding="utf-8")
    (folder / "tests/data/published/olmoe.json").write_text(json.dumps(FACTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def primer(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy with an architecture that is made of the new block, and what a test asks for with a block."""
    folder = tmp_path_factory.mktemp("primer") / "copy"
    shutil.copytree(copy, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "zoo" / "architectures" / "primer.py").write_text(PRIMER, encoding="utf-8")
    listed, told = folder / "benchmarks/measure/blocks.py", folder / "benchmarks/gallery/static/blocks.md"
    text = listed.read_text(encoding="utf-8")
    entry = '        "SwiGLU": dense,\n'
    assert entry in text
    text = text.replace(entry, f'{entry}        "squared ReLU": MLP(4 * dim),\n')
    first = "from zoo.blocks.moe import"
    listed.write_text(text.replace(first, f"from zoo.blocks.mlp import MLP\n{first}"), encoding="utf-8")
    told.write_text(told.read_text(encoding="utf-8") + "\n`MLP` has no gate.\n", encoding="utf-8")
    return folder


def run(copy: Path, *args: str, code: int = 0) -> str:
    """What a command prints when run in the copy."""
    environment = os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", *args]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, encoding="utf-8", timeout=280)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


def passed_in(copy: Path, *args: str) -> dict[str, int]:
    """Test file -> how many of its tests were run in the copy. All of them passed."""
    ran = run(copy, "pytest", "-v", "-p", "no:cacheprovider", *args)
    return Counter(line.partition("::")[0] for line in ran.splitlines() if " PASSED" in line)


def test_the_architecture_is_on_the_command_line(copy: Path) -> None:
    card = run(copy, "zoo.build", "olmoe", "--tiny")
    assert "MoE 8 x" in card


def test_the_architecture_is_in_the_table_of_blocks(copy: Path) -> None:
    assert "olmoe" in run(copy, "zoo.build", "--list")


def test_the_architecture_is_in_the_table_of_costs(copy: Path) -> None:
    assert "olmoe-1b-7b" in run(copy, "benchmarks", "--static")


def test_the_architecture_is_on_the_page(copy: Path) -> None:
    run(copy, "benchmarks", "gallery", "olmoe", "--out", "gallery")
    page = (copy / "gallery" / "index.html").read_text(encoding="utf-8")
    assert '<template data-diagram="olmoe-1b-7b">' in page
    assert '"title":"OLMoE"' in page


def test_the_architecture_passes_all_tests_that_are_chosen_by_its_name(copy: Path) -> None:
    """As `make test ARGS='-k olmoe'` chooses them: with its published config among the facts, every one passes."""
    ran = passed_in(copy, "tests", "-k", "olmoe")
    assert sum(ran.values()) >= 170
    assert ran["tests/test_parity.py"] >= 8  # logits against the reference, in chunks, in bfloat16, of mutants
    assert {
        "tests/zoo/core/test_cache.py",
        "tests/zoo/test_catalog.py",
        "tests/zoo/architectures/test_published.py",
        "tests/weights/reference/test_streaming.py",
        "tests/benchmarks/analytic/test_params.py",
    } <= ran.keys()


def test_the_block_can_be_swapped_in(copy: Path) -> None:
    card = run(copy, "zoo.build", "qwen3", "--tiny", "--swap", "ffn=MLP(hidden=256)")
    assert "squared ReLU 256" in card
    assert "MLP" in run(copy, "zoo.build", "--list")


SWAP = ("--swap", "ffn=MLP(hidden=256)")
COMMANDS = [  # every command that draws, counts or runs a model: what it is told, and a word that it then prints
    (("zoo.build", "primer", "--tiny"), "squared ReLU 96"),
    (("zoo.build", "primer", "--svg", "-"), "squared ReLU 8192"),
    (("zoo.build", "primer", "--tiny", "--swap", "ffn=GLU"), "SwiGLU, width 96"),
    (("zoo.build", "primer", "--swap", "ffn=MoE(experts=4, k=2, expert=GLU(hidden=64))"), "MoE 4 x"),
    (("zoo.build", "qwen3", "--svg", "-", *SWAP), "squared ReLU 256"),
    (("zoo.build", "qwen3-30b-a3b", "--tiny", *SWAP), "squared ReLU 256"),
    (("benchmarks", "costs", "--static", "primer"), "primer-1b"),
    (("benchmarks", "all", "primer", *SWAP), "primer-1b*"),
    *((("benchmarks", verb, "primer", "qwen3-0.6b", *SWAP), "qwen3-0.6b*") for verb in ("params", "kv", "flops")),
    (("benchmarks", "compare", "primer", "qwen3-0.6b"), "MLP"),
    (("benchmarks", "compare", "deepseek-v3-671b", *SWAP), "MLP"),
    (("benchmarks", "throughput", "primer", "--tiny", "-r", "1", "-p", "8", "-n", "2"), "primer"),
    (("benchmarks", "blocks", "--dim", "256", "--tokens", "16", "--context", "64", "-r", "1"), "squared ReLU"),
    (("benchmarks", "gallery", "primer", "qwen3-0.6b", "olmoe", "--out", "gallery"), "index.html"),
]


def test_the_block_goes_through_every_command(primer: Path) -> None:
    """Swapped in, swapped out, and as the only feed-forward block of an architecture, in one process."""
    (primer / "commands.py").write_text(EACH, encoding="utf-8")
    (primer / "commands.json").write_text(json.dumps([args for args, _ in COMMANDS]), encoding="utf-8")
    printed = run(primer, "commands").split("\f\n")[1:]
    assert len(printed) == len(COMMANDS)
    for (args, word), text in zip(COMMANDS, printed, strict=True):
        assert text.startswith("0\n"), f"{' '.join(args)}: {text}"
        assert word in text, f"{' '.join(args)}: {text}"
    page = (primer / "gallery" / "index.html").read_text(encoding="utf-8")
    assert '<template data-diagram="primer-1b">' in page
    assert "squared ReLU 8192" in page


@pytest.mark.parametrize(
    ("swap", "says"),
    [
        ("ffn=MoE(experts=4, k=2, expert=MLP(hidden=32))", "MoE: expert must be GLU, not MLP"),
        ("ffn=MoE(experts=4, k=2)", "MoE needs expert: MoE(expert=GLU(...))"),
    ],
)
def test_what_a_mixture_cannot_be_made_of_is_said(primer: Path, swap: str, says: str) -> None:
    told = run(primer, "zoo.build", "primer", "--tiny", "--swap", swap, code=2)
    assert told.startswith("error: ")
    assert says in told
    assert len(told.splitlines()) == 1


def test_the_block_is_listed_told_of_and_composed(primer: Path) -> None:
    """The tests that notice a block without a line, and those that draw random models from the registry."""
    notice = ["test_no_kind_of_block_is_forgotten", "test_text_mentions_every_kind_of_block"]
    compose = ["test_every_block_is_composed", "test_formulas_are_the_built_modules", "test_every_field_of_every_block"]
    ran = passed_in(primer, "tests", "-k", " or ".join([*notice, *compose]))
    assert ran.keys() == {
        "tests/test_mutants.py",
        "tests/test_properties.py",
        "tests/benchmarks/measure/test_block_timings.py",
        "tests/benchmarks/gallery/test_gallery_blocks.py",
    }


@pytest.mark.slow
def test_the_block_passes_all_tests_over_the_registry(primer: Path) -> None:
    """Of random models, of drawings, tables and plans, and of the gallery's swaps."""
    files = ["cli/test_listing", "test_registry", "model/test_layer_pattern", "swaps/test_rebuild"]
    files = [f"tests/zoo/{name}.py" for name in files]
    files += ["tests/test_properties.py", "tests/benchmarks/gallery/test_gallery_swaps.py"]
    assert passed_in(primer, *files).keys() == set(files)


# Runs the commands in commands.json: of each a form feed, the code that it ends with, and what it prints.
EACH = r"""
import json
import runpy
from contextlib import redirect_stdout
from io import StringIO

from zoo.cli.runner import exit_code

for module, *args in json.load(open("commands.json", encoding="utf-8")):
    app = runpy.run_module(f"{module}.__main__" if module == "benchmarks" else module)["app"]
    with redirect_stdout(StringIO()) as said:
        code = exit_code(app, f"python -m {module}", args)
    print("\f", code, said.getvalue(), sep="\n")
"""

PRIMER = '''
"""Primer (So et al. 2021). New here: a feed-forward block without a gate, and no position encoding."""

from zoo.blocks import GQA, Layer, NoPE, RMSNorm, pre
from zoo.blocks.mlp import MLP
from zoo.hf.config import Config, Size, reads
from zoo.hf.write_config import dense_fields, fields_of
from zoo.model.decoder import Decoder


def decoder(*, layers, heads, kv_heads, head_dim, hidden, eps=1e-5, **rest):
    norm = RMSNorm(eps)
    layer = Layer(pre(norm, GQA(heads, kv_heads, head_dim, rope=NoPE())), pre(norm, MLP(hidden)))
    return Decoder(layers=(layer,) * layers, norm=norm, **rest)


@reads("primer", head_dim=None, rms_norm_eps=1e-5, tie_word_embeddings=False)
def from_hf(config: Config) -> Decoder:
    config.expect(hidden_act="relu2")
    return decoder(**config.dense(), head_dim=config.head_dim())


def to_hf(spec):
    width = fields_of(spec, MLP, hidden="intermediate_size")
    return {"model_type": "primer", "hidden_act": "relu2"} | dense_fields(spec) | width


_1B = dict(dim=2048, layers=16, heads=32, kv_heads=8, head_dim=64, hidden=8192, vocab=32_000, context=4096)
SIZES = {"primer-1b": Size("example/primer-1b", decoder(**_1B).params(), decoder(**_1B), released="2021-09")}
'''

CONFIG = dict(
    architectures=["OlmoeForCausalLM"],
    attention_bias=False,
    attention_dropout=0.0,
    clip_qkv=None,
    eos_token_id=50279,
    hidden_act="silu",
    hidden_size=2048,
    initializer_range=0.02,
    intermediate_size=1024,
    max_position_embeddings=4096,
    model_type="olmoe",
    norm_topk_prob=False,
    num_attention_heads=16,
    num_experts=64,
    num_experts_per_tok=8,
    num_hidden_layers=16,
    num_key_value_heads=16,
    output_router_logits=False,
    pad_token_id=1,
    rope_scaling=None,
    rope_theta=10000.0,
    router_aux_loss_coef=0.01,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
    use_cache=True,
    vocab_size=50304,
)
FACTS = {"olmoe-1b-7b": {"repo_id": "allenai/OLMoE-1B-7B-0924", "config": CONFIG, "total_parameters": 6919161856}}
