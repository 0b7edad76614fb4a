"""The insides of blocks: heads, experts, and the order of computation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

import zoo
from tests.presets import over, representatives
from tests.unseen import Unseen
from tests.zoo.diagram.drawing import BASE, LAYOUTS, drawn, misplaced, small_boxes, texts
from zoo import GLU, GQA, MoE, names, spec
from zoo.blocks import MLA, DenseAndMoE, SparseMLA
from zoo.costs import CacheSpec, State
from zoo.diagram.canvas import Canvas, typeset
from zoo.diagram.insides import inside
from zoo.diagram.region import MAX_HEADS, Region
from zoo.registry import Block, Mixer, stated


def blown_up(block: Block, dim: int = 1024) -> Canvas:
    """The inside of one block."""
    canvas = Canvas(400, "", "")
    canvas.height = inside(block, Region(canvas, 0, 0, 380, dim, "block"))
    return canvas


def blocks(name: str, role: str) -> list[Block]:
    """The distinct blocks of a model."""
    found = [branch.block for branch in dict.fromkeys(getattr(layer, role) for layer in spec(name).layers) if branch]
    pairs = ((each.dense, each.routed) if isinstance(each, DenseAndMoE) else (each,) for each in found)
    return [each for pair in pairs for each in pair]


def order(canvas: Canvas, *starts: str) -> list[float]:
    """The y of the first text that begins with each of some words."""
    lines = [(text.text or "", float(text.get("y", 0))) for text in canvas.root.iter("text")]
    return [next(y for text, y in lines if text.startswith(start)) for start in starts]


@over(names(), representatives())
def test_heads_and_experts_are_drawn_one_by_one(name: str) -> None:
    for block in blocks(name, "attn"):
        if isinstance(block, GQA) and block.heads <= MAX_HEADS:
            root = namespaced(blown_up(block))
            assert len(small_boxes(root, "queries")) == block.heads
            assert len(small_boxes(root, "keys")) == 2 * block.kv_heads
    for block in blocks(name, "ffn"):
        if isinstance(block, MoE):
            root = namespaced(blown_up(block))
            assert len(small_boxes(root, "chosen")) == block.router.k + (block.shared is not None)
            assert len(small_boxes(root, "experts")) == block.experts  # the chosen ones are drawn over them
            squares = [
                square for square in small_boxes(root, "chosen") if any(map(square.near, small_boxes(root, "experts")))
            ]
            assert len(squares) == block.router.k


@over(names(), representatives())
def test_one_arrow_leads_from_each_box_to_the_next(name: str) -> None:
    """An output projection below the softmax covers several columns, but has one input."""
    for block in blocks(name, "attn"):
        canvas = blown_up(block)
        tips = [path.get("d", "") for path in canvas.root.iter("path") if path.get("class") == "tip"]
        if isinstance(block, GQA | MLA):
            assert tips[-1].count("M") == 1
            assert max(tip.count("M") for tip in tips) > 1


def test_feed_forwards_show_the_formula_of_their_activation() -> None:
    def formula(act: zoo.Activation) -> set[str]:
        return {text.text for text in blown_up(GLU(64, act)).root.iter("text") if "gate" in (text.text or "")}

    assert "SiLU(gate) × up" in formula(zoo.SwiGLU())
    assert "GELU(gate) × up" in formula(zoo.GeGLU())
    assert "SiLU(gate) × up, clamped at 10" in formula(zoo.ClampedSwiGLU(1.0, 10.0, plus_one=False))


def test_keys_without_a_position_are_not_called_rotary() -> None:
    latent = next(block for block in blocks("kimi-linear-48b-a3b", "attn") if isinstance(block, MLA))
    shown = " ".join(text.text or "" for text in blown_up(latent).root.iter("text"))
    assert "shared by all heads" in shown
    assert "rotary" not in shown


def namespaced(canvas: Canvas) -> Element:
    """The drawing as it is read from a file."""
    return ElementTree.fromstring(canvas.finish())


@over(names(), representatives())
def test_every_block_shows_its_fields(name: str) -> None:
    for block in blocks(name, "attn"):
        said = Counter(texts(namespaced(blown_up(block))))
        joined = " ".join(said)
        if block.cache_spec().state and not block.cache_spec().per_token:
            for state in block.cache_spec().state:
                sizes = [f"{size:,}" for size in state.shape]
                shown = " × ".join(sizes) in joined.replace("  ", " ")
                assert shown or (len(sizes) == 2 and f"convolution over {state.shape[0] + 1} tokens" in joined)
            continue
        assert typeset(block.rope.describe()) in joined
        cache = block.cache_spec()
        chosen = f"sees the {block.indexer.k:,} chosen tokens" if isinstance(block, SparseMLA) else ""
        assert said[chosen or ("sees all earlier tokens" if cache.describe() == "full" else typeset(cache.describe()))]
        assert f"KV cache: {cache.elements():,}" in joined or not isinstance(block, GQA | MLA) or block.takes()
        assert "sinks" in joined or not getattr(block, "sinks", False)
        bias = getattr(block, "bias", False)
        assert not bias or said["biases on q, k, v" if bias == "qkv" else "biases"]
        assert any(text.startswith(f"{block.heads} heads") for text in said)
        if isinstance(block, GQA):
            shown = joined.replace(" ", "")
            elsewhere = ("kind", "heads", "keys_as_values", "scale")
            facts = [str(fact) for key, fact in stated(block).items() if key not in elsewhere]
            assert all(typeset(text).replace(" ", "") in shown for text in facts)
            assert not block.scale or f"scale1/√{round(block.scale**-2, 2):,g}" in shown or "scale1" in shown
    for block in blocks(name, "ffn"):
        said = Counter(texts(namespaced(blown_up(block))))
        if isinstance(block, MoE):
            assert said[f"{block.router.k} of {block.experts} experts active"]
            assert typeset(block.router.describe()).replace(" ", "") in "".join(said).replace(" ", "")
        assert any(f"{getattr(block, 'expert', block).hidden:,}" in text for text in said)


def test_norm_and_rotation_are_drawn_in_the_order_they_are_applied() -> None:
    """They follow the projections and precede the cache and the softmax."""
    attn = next(part for part in BASE.walk() if isinstance(part, GQA))
    canvas = blown_up(replace(attn, qk_norm=zoo.RMSNorm(1e-6), gate="head"))
    y = order(canvas, "queries", "QK-norm", "RoPE", "KV cache", "softmax", "output gate", "output 128")
    assert y == sorted(set(y))


@over(names(), representatives())
def test_nothing_is_said_twice(name: str) -> None:
    """Only the kind of a norm may be that of several norms."""
    for block in [*blocks(name, "attn"), *blocks(name, "ffn")]:
        said = Counter(texts(namespaced(blown_up(block))))
        assert all(n == 1 for text, n in said.items() if not text.endswith("Norm") and text != "shared"), said


def test_latents_are_normed_before_they_are_cached_and_expanded() -> None:
    latent = next(part for part in spec("deepseek-v3").walk() if isinstance(part, zoo.MLA))
    y = order(blown_up(latent), "latent of keys", "RMSNorm", "RoPE", "KV cache", "keys 128", "softmax", "output")
    assert y == sorted(set(y))


def test_layers_that_share_keys_project_queries_alone() -> None:
    shared = next(layer.mixer for layer in spec("gemma4-e2b").layers if layer.takes())
    said = texts(namespaced(blown_up(shared)))
    assert said.count("shared") == 2
    assert not any(text.startswith("KV cache") for text in said)


@dataclass(frozen=True)
class _Averages(Unseen, Mixer):
    """A mixer for which `inside` has no function, with three states."""

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(state=tuple(State(name, (1024, 16), in_float32=True) for name in ("fast", "slow", "slowest")))

    def describe(self) -> str:
        return "_Averages, of what was seen before, at three speeds"


@dataclass(frozen=True)
class _Mystery(Unseen):
    """A kind for which `inside` has no function."""

    role = "ffn"

    def describe(self) -> str:
        return "three times nothing, said at such length that it takes more than a single line of the block"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_kinds_show_their_descriptions_and_states(layout: str) -> None:
    root = drawn(zoo.swap(zoo.swap(BASE, GQA, _Averages()), GLU, _Mystery()), **LAYOUTS[layout])
    assert list(misplaced(root)) == []
    said = " ".join(texts(root))
    assert "of what was seen before, at three speeds" in said
    assert all(f"{name} state 1,024 × 16, float32" in said for name in ("fast", "slow", "slowest"))
    assert not [text for text in texts(root) if "…" in text]
    assert _Mystery().describe() in said
    assert "_Mystery" in texts(root, "strong")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("smollm3-3b", ["NoPE"]),
        ("gpt-oss-20b", ["sees all earlier tokens"]),
        ("gemma3-27b", ["RoPE 1M (linear ×8)", "sees all earlier tokens"]),
    ],
)
def test_a_block_that_hardly_differs_is_shown_by_its_differences(name: str, changes: list[str]) -> None:
    said = texts(drawn(spec(name)))
    at = said.index("as in the layers above, but")
    assert said[at + 1 : at + 1 + len(changes)] == changes
    assert len([text for text in said if text == "queries"]) == 1
