"""The cells of a grid: the Python code of a choice, run on the whole model, gives the same terms."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

import zoo
from benchmarks.analytic.models import one
from benchmarks.gallery import swap_grid
from benchmarks.gallery.cost_terms import CostTerms, Terms, attention_terms, feed_forward_terms, outside_terms
from benchmarks.gallery.swap_drawings import swap_drawings
from benchmarks.gallery.swap_grid import Grid
from benchmarks.gallery.timeline import title_of
from tests.presets import representatives, screen_of_families, split
from zoo.diagram import fragments
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swap

NAMES = vars(zoo) | {"apply_swap": apply_swap, "replace": replace}
GRIDS = {
    "attention": (swap_grid.attention_grid, attention_terms),
    "experts": (swap_grid.expert_grid, feed_forward_terms),
}


# The blocks that each grid's swaps change. For a model without them a grid has little more than the released model.
SWAPPED = {"attention": (zoo.GQA, zoo.MLA), "experts": (zoo.GLU, zoo.MoE)}


def contains(spec: Decoder, *kinds: type[zoo.Spec]) -> bool:
    return any(isinstance(part, kinds) for part in spec.walk())


def run_code(spec: Decoder, *codes: str) -> Decoder:
    """The spec after the Python code shown beside the choices."""
    scope = NAMES | {"spec": spec}
    for code in codes:
        exec(code, scope)
    return scope["spec"]


def layer_counts(terms: Terms | None) -> Counter[str]:
    counts = Counter[str]()
    for n, each in terms or ():
        counts[repr(each)] += n
    return counts


def sampled_cells(grid: Grid) -> list[tuple[int, int]]:
    """Every row and every column at least once: the first ones in full, and a diagonal."""
    rows, columns = len(grid.rows), len(grid.columns)
    pairs = [(i, 0) for i in range(rows)] + [(0, j) for j in range(columns)]
    return pairs + [(i % rows, i % columns) for i in range(max(rows, columns))]


@pytest.mark.parametrize("name", screen_of_families())
@pytest.mark.parametrize("kind", GRIDS)
def test_code_of_a_cell_gives_its_terms(kind: str, name: str) -> None:
    spec = zoo.spec(name)
    make_grid, terms = GRIDS[kind]
    grid, checked = make_grid(spec), 0
    assert layer_counts(grid.cells[0][0]) == layer_counts(terms(Counter(spec.layers), spec.dim))
    for i, j in sampled_cells(grid):
        codes = grid.rows[i].code, grid.columns[j].code
        if grid.cells[i][j] is None:
            with pytest.raises(zoo.ZooError):
                run_code(spec, *codes)
        else:
            changed = run_code(spec, *codes)
            assert layer_counts(grid.cells[i][j]) == layer_counts(terms(Counter(changed.layers), spec.dim)), codes
            checked += 1
    assert checked >= (3 if contains(spec, *SWAPPED[kind]) else 1)


@pytest.mark.parametrize("name", split(zoo.names(), representatives()))
def test_attention_and_feed_forward_costs_are_independent(name: str) -> None:
    """One cell of each grid and the terms outside the layers add up to the costs of a model with both swaps."""
    spec = zoo.spec(name)
    attention, experts = swap_grid.attention_grid(spec), swap_grid.expert_grid(spec)
    i, k = (max(i for i, row in enumerate(grid.cells) if row[0] is not None) for grid in (attention, experts))
    changed = run_code(spec, attention.rows[i].code, experts.rows[k].code)
    chosen = attention.cells[i][0], experts.cells[k][0]
    terms: list[tuple[int, CostTerms]] = [(1, outside_terms(spec)), *(chosen[0] or ()), *(chosen[1] or ())]
    assert sum(n * sum(each.params.values()) for n, each in terms) == changed.params()
    assert sum(n * each.flops(9000) for n, each in terms) == changed.flops(8999, 1)


@pytest.mark.parametrize("name", screen_of_families())
def test_positions_change_no_cost(name: str) -> None:
    spec = zoo.spec(name)
    choices = swap_grid.positions(spec)
    assert len(choices) > (1 if contains(spec, zoo.RoPE) else 0)
    for choice in choices:
        changed = run_code(spec, choice["code"])
        without = sum("NoPE" in repr(layer) for layer in changed.layers)
        assert choice["without"] == without
        assert (changed.params(), changed.flops(99, 1)) == (spec.params(), spec.flops(99, 1))
        assert changed.kv_bytes(99) == spec.kv_bytes(99)


@pytest.mark.parametrize("name", screen_of_families())
def test_drawings_are_of_the_models_that_the_code_makes(name: str) -> None:
    """Each choice by itself, layer by layer; a drawing is named where the choice is valid, and has its parts."""
    model, texts = one(name), dict[str, int]()
    drawn = swap_drawings(model, lambda text: texts.setdefault(text, len(texts)))
    held = list(texts)
    for axis, choices in swap_grid.single_choices(model.spec).items():
        for choice in choices:
            changed = swap_grid.swapped(model.spec, choice)
            if choice is swap_grid.RELEASED:
                assert changed == model.spec
                continue
            assert (choice.label in drawn["changed"][axis]) is (changed is not None)
            if changed is None:
                with pytest.raises(zoo.ZooError):
                    run_code(model.spec, choice.code)
            else:
                assert changed == run_code(model.spec, choice.code)
    axis, label, parts = next((a, x, y) for a, each in drawn["changed"].items() for x, y in each.items())
    choice = next(each for each in swap_grid.single_choices(model.spec)[axis] if each.label == label)
    wanted = fragments(run_code(model.spec, choice.code), title_of(model), layout="narrow")
    assert [(key, held[index], height) for key, index, height in parts] == [tuple(part) for part in wanted]
