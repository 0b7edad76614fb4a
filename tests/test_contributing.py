"""CONTRIBUTING.md, followed to the letter in a copy of the project: its architecture passes every test that is chosen
by its name, and its block, with a second file that nobody has seen, goes through every command and kind of run."""

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

from tests.benchmarks.gallery.samples import packed
from tests.models import has_compiler

ROOT = Path(__file__).parent.parent
UNFINISHED = shutil.ignore_patterns("*.pyc.*")  # bytecode that another process is writing
PARTS = ("zoo", "weights", "benchmarks", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the files that CONTRIBUTING.md shows and the facts that it asks for, and no other change."""
    folder = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=UNFINISHED)
        else:
            shutil.copy(ROOT / part, folder / part)
    shown = re.findall(
        r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert [path for path, _ in shown] == ["zoo/architectures/olmoe.py", "zoo/blocks/min_gru.py"]
    for path, text in shown:
        (folder / path).write_text(text, encoding="utf-8")
    (folder / "tests/data/published/olmoe.json").write_text(json.dumps(FACTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def hybrid(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy with a second file of unknown blocks, an architecture made of all of them, and everything that a test
    requires for a block."""
    folder = tmp_path_factory.mktemp("hybrid") / "copy"
    shutil.copytree(copy, folder, ignore=UNFINISHED)
    (folder / "zoo" / "blocks" / "cosine_experts.py").write_text(COSINE_EXPERTS, encoding="utf-8")
    (folder / "zoo" / "architectures" / "hybrid.py").write_text(HYBRID, encoding="utf-8")
    listed, told = folder / "benchmarks/measure/blocks.py", folder / "docs/blocks.md"
    text = listed.read_text(encoding="utf-8")
    entries = {
        '        "SwiGLU": dense,\n': '        "bilinear": Bilinear(4 * dim),\n'
        '        "MoE, cosine": MoE(EXPERTS, Bilinear(dim), CosineTopK(k=ACTIVE_EXPERTS)),\n',
        '        "short convolution": ShortConv(dim, CONV),\n': '        "minGRU": MinGRU(hidden=dim),\n',
        "from zoo.blocks.layer import": "from zoo.blocks.cosine_experts import Bilinear, CosineTopK\n"
        "from zoo.blocks.min_gru import MinGRU\n",
    }
    for line, entry in entries.items():
        assert line in text
        text = text.replace(line, entry + line)
    listed.write_text(text, encoding="utf-8")
    words = "`MinGRU` keeps an average. `Bilinear` has no activation, `CosineTopK` routes by angles."
    told.write_text(told.read_text(encoding="utf-8") + f"\n{words}\n", encoding="utf-8")
    return folder


def run(copy: Path, *args: str, code: int = 0) -> str:
    """Returns the output of a command that runs in the copy."""
    environment = os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", *args]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, encoding="utf-8", timeout=580)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


def passed_in(copy: Path, *args: str) -> dict[str, int]:
    """Returns {test file: number of its tests that ran in the copy}. All of them passed."""
    ran = run(copy, "pytest", "-v", "-p", "no:cacheprovider", *args)
    return Counter(line.partition("::")[0] for line in ran.splitlines() if " PASSED" in line)


def each(copy: Path, commands: list[tuple[tuple[str, ...], str]]) -> None:
    """Runs commands in the copy, all in one process. Each must succeed and print its word."""
    (copy / "commands.py").write_text(EACH, encoding="utf-8")
    (copy / "commands.json").write_text(json.dumps([args for args, _ in commands]), encoding="utf-8")
    printed = run(copy, "commands").split("\f\n")[1:]
    for (args, word), text in zip(commands, printed, strict=True):
        assert text.startswith("0\n"), f"{' '.join(args)}: {text}"
        assert word in text, f"{' '.join(args)}: {text}"


FILES = ["test_parity", "zoo/core/test_cache", "zoo/test_catalog", "zoo/architectures/test_published"]
FILES = [f"tests/{name}.py" for name in [*FILES, "weights/reference/test_report", "benchmarks/analytic/test_params"]]


@pytest.mark.slow
def test_the_architecture_passes_the_tests_that_are_chosen_by_its_name(copy: Path) -> None:
    """The tests are those of `make test ARGS='-k olmoe'`. With the published config among the facts, all pass."""
    ran = passed_in(copy, "tests", "-k", "olmoe")
    assert sum(ran.values()) >= 130
    assert ran["tests/test_parity.py"] >= 2  # logits against the reference, and of mutants
    assert set(FILES) <= ran.keys()


SWAP = ("--swap", "attn=MinGRU(hidden=256)")
EXPERTS = ("--swap", "ffn=MoE(experts=4, expert=Bilinear(hidden=32), router=CosineTopK(k=2))")
COMMANDS = [  # every command that draws, counts or runs a model: what it is told, and a word that it then prints
    (("zoo.build", "olmoe", "--tiny"), "MoE 8 x"),
    (("zoo.build", "--list"), "olmoe"),
    (("zoo.build", "--list"), "MinGRU"),
    (("zoo.build", "hybrid", "--tiny"), "minGRU of 96"),
    (("zoo.build", "hybrid", "--svg", "-"), "minGRU of 2,048"),
    (("zoo.build", "hybrid", "--tiny", "--swap", "ffn=GLU(hidden=96)"), "SwiGLU, width 96"),
    (("zoo.build", "hybrid", "--params", "2M"), "minGRU"),
    (("zoo.build", "qwen3", "--svg", "-", *SWAP), "minGRU of 256"),
    (("zoo.build", "qwen3", "--tiny", *EXPERTS), "cosine top-2"),
    (("zoo.build", "qwen3-30b-a3b", "--tiny", *SWAP), "minGRU of 256"),
    (("benchmarks", "--static"), "olmoe-1b-7b"),
    (("benchmarks", "costs", "--static", "hybrid"), "hybrid-1b"),
    (("benchmarks", "all", "hybrid", *SWAP), "hybrid-1b*"),
    *((("benchmarks", verb, "hybrid", "qwen3-0.6b", *SWAP), "qwen3-0.6b*") for verb in ("params", "kv", "flops")),
    (("benchmarks", "compare", "hybrid", "qwen3-0.6b"), "MinGRU"),
    (("benchmarks", "compare", "deepseek-v3-671b", *SWAP), "MinGRU"),
    (("benchmarks", "throughput", "hybrid", "--tiny", "-r", "1", "-p", "8", "-n", "2", "-d", "8"), "hybrid"),
    (("benchmarks", "blocks", "--dim", "256", "--tokens", "16", "--context", "64", "-r", "1"), "bilinear"),
    (("benchmarks", "gallery", "hybrid", "qwen3-0.6b", "olmoe", "--out", "gallery"), "index.html"),
]


def test_the_architecture_and_the_blocks_go_through_every_command(hybrid: Path) -> None:
    """The blocks swapped in, swapped out, and as all blocks of an architecture, in one process."""
    pytest.importorskip("altair", reason="pip install -e '.[test]'")  # for the gallery
    each(hybrid, COMMANDS)
    page = (hybrid / "gallery" / "index.html").read_text(encoding="utf-8")
    assert {"hybrid-1b", "olmoe-1b-7b"} <= packed(page)["diagrams"].keys()
    assert "OLMoE" in [family["title"] for family in packed(page)["data"]["families"]]
    assert "minGRU of 2048" in page


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_the_blocks_compile_are_fed_in_chunks_rewound_and_differentiated(hybrid: Path) -> None:
    """Saving a model of these blocks as a published one is an error that names them."""
    (hybrid / "runs.py").write_text(RUNS, encoding="utf-8")
    assert run(hybrid, "runs").split() == ["chunks", "compiled", "rewound", "gradients", "recomputed", "refused"]


def test_the_architecture_passes_tests_and_the_blocks_are_listed_told_of_and_built(hybrid: Path) -> None:
    """These are some of the tests selected by the architecture's name, those that detect a missing entry for a block,
    and those of a block's formulas in random models."""
    notice = ["test_no_kind_of_block_is_forgotten", "test_text_mentions_every_kind_of_block"]
    build = ["test_formulas_are_the_built_modules", "test_every_field_of_every_block"]
    files = ["test_mutants", "test_properties", "benchmarks/measure/test_block_timings"]
    files = [f"tests/{name}.py" for name in [*files, "benchmarks/gallery/test_gallery_blocks"]]
    ran = passed_in(hybrid, *FILES, *files, "-k", " or ".join(["olmoe", *notice, *build]))
    assert ran.keys() == {*FILES, *files}
    assert ran["tests/test_parity.py"] >= 2  # logits against the reference, and of mutants


@pytest.mark.slow
def test_the_blocks_pass_all_tests_over_the_registry(hybrid: Path) -> None:
    """Tests of random models, drawings, tables, plans and the gallery's swaps."""
    files = ["cli/test_listing", "test_registry", "model/test_layer_pattern", "swaps/test_rebuild"]
    files = [f"tests/zoo/{name}.py" for name in files]
    files += ["tests/test_properties.py", "tests/benchmarks/gallery/test_gallery_swaps.py"]
    assert passed_in(hybrid, *files).keys() == set(files)


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

# Runs a hybrid of the new blocks as people do.
RUNS = r"""
from pathlib import Path
from tempfile import mkdtemp

import torch

import weights
import zoo
from tests.exact import assert_equal
from tests.models import randomised, tokens_of
from zoo.errors import ZooError

STEP = 1e-5
spec = zoo.spec("hybrid", tiny=True)
model, tokens = randomised(spec), tokens_of(spec, 2, 50)


def fed(model, sizes):
    cache = model.new_cache(2, 50)
    return torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)


with torch.no_grad():
    expected = model(tokens)
    for sizes in ([50], [7] * 7 + [1], [1] * 50):
        assert_equal(fed(model, sizes), expected)
    print("chunks")
    model.compile()
    for sizes in ([20, 30], [13] * 3 + [1] * 11):
        assert_equal(fed(model, sizes), expected)
    print("compiled")
    cache = model.new_cache(2, 50)
    model(tokens[:, :20], cache)
    before = cache.snapshot()
    first = model(tokens[:, 20:], cache)
    for _ in range(2):
        cache.restore(before)
        assert torch.equal(model(tokens[:, 20:], cache), first)
    print("rewound")

loss = lambda model: model(tokens).square().mean()
eager = randomised(spec)
wanted = torch.autograd.grad(loss(eager), [weight for weight in eager.parameters() if weight.requires_grad])
assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in wanted)
direction = [grad.sign() * torch.rand_like(grad) for grad in wanted]
slope = sum((grad * step).sum() for grad, step in zip(wanted, direction)).item()
differences = []
for sign in (1, -1):
    moved = randomised(spec)
    with torch.no_grad():
        for weight, step in zip([w for w in moved.parameters() if w.requires_grad], direction):
            weight += sign * STEP * step
        differences.append(loss(moved).item())
quotient = (differences[0] - differences[1]) / (2 * STEP)
assert abs(quotient - slope) <= STEP * abs(slope)  # it is off by the square of the step
print("gradients")
eager.activation_checkpointing = True
again = torch.autograd.grad(loss(eager), [weight for weight in eager.parameters() if weight.requires_grad])
assert all(torch.equal(one, other) for one, other in zip(wanted, again))
print("recomputed")
try:
    weights.save(model, Path(mkdtemp()) / "saved")
except ZooError as error:
    assert "MinGRU" in str(error) or "CosineTopK" in str(error), error
    print("refused")
"""

COSINE_EXPERTS = '''
"""A feed-forward without an activation, and a router that compares directions."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.feed_forward import LinearFeedForward
from zoo.blocks.routers import LinearRouter, Router
from zoo.core.float32 import upcast
from zoo.core.ops.experts import Apply


@dataclass(frozen=True)
class Bilinear(LinearFeedForward):
    """down(gate(x) * up(x)), of hidden width `hidden` (Shazeer 2020)."""

    hidden: int
    bias: bool = False

    def linears(self, dim: int) -> tuple[tuple[str, int, int], ...]:
        return ("gate", dim, self.hidden), ("up", dim, self.hidden), ("down", self.hidden, dim)

    def combine(self, apply: Apply, x: Tensor) -> Tensor:
        return apply("down", apply("gate", x) * apply("up", x))

    def describe(self) -> str:
        return f"bilinear, width {self.hidden}"


@dataclass(frozen=True)
class CosineTopK(Router):
    """The k experts whose direction is nearest to x, weighted by a softmax of the cosines (Chi et al. 2022)."""

    k: int

    def build(self, dim: int, experts: int) -> nn.Module:
        return _CosineTopK(self, dim, experts)

    def weigh(self, top: Tensor) -> Tensor:
        return top.softmax(-1)

    def describe(self) -> str:
        return f"cosine top-{self.k} router"


class _CosineTopK(LinearRouter):
    def logits(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(upcast(x), dim=-1), F.normalize(upcast(self.weight), dim=-1))
'''

HYBRID = '''
"""A hybrid. New here: a gated average in three of four layers, and experts chosen by cosines in every second one."""

from zoo.blocks import GQA, Layer, MoE, NoPE, RMSNorm, pre
from zoo.blocks.cosine_experts import Bilinear, CosineTopK
from zoo.blocks.min_gru import MinGRU
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import dense_fields
from zoo.model.decoder import Decoder


def decoder(*, layers, heads, kv_heads, head_dim, hidden, eps=1e-5, **rest):
    norm = RMSNorm(eps)
    mixers = MinGRU(hidden=2048), GQA(heads, kv_heads, head_dim, rope=NoPE())
    ffns = Bilinear(hidden), MoE(8, Bilinear(hidden), CosineTopK(2), shared=Bilinear(2 * hidden))
    plan = [Layer(pre(norm, mixers[i % 4 == 3]), pre(norm, ffns[i % 2])) for i in range(layers)]
    return Decoder(layers=tuple(plan), norm=norm, **rest)


@reads("hybrid", expected=dict(hidden_act="bilinear"), rms_norm_eps=1e-5, tie_word_embeddings=False)
def from_hf(config: Config) -> Decoder:
    widths = config.integers(hidden="intermediate_size", kv_heads="num_key_value_heads", head_dim="head_dim")
    return decoder(**config.common(), **widths)


def to_hf(spec):
    return {"intermediate_size": 1} | dense_fields(spec)


ABOUT = About("Hybrid", "a test", compared_with="llama3", licence="none", report="https://example.org")
_1B = dict(dim=2048, layers=16, heads=32, kv_heads=8, head_dim=64, hidden=2048, vocab=32_000, context=4096)
SIZES = {"hybrid-1b": Size("example/hybrid-1b", decoder(**_1B).params(), decoder(**_1B), released="2026-11")}
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
