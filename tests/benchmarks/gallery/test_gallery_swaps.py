"""A swap in the grid is that swap: the Python shown beside it, run on the whole model, has the same terms."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

import zoo
from benchmarks.gallery import swap_grid, terms
from benchmarks.gallery.swap_grid import Grid
from benchmarks.gallery.terms import Counted, Run
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swap

NAMES = {name: getattr(zoo, name) for name in zoo.__all__} | {"apply_swap": apply_swap, "replace": replace}
GRIDS = {
    "attention": (swap_grid.attention_grid, terms.attention),
    "experts": (swap_grid.expert_grid, terms.feed_forward),
}


# The blocks that each grid's swaps are about. Of a model in other blocks it holds what was released, and little else.
SWAPPED = {"attention": (zoo.GQA, zoo.MLA), "experts": (zoo.GLU, zoo.MoE)}


def holds(spec: Decoder, *kinds: type[zoo.Spec]) -> bool:
    return any(isinstance(part, kinds) for part in spec.walk())


def ran(spec: Decoder, *codes: str) -> Decoder:
    scope = NAMES | {"spec": spec}
    for code in codes:
        exec(code, scope)
    return scope["spec"]


def merged(counted: Counted | None) -> Counter[str]:
    found = Counter[str]()
    for n, run in counted or ():
        found[repr(run)] += n
    return found


def some(grid: Grid) -> list[tuple[int, int]]:
    """Every row and every column at least once: the first ones in full, and a diagonal."""
    rows, columns = len(grid.rows), len(grid.columns)
    pairs = [(i, 0) for i in range(rows)] + [(0, j) for j in range(columns)]
    return pairs + [(i % rows, i % columns) for i in range(max(rows, columns))]


@pytest.mark.parametrize("name", zoo.architectures.families())
@pytest.mark.parametrize("kind", GRIDS)
def test_the_code_shown_makes_what_the_grid_holds(kind: str, name: str) -> None:
    spec = zoo.spec(name)
    made, of = GRIDS[kind]
    grid, checked = made(spec), 0
    assert merged(grid.cells[0][0]) == merged(of(Counter(spec.layers), spec.dim))
    for i, j in some(grid):
        codes = grid.rows[i].code, grid.columns[j].code
        if grid.cells[i][j] is None:
            with pytest.raises(zoo.ZooError):
                ran(spec, *codes)
        else:
            changed = ran(spec, *codes)
            assert merged(grid.cells[i][j]) == merged(of(Counter(changed.layers), spec.dim)), codes
            checked += 1
    assert checked > (3 if holds(spec, *SWAPPED[kind]) else 0)


@pytest.mark.parametrize("name", zoo.names())
def test_attention_and_feed_forward_do_not_know_of_each_other(name: str) -> None:
    """The sum of one cell of each grid and of what is outside is what a model with both swaps costs."""
    spec = zoo.spec(name)
    attention, experts = swap_grid.attention_grid(spec), swap_grid.expert_grid(spec)
    i, k = (max(i for i, row in enumerate(grid.cells) if row[0] is not None) for grid in (attention, experts))
    changed = ran(spec, attention.rows[i].code, experts.rows[k].code)
    chosen = attention.cells[i][0], experts.cells[k][0]
    counted: list[tuple[int, Run]] = [(1, terms.outside(spec)), *(chosen[0] or ()), *(chosen[1] or ())]
    assert sum(n * sum(run.params.values()) for n, run in counted) == changed.params()
    assert sum(n * run.flops(9000) for n, run in counted) == changed.flops(8999, 1)


@pytest.mark.parametrize("name", zoo.architectures.families())
def test_positions_cost_nothing(name: str) -> None:
    spec = zoo.spec(name)
    choices = swap_grid.positions(spec)
    assert len(choices) > (3 if holds(spec, zoo.RoPE) else 0)
    for choice in choices:
        changed = ran(spec, choice["code"])
        free = sum("NoPE" in repr(layer) for layer in changed.layers)
        assert choice["without"] == free
        assert (changed.params(), changed.flops(99, 1)) == (spec.params(), spec.flops(99, 1))
        assert changed.kv_bytes(99) == spec.kv_bytes(99)
