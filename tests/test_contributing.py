"""CONTRIBUTING.md, followed to the letter in a copy of the project: one new file, and it is everywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("zoo", "weights", "benchmarks", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the files that CONTRIBUTING.md shows, and no other change."""
    folder = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    shown = re.findall(
        r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert [path for path, _ in shown] == ["zoo/architectures/mixtral.py", "zoo/blocks/mlp.py"]
    for path, text in shown:
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def run(copy: Path, *args: str) -> str:
    """What a command prints when run in the copy."""
    environment = os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=copy, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_architecture_is_on_the_command_line(copy: Path) -> None:
    card = run(copy, "zoo.build", "mixtral", "--tiny")
    assert "MoE 8 x" in card


def test_the_architecture_is_in_the_table_of_blocks(copy: Path) -> None:
    assert "mixtral" in run(copy, "zoo.build", "--list")


def test_the_architecture_is_in_the_table_of_costs(copy: Path) -> None:
    assert "mixtral-8x7b" in run(copy, "benchmarks", "--static")


def test_the_architecture_is_on_the_page(copy: Path) -> None:
    run(copy, "benchmarks", "gallery", "mixtral", "--out", "gallery")
    page = (copy / "gallery" / "index.html").read_text(encoding="utf-8")
    assert '<template data-diagram="mixtral-8x7b">' in page
    assert '"title":"Mixtral"' in page


def test_the_architecture_is_in_the_tests(copy: Path) -> None:
    collected = run(copy, "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests", "-k", "mixtral")
    files = {line.partition("::")[0] for line in collected.splitlines() if "mixtral-8x7b" in line}
    assert {"tests/test_parity.py", "tests/zoo/test_cache.py", "tests/zoo/test_catalog.py"} <= files


def test_the_block_can_be_swapped_in(copy: Path) -> None:
    card = run(copy, "zoo.build", "qwen3", "--tiny", "--swap", "ffn=MLP(hidden=256)")
    assert "squared ReLU 256" in card
    assert "MLP" in run(copy, "zoo.build", "--list")


def test_the_architecture_equals_its_reference(copy: Path) -> None:
    """With its published config added to the facts, the parity tests of the copy hold for it."""
    script = copy / "add_facts.py"
    script.write_text(FACTS, encoding="utf-8")
    run(copy, "add_facts")
    ran = run(copy, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_parity.py", "-k", "mixtral")
    assert re.search(r"[7-9] passed", ran)


FACTS = """
import json
from pathlib import Path

path = Path("tests/data/published.json")
facts = json.loads(path.read_text())
config = dict(
    architectures=["MixtralForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=2, hidden_act="silu",
    hidden_size=4096, initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768,
    model_type="mixtral", num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32, num_key_value_heads=8,
    num_local_experts=8, output_router_logits=False, rms_norm_eps=1e-05, rope_theta=1000000.0,
    router_aux_loss_coef=0.02, sliding_window=None, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True,
    vocab_size=32000,
)
facts["mixtral-8x7b"] = {"repo_id": "mistralai/Mixtral-8x7B-v0.1", "config": config, "total_parameters": 46702792704}
path.write_text(json.dumps(facts))
"""
