"""Swapping a block, in a real browser: costs equal Python's, and the code shown makes that spec."""

from __future__ import annotations

import shlex
from collections import Counter
from functools import partial
from typing import Any
from xml.etree.ElementTree import fromstring, tostring

import pytest

import zoo
from benchmarks.__main__ import app
from benchmarks.analytic.models import one
from benchmarks.gallery import swap_grid
from benchmarks.gallery.cost_terms import outside_terms
from benchmarks.gallery.overview import groups
from tests.benchmarks.gallery.conftest import SHOWN, Open
from tests.zoo.diagram.drawing import part, parts
from zoo.cli.runner import exit_code
from zoo.diagram import svg
from zoo.diagram.figure import (
    STRIP,
    STRIP_ABOVE,
    STRIP_BELOW,
    after_layers,
    before_layers,
    branch_fragment,
    folded,
    fragments,
)
from zoo.diagram.looks import look
from zoo.model.layer_pattern import labels
from zoo.swaps.grammar import apply_swaps
from zoo.units import format_bytes, format_count

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]
CHOSEN = "[...document.querySelectorAll('#swap select')].map(select => select.selectedOptions[0].text)"


def swap(page: Any, model: str, **labels: str) -> Any:
    """Selects a model as released, then a choice of each axis by its label. Returns the figures of the drawings."""
    page.locator("#swap-model").select_option(model)
    page.locator("#swap-reset").click()
    choose(page, **labels)
    return page.locator("#swap-drawings figure")


def choose(page: Any, **labels: str) -> None:
    for axis, label in labels.items():
        page.locator(f"#swap-{axis}").select_option(label=label)


def shown_swaps(page: Any) -> list[str]:
    """The swaps in the command that the page shows."""
    command = shlex.split(page.locator("#swap-command").inner_text())
    assert command[:4] == ["python", "-m", "benchmarks", "kv"]
    return [text for text in command[5:] if text != "--swap"]


@pytest.mark.parametrize("name", [group.typical.name for group in groups(SHOWN)])
def test_costs_of_a_swap_equal_python(page: Any, name: str) -> None:
    """The last valid cell of both grids: the figures shown, and the sums behind them."""
    spec = one(name).spec
    attention, experts = swap_grid.attention_grid(spec), swap_grid.expert_grid(spec)
    swap(page, name)
    terms = [(1, outside_terms(spec))]
    for grid, rows, columns in ((attention, "kv", "window"), (experts, "experts", "k")):
        i, j = max((i, j) for i, row in enumerate(grid.cells) for j, cell in enumerate(row) if cell is not None)
        page.locator(f"#swap-{rows}").select_option(index=i)
        page.locator(f"#swap-{columns}").select_option(index=j)
        terms += grid.cells[i][j] or ()
    context = page.evaluate("CONTEXTS[document.getElementById('swap-context').value]")
    released = {"params": spec.params(), "active": spec.active_params(), "kv": spec.kv_bytes(context)}
    swapped = {
        "params": sum(n * sum(each.params.values()) for n, each in terms),
        "active": sum(n * each.active_params for n, each in terms),
        "kv": sum(n * (2 * each.elements(context) + each.state_float32_bytes) for n, each in terms),
    }
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#swap-table tbody tr").all()]
    formats = {"params": format_count, "active": format_count, "kv": format_bytes}
    shown = [rows[i][:2] for i in (0, 1, 4)]
    assert shown == [[form(released[key]), form(swapped[key])] for key, form in formats.items()]
    page.locator("#swap-reset").click()
    assert {row.locator("td").last.inner_text() for row in page.locator("#swap-table tbody tr").all()} <= {
        "the same",
        "",
    }


EVERY_FOURTH = {"window": "512, all but every fourth layer", "positions": "NoPE in every second layer"}


