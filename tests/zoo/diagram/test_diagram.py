"""Diagrams of models, as SVG."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from torch import nn

import zoo
from tests.presets import representatives, split
from tests.test_properties import decoders
from zoo import GLU, GQA, Decoder, Layer, MoE, NoPE, RMSNorm, RoPE, SoftmaxTopK, YarnScaling, names, pre, spec, swap
from zoo.blocks import DenseAndMoE, HyperBranch, PostNorm
from zoo.cli.runner import exit_code
from zoo.diagram import colours, svg
from zoo.diagram.canvas import PALETTE, RULES, css, text_width
from zoo.diagram.insides import MAX_HEADS
from zoo.errors import UsageError
from zoo.registry import Block
from zoo.swaps.grammar import apply_swap

SVG = "{http://www.w3.org/2000/svg}"
APP = runpy.run_module("zoo.build")["app"]


def drawn(model: Decoder, **options: Any) -> Element:
    return ElementTree.fromstring(svg(model, "a title", **options))


def classes(element: Element) -> list[str]:
    return element.get("class", "").split()


def texts(root: Element, css_class: str = "") -> list[str]:
    return [text.text for text in root.iter(f"{SVG}text") if not css_class or css_class in classes(text)]


def rects(root: Element, *of: str) -> list[Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if {*of} & {*classes(rect)}]


class Area(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, other: Area) -> bool:
        return (
            self.left - 0.1 <= other.left
            and self.top - 0.1 <= other.top
            and other.right <= self.right + 0.1
            and other.bottom <= self.bottom + 0.1
        )

    def meets(self, other: Area) -> bool:
        return (
            self.left < other.right - 0.1
            and other.left < self.right - 0.1
            and self.top < other.bottom - 0.1
            and other.top < self.bottom - 0.1
        )

    @property
    def size(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


def area(element: Element) -> Area:
    """The area of a rectangle, or of a line of text at most: capitals above the baseline, descenders below."""
    x, y = (float(element.get(name, 0)) for name in ("x", "y"))
    if element.tag == f"{SVG}rect":
        return Area(x, y, x + float(element.get("width")), y + float(element.get("height")))
    size = float(element.get("font-size"))
    wide = text_width(element.text, size, "strong" in classes(element))
    x -= {"end": wide, "middle": wide / 2}.get(element.get("text-anchor"), 0)
    return Area(x, y - 0.76 * size, x + wide, y + 0.24 * size)


def misplaced(root: Element) -> Iterator[str]:
    """Texts that leave the box they begin in or overlap another text, and boxes that cross each other."""
    lines = [(text, area(text)) for text in root.iter(f"{SVG}text")]
    boxes = [(classes(rect), area(rect)) for rect in root.iter(f"{SVG}rect")]
    for text, line in lines:
        at = float(text.get("x")) + {"end": -0.5, "middle": 0}.get(text.get("text-anchor"), 0.5)
        anchor = Area(*[at, float(text.get("y")) - 1] * 2)
        if not (around := [box for _, box in boxes if box.holds(anchor)]):
            yield f"{text.text!r} is off the paper"
        elif not min(around, key=lambda box: box.size).holds(line):
            yield f"{text.text!r} leaves its box"
    for (text, line), (other, another) in combinations(lines, 2):
        if line.meets(another):
            yield f"{text.text!r} and {other.text!r} cover each other"
    for (css_class, box), (other, another) in combinations(boxes, 2):
        if box.meets(another) and not box.holds(another) and not another.holds(box):
            yield f"{css_class} and {other} cross"


EXTREME = Decoder(
    vocab=10**9,
    dim=10**6,
    layers=tuple(
        Layer(
            pre(RMSNorm(1e-6, True, True), GQA(heads, 48, 1024, RoPE(1.25e9, YarnScaling(128, 131_072, 1.0)), 131_071)),
            PostNorm(MoE(2048, GLU(10**6, bias=True), SoftmaxTopK(1024, False, True), GLU(10**6)), RMSNorm(1e-6)),
        )
        for heads in (48, 96, 480)
        for _ in range(200)
    ),
    norm=RMSNorm(1e-6, True, True),
    tied=True,
    embed_scale=1234.5678,
    context=10**7 + 1,
)
MODELS = {name: spec(name) for name in names()} | {f"tiny {name}": spec(name, tiny=True) for name in names()}
MODELS |= {"extreme": EXTREME}
SHOWN = [*representatives(), *(f"tiny {name}" for name in representatives()), "extreme"]


@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_it_is_well_formed_with_a_title_and_a_description(name) -> None:
    root = ElementTree.fromstring(svg(MODELS[name], f"{name} <&>", prefix="a-"))
    title, described = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title.text == f"{name} <&>"
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [title.get("id"), described.get("id")] == ["a-title", "a-desc"]
    for layer in dict.fromkeys(MODELS[name].layers):
        assert all(branch.block.describe() in described.text for _, branch in layer.branches())


@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_every_text_fits_its_box(name) -> None:
    assert list(misplaced(drawn(MODELS[name]))) == []


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_nothing_of_a_released_model_is_cut_short(name) -> None:
    assert not [text for text in texts(ElementTree.fromstring(svg(spec(name), name))) if "…" in text]


def test_misplaced_text_is_detected() -> None:
    """`misplaced` finds each of its errors."""
    root = drawn(MODELS["llama3-8b"])
    chip = next(text for text in root.iter(f"{SVG}text") if text.text.startswith("RoPE"))
    chip.text *= 4
    assert any("leaves its box" in found for found in misplaced(root))
    chip.set("y", "0")
    assert any("is off the paper" in found for found in misplaced(root))
    title = next(root.iter(f"{SVG}text"))
    chip.text, chip.attrib = "x", title.attrib
    rects(root, "attn")[0].set("height", "200")
    assert any("cross" in found for found in misplaced(root))
    assert any("cover each other" in found for found in misplaced(root))


@given(decoders(), decoders())
def test_any_composition_is_drawn(model, other) -> None:
    root = drawn(model, against=other)
    assert list(misplaced(root)) == []
    assert svg(model, "a title", against=other) == svg(model, "a title", against=other)


def test_a_title_with_control_characters_is_well_formed() -> None:
    title = ElementTree.fromstring(svg(BASE, "a\x0cb\n\udc80]]><script>")).find(f"{SVG}title").text
    assert title == "a b  ]]><script>"


def test_a_context_below_one_is_an_error() -> None:
    with pytest.raises(UsageError, match="context=0 is below 1"):
        svg(BASE, "a title", context=0)


def test_two_diagrams_in_one_page_share_no_id() -> None:
    one, other = (drawn(spec(names()[0]), prefix=prefix) for prefix in ("a", "b"))
    ids = [element.get("id") for root in (one, other) for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) == 4
    referred = [word for root in (one, other) for word in root.get("aria-labelledby").split()]
    assert referred == ids
    page = ElementTree.tostring(one, encoding="unicode")
    assert "url(" not in page
    assert "href" not in page


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_the_strip_holds_every_layer_in_order(name) -> None:
    layers = spec(name).layers
    strip, top = [], None
    for rect in drawn(spec(name)).iter(f"{SVG}rect"):
        if classes(rect)[0].startswith("kind-"):
            top = top or rect.get("y")
            strip += classes(rect) * (rect.get("y") == top)
    assert len(strip) == len(layers)
    assert len(dict.fromkeys(zip(strip, layers, strict=True))) == len(set(layers)) == len(set(strip))
    windows = [bool(kept.reach.limit and not kept.entries) for kept in (layer.cache_spec() for layer in layers)]
    assert [css_class.startswith("kind-window") for css_class in strip] == windows


def test_a_strip_of_too_many_layers_is_drawn_as_runs() -> None:
    strip = [r for r in rects(drawn(EXTREME), *(f"kind-window-{i}" for i in range(3))) if r.get("height") == "14"]
    assert len(strip) == 3


def branches(model: Decoder) -> list[str]:
    """Norms, blocks and sums in the order of the cards, from the spec."""
    met, shown = [], set()
    for layer in dict.fromkeys(model.layers):
        for role, branch in layer.branches():
            stands = isinstance(branch, PostNorm)
            before = (getattr(branch, "pre", None) is not None) + isinstance(branch, HyperBranch)
            after = getattr(branch, "post", None) is not None
            own = ["norm"] * before + [role] + ["norm"] * after + ["plus"] + ["norm"] * stands
            met += ["ghost", "plus"] if (role, branch) in shown else own
            shown.add((role, branch))
    return [*met, "norm"]  # the final one


@pytest.mark.parametrize("place", [None, "pre", "olmo", "sandwich", "post"])
@pytest.mark.parametrize("name", split(names(), representatives()))
def test_norms_are_drawn_at_their_placement(name, place) -> None:
    model = apply_swap(spec(name), f"norm={place}")[0] if place else spec(name)
    at = []
    for element in drawn(model).iter():
        for css_class in {"norm", "attn", "ffn", "inputs", "ghost", "plus"} & {*classes(element)}:
            at.append((float(element.get("y") or element.get("cy")), css_class))
    assert [css_class for _, css_class in at] == branches(model)
    assert at == sorted(at, key=lambda place: place[0])


def shown_once(model: Decoder, role: str) -> list[Block]:
    """The blocks whose insides are drawn."""
    blocks = [branch.block for branch in dict.fromkeys(getattr(layer, role) for layer in model.layers) if branch]
    pairs = ((each.dense, each.routed) if isinstance(each, DenseAndMoE) else (each,) for each in blocks)
    return [each for pair in pairs for each in pair]


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_heads_and_experts_are_drawn_one_by_one(name) -> None:
    root, model = drawn(spec(name)), spec(name)
    attention = [block for block in shown_once(model, "attn") if isinstance(block, GQA) and block.heads <= MAX_HEADS]
    assert len(rects(root, "query")) == sum(block.heads for block in attention)
    assert len(rects(root, "kept")) == 2 * sum(block.kv_heads for block in attention)
    mixed = [block for block in shown_once(model, "ffn") if isinstance(block, MoE)]
    assert len(rects(root, "chosen")) == sum(block.router.k + (block.shared is not None) for block in mixed)
    assert len(rects(root, "idle")) == sum(block.experts - block.router.k for block in mixed)


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_every_kind_of_layer_shows_its_fields(name) -> None:
    said = Counter(texts(drawn(spec(name))))
    for block in shown_once(spec(name), "attn"):
        if block.cache_spec().state and not block.cache_spec().per_token:  # it has no picture of its own
            continue
        assert said[block.rope.describe()]
        assert said[block.cache_spec().describe()]
        assert said["sinks"] or not getattr(block, "sinks", False)
        bias = getattr(block, "bias", False)
        assert not bias or said["biases on q, k, v" if bias == "qkv" else "biases"]
        assert any(text.startswith(f"{block.heads} heads") for text in said)
        if isinstance(block, GQA) and block.qk_norm:
            assert said[f"QK-norm per {block.qk_norm_over}"]
    for block in shown_once(spec(name), "ffn"):
        if isinstance(block, MoE):
            assert said[f"{block.router.k} of {block.experts} experts active"]
        assert any(f"{getattr(block, 'expert', block).hidden:,}" in text for text in said)
    assert any("tied" in text for text in said) == spec(name).tied


@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_the_figures_add_up_to_the_model(name) -> None:
    """The exact figures, which are in the tooltips."""
    model = MODELS[name]
    tips = [group.find(f"{SVG}title").text for group in drawn(model, context=777).iter(f"{SVG}g")]

    def total(unit: str) -> int:
        found = (re.search(rf"([\d,]+) {unit}", tip) for tip in tips)
        return sum(int(each[1].replace(",", "")) for each in found if each)

    assert total("parameters") == model.params()
    assert total("FLOPs") == model.flops(776, 1)
    caches = [layer.cache_spec() for layer in model.layers]
    assert total("bytes of cache a token") == 2 * sum(cache.elements() for cache in caches)
    assert total("bytes of entries a token") == sum(cache.entry_growth(2) for cache in caches)


def marked(model: Decoder, against: Decoder) -> set[str]:
    """The marked texts, and the classes of the other marked elements."""
    found = [element for element in drawn(model, against=against).iter() if "differs" in classes(element)]
    return {element.text if element.tag == f"{SVG}text" else classes(element)[0] for element in found}


@pytest.mark.parametrize("name", split(names(), representatives()))
def test_a_model_does_not_differ_from_itself(name) -> None:
    assert marked(spec(name), spec(name)) == set()


BASE = Decoder(
    1000,
    64,
    (Layer(pre(RMSNorm(1e-6), GQA(8, 2, 16, RoPE(1e4))), pre(RMSNorm(1e-6), GLU(96))),) * 4,
    RMSNorm(1e-6),
    context=4096,
)


def changed(kind: type, **values: Any) -> Decoder:
    return swap(BASE, kind, lambda part: replace(part, **values))


MIXED = swap(BASE, GLU, lambda ffn: MoE(8, ffn, SoftmaxTopK(2)))
CHANGES: dict[str, tuple[Decoder, set[str]]] = {
    "heads": (changed(GQA, heads=4), {"4 heads on 2 KV heads"}),
    "one KV head": (changed(GQA, kv_heads=1), {"MQA", "8 heads on one KV head"}),
    "a head's width": (changed(GQA, head_dim=8), {"each 8 wide"}),
    "a window": (changed(GQA, window=7), {"unseen", "chip-window", "window 7", "4 × [window 7]"}),
    "a norm in attention": (changed(GQA, qk_norm=RMSNorm(1e-6)), {"chip-norm", "QK-norm per head"}),
    "sinks": (changed(GQA, sinks=True), {"chip", "sinks"}),
    "a base": (changed(RoPE, theta=1e6), {"chip-rope", "RoPE 1M"}),
    "no position": (swap(BASE, RoPE, NoPE()), {"chip-nope", "NoPE"}),
    "what is not drawn": (swap(BASE, GQA, lambda a: replace(a, qk_norm_over="projection")), {"attn"}),
    "a width": (changed(GLU, hidden=128), {"64 → 128 → 64"}),
    "an activation": (changed(GLU, act=zoo.GeGLU()), {"GeGLU"}),
    "experts": (MIXED, {"MoE", "2 of 8 experts active", "each 64 → 96 → 64", "chip", "SwiGLU", "softmax top-2 router"}),
    "another placement": (apply_swap(BASE, "norm=olmo")[0], {"norm"}),
    "the final norm": (replace(BASE, norm=RMSNorm(1e-5)), {"norm"}),
    "depth": (replace(BASE, layers=BASE.layers[:3]), {"3 × [full]"}),
    "a vocabulary": (replace(BASE, vocab=10), {"table", "10 × 64", "64 × 10"}),
    "a tied head": (replace(BASE, tied=True), {"table", "the embedding's matrix, tied"}),
    "a context": (replace(BASE, context=8192), {"context 8k"}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_only_differences_are_marked(case) -> None:
    model, expected = CHANGES[case]
    assert marked(model, BASE) == expected
    assert "Marked in red" in " ".join(texts(drawn(model, against=BASE)))


@dataclass(frozen=True)
class _Mystery(Block):
    """A kind for which `inside` has no function."""

    role = "ffn"

    def build(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def params(self, dim: int) -> int:
        return 3 * dim

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return 6 * dim * new

    def describe(self) -> str:
        return "three times nothing, said at such length that it takes more than a single line of the block"


def test_a_new_kind_of_block_shows_its_description() -> None:
    root = drawn(swap(BASE, GLU, _Mystery()))
    assert list(misplaced(root)) == []
    assert _Mystery().describe() in " ".join(texts(root))
    assert "_Mystery" in texts(root, "strong")


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1) of #rrggbb."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "faint", "differs"])
@pytest.mark.parametrize("behind", ["paper", "card", "attn", "ffn", "norm", "table", "rope", "window"])
def test_text_has_enough_contrast(scheme, text, behind) -> None:
    """By 4.5 to 1, the contrast that WCAG 2.1 asks of small text (criterion 1.4.3)."""
    low, high = sorted(luminance(PALETTE[name][scheme]) for name in (text, behind))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_every_class_has_a_rule_and_every_rule_its_colours() -> None:
    styled = {css_class for rule in RULES for css_class in rule.split()}
    for model in MODELS.values():
        used = {css_class for element in drawn(model).iter() for css_class in classes(element)}
        assert used - {"zoo-diagram", "part"} <= styled
    for name in re.findall(r"@([\w-]+)", " ".join(RULES.values())):
        assert f"var(--zoo-{name})" in css()
        assert all(f"--zoo-{name}:{PALETTE[name][dark]}" in colours(dark=bool(dark)) for dark in (0, 1))


# The command.


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    assert exit_code(APP, "python -m zoo.build", args) == code
    out, err = capsys.readouterr()
    return out, err


def test_drawing_imports_no_command_line_package() -> None:
    """In a fresh process: `zoo` and `zoo.diagram` load neither typer nor tabulate, also while a diagram is drawn."""
    draw = "import sys, zoo.diagram; zoo.diagram.svg(zoo.spec('gpt-oss'), 'a title')"
    script = f"{draw}; print({{'typer', 'tabulate'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_command_writes_a_file(capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    assert run(capsys, "gemma3", "--svg", str(file)) == ("", "")
    assert file.read_text(encoding="utf-8") == svg(spec("gemma3"), "gemma3-270m") + "\n"
    assert run(capsys, "gemma3", "--svg", "-") == (file.read_text(encoding="utf-8"), "")


def test_the_command_draws_swapped_and_tiny_models(capsys) -> None:
    out, err = run(capsys, "gpt-oss", "--tiny", "--swap", "GQA(sinks=false)", "--swap", "attn=MQA", "--svg", "-")
    root = ElementTree.fromstring(out)
    assert root.find(f"{SVG}title").text == "gpt-oss-20b at toy widths with GQA(sinks=false), attn=MQA"
    assert "4 heads on one KV head" in texts(root, "differs")
    assert "sinks" not in texts(root)
    assert err == ""
    _, err = run(
        capsys, "gpt-oss", "--swap", "attn=MLA(q_rank=none, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8)", "--svg", "-"
    )
    assert err == "dropped: window 128, biases, sinks\n"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--svg", "/no/such/folder/a.svg"], 3, "error: cannot write /no/such/folder/a.svg: "),
        (["--svg", "-", "--json"], 2, "leave --json and --device out"),
        (["--svg", "-", "--device", "cpu"], 2, "leave --json and --device out"),
        (["--svg", "-", "--swap", "attn=Nowhere"], 2, "unknown block 'Nowhere'"),
        (["--svg"], 2, "--svg"),
    ],
)
def test_a_wrong_call_is_a_one_line_error(capsys, args, code, says) -> None:
    out, err = run(capsys, "qwen3", *args, code=code)
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