def test_code_and_command_beside_a_swap_make_that_spec(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """This includes a swap of some layers. Without a swap there is no command."""
    swap(page, "llama3.1-8b")
    assert not page.locator("#swap-command").is_visible()
    choose(page, kv="2 KV heads (GQA)", experts="8")
    assert page.locator("#swap-summary").inner_text() == "Llama 3.1 8B with 2 KV heads (GQA); 8 experts"
    command = shlex.split(page.locator("#swap-command").inner_text())
    assert exit_code(app, "python -m benchmarks", [*command[3:], "--json"]) == 0
    assert '"swap"' in capsys.readouterr().out
    for more in ({}, EVERY_FOURTH):
        choose(page, **more)
        spec, _ = apply_swaps(zoo.spec("llama3.1-8b"), shown_swaps(page))
        shown = [row.locator("td").nth(1).inner_text() for row in page.locator("#swap-table tbody tr").all()]
        assert (shown[0], shown[3]) == (format_count(spec.params()), format_bytes(spec.kv_growth()[1]))
        scope = dict[str, Any]()
        exec(page.locator("#swap-code").inner_text(), scope)
        assert scope["spec"] == spec
        assert int(capsys.readouterr().out.split()[0]) == spec.params()
    assert [layer.mixer.window for layer in spec.layers] == [None if i % 4 == 3 else 512 for i in range(32)]
    assert [isinstance(layer.mixer.rope, zoo.NoPE) for layer in spec.layers] == [i % 2 == 1 for i in range(32)]


def test_invalid_combinations_cannot_be_selected(page: Any) -> None:
    """MLA has no window: selecting MLA resets the window."""
    swap(page, "llama3.1-8b", window="512, all layers", kv="latent of 512 (MLA)")
    assert page.locator("#swap-window option:checked").inner_text() == "as released"
    assert page.locator("#swap-window option:disabled").count() == 12 + 1


def test_dropped_features_are_listed(page: Any) -> None:
    swap(page, "gpt-oss-20b", kv="latent of 512 (MLA)")
    assert "Dropped features: window 128, biases, sinks." in page.locator("#swap-note").inner_text()
    page.locator("#swap-reset").click()
    assert "Dropped" not in page.locator("#swap-note").inner_text()


def texts(parts: list[str]) -> list[str]:
    return ["".join(text.itertext()) for part in parts for text in fromstring(part).iter() if text.tag.endswith("text")]


def test_diagram_of_the_swapped_model_stands_beside_the_original(page: Any) -> None:
    """Below its title it has the texts of the swapped spec's own drawing, in order, and marks those that the original
    lacks."""
    figures = swap(page, "llama3.1-8b")
    assert figures.count() == 1
    choose(page, kv="2 KV heads (GQA)", window="512, all layers", positions="NoPE in all layers", experts="8", k="1")
    assert figures.count() == 2
    original = zoo.spec("llama3.1-8b")
    swaps = ["GQA(kv_heads=2)", "GQA(window=512)", "rope=NoPE", "ffn=MoE(experts=8, k=2)", "MoE(k=1)"]
    spec, _ = apply_swaps(original, swaps)
    for figure, drawn in zip(figures.all(), (original, spec), strict=True):
        _, *rows, end = parts(fromstring(svg(drawn, "", layout="narrow")))
        assert figure.locator("svg text").all_text_contents() == texts([tostring(row).decode() for _, row in rows])
        assert float(figure.locator("svg").get_attribute("viewBox").split()[3]) == end[0] - rows[0][0]
    marked = figures.nth(1).locator("svg text.differs").all_text_contents()
    assert {"32 heads on 2 KV heads", "NoPE", "window 512", "1 of 8 experts active"} <= {*marked}
    assert not {"RMSNorm", "Embedding", "token ids"} & {*marked}
    removed = figures.nth(0).locator("svg text.differs").all_text_contents()
    assert {"32 heads on 8 KV heads", "sees all earlier tokens", "SiLU(gate) × up"} <= {*removed}
    assert not {"RMSNorm", "Embedding", "token ids"} & {*removed}
    page.locator("#swap-reset").click()
    assert figures.locator(".differs").count() == 0


def test_layers_that_differ_are_drawn_one_by_one(page: Any) -> None:
    """Several changes of one block, in patterns that repeat by themselves: the strip and the frames of all kinds."""
    figures = swap(page, "gemma3-27b", kv="4 KV heads (GQA)", experts="8", **EVERY_FOURTH)
    scope = dict[str, Any]()
    exec(page.locator("#swap-code").inner_text(), scope)
    spec = scope["spec"]
    kinds, made = Counter(spec.layers), partial(part, spec, layout="narrow")
    branch = partial(branch_fragment, spec, layout="narrow")
    assert len(kinds) == 3
    names = dict(zip(kinds, labels(spec.layers), strict=True))
    looks = {layer: look(layer, spec) for layer in kinds}
    most = max(kinds, key=lambda layer: kinds[layer])
    wanted = [made("pattern", looks.values(), folded([names[layer] for layer in spec.layers]))]
    wanted += fragments(spec, before_layers, "narrow")
    for layer, n in kinds.items():  # all have one feed-forward
        shown = "here" if layer is most else "below" if [*kinds].index(layer) < [*kinds].index(most) else "above"
        wanted += [made("top", n, names[layer], looks[layer]), branch("attn", layer.attn)]
        wanted += [branch("ffn", layer.ffn, shown), made("bottom", layer.output_scale, 1)]
    wanted += fragments(spec, after_layers, "narrow")
    figure = figures.nth(1)
    assert figure.locator("svg text").all_text_contents() == texts([each.svg for each in wanted])
    bars = [bar.get_attribute("class") for bar in figure.locator("svg > g").first.locator("rect").all()]
    assert bars == [css_class for layer in spec.layers for css_class in looks[layer]]
    strip = STRIP_ABOVE + STRIP + STRIP_BELOW
    height = float(figure.locator("svg").get_attribute("viewBox").split()[3])
    assert height == strip + sum(each.height for each in wanted)
    assert not {"drawn above", "drawn below"} & {*figure.locator("svg text.differs").all_text_contents()}


def test_lines_that_break_elsewhere_are_not_marked(page: Any) -> None:
    """RoPE is the same in both models, in bars of different widths."""
    swap(page, "llama3.1-8b", kv="latent of 512 (MLA)")
    own, swapped, marked = (
        page.locator(f"#swap-drawings figure:nth-child({each}").all_text_contents()
        for each in ("1) text", "2) text", "2) text.differs")
    )
    assert {"RoPE 500k (Llama 3 ×8 from", "8,192)"} < {*own}
    assert {"RoPE 500k (Llama 3 ×8", "from 8,192)"} < {*swapped}
    assert {"MLA", "RoPE 500k (Llama 3 ×8", "from 8,192)"} & {*marked} == {"MLA"}


# Selects every choice of keys and values and of positions: [the swaps that it makes, drawings, notes] of each.
SELECT_ALL = """
name => {
  const select = (axis, change) => {
    change(swapSelect(axis));
    swapSelect(axis).dispatchEvent(new Event("change", {bubbles: true}));
  };
  select("model", model => { model.value = name; });
  byId("swap-reset").click();
  const seen = [], count = css => byId("swap-drawings").querySelectorAll(css).length;
  for (let i = 0; i < swapSelect("kv").options.length; i++) {
    select("kv", kv => { kv.selectedIndex = i; });
    for (let j = 0; j < swapSelect("positions").options.length; j++) {
      select("positions", positions => { positions.selectedIndex = j; });
      seen.push([currentSwaps(MODELS.get(name)), count("figure"), count(".note")]);
    }
  }
  return seen;
}
"""


def test_every_choice_of_positions_is_drawn_beside_those_of_keys_and_values(page: Any) -> None:
    for name in (group.typical.name for group in groups(SHOWN)):
        spec, found = one(name).spec, page.evaluate(SELECT_ALL, name)
        for swaps, drawings, notes in found:
            same = apply_swaps(spec, swaps)[0] == spec
            assert (drawings, notes) == ((1, 1 if swaps else 0) if same else (2, 0)), swaps
        assert len({tuple(swaps) for swaps, *_ in found}) == len(found) > 1


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ("deepseek-v3-671b", {"kv": "8 KV heads (GQA)", "window": "512, all layers", "experts": "64", "k": "1"}),
        ("llama3.1-8b", {"experts": "32", "k": "8", "positions": "NoPE in all layers"}),
    ],
)
def test_a_link_holds_choices_that_are_valid_beside_others_alone(
    open_page: Open, model: str, choices: dict[str, str]
) -> None:
    """Latents have no window, and a dense model has no experts per token."""
    page = open_page()
    swap(page, model, **choices)
    chosen = page.evaluate(CHOSEN)
    assert {*choices.values()} < {*chosen}
    place = page.url.partition("#")[2]
    assert open_page(place=place).evaluate(CHOSEN) == chosen


def test_back_undoes_choices(open_page: Open) -> None:
    """It undoes a choice that changed another one, and "as released"."""
    page = open_page()
    page.locator("#swap-model").select_option("llama3.1-8b")
    choose(page, window="512, all layers")
    before = page.evaluate(CHOSEN)
    choose(page, kv="latent of 512 (MLA)")
    after = page.evaluate(CHOSEN)
    assert ("512, all layers" in before, "512, all layers" in after) == (True, False)
    page.go_back()
    assert page.evaluate(CHOSEN) == before
    page.go_forward()
    assert page.evaluate(CHOSEN) == after
    page.locator("#swap-reset").click()
    choose(page, window="4,096, all layers")
    page.go_back()
    assert page.locator("#swap-window option:checked").inner_text() == "as released"
    page.go_back()
    assert page.evaluate(CHOSEN) == after
