"""Grid cells and drawings equal those of the whole model after the swaps of the choices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest

import zoo
from benchmarks.analytic.models import one
from benchmarks.gallery import swap_grid
from benchmarks.gallery.cost_terms import CostTerms, Terms, attention_terms, feed_forward_terms, outside_terms
from benchmarks.gallery.swap_drawings import SHOWN, swap_drawings
from benchmarks.gallery.swap_grid import Grid
from tests.presets import over, representatives, screen_of_families
from tests.zoo.diagram.drawing import part
from zoo.diagram.canvas import Fragment
from zoo.diagram.figure import branch_fragment, folded
from zoo.diagram.looks import look
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import labels
from zoo.swaps.grammar import apply_swaps

GRIDS = {
    "attention": (swap_grid.attention_grid, attention_terms),
    "experts": (swap_grid.expert_grid, feed_forward_terms),
}


# The blocks that each grid's swaps change. For a model without them a grid has little more than the released model.
SWAPPED = {"attention": (zoo.GQA, zoo.MLA), "experts": (zoo.GLU, zoo.MoE)}


def contains(spec: Decoder, *kinds: type[zoo.Spec]) -> bool:
    return any(isinstance(part, kinds) for part in spec.walk())


def after(spec: Decoder, *choices: swap_grid.Choice) -> Decoder:
    """The spec after the swaps of some choices, one after the other."""
    return apply_swaps(spec, [text for choice in choices for text in choice.swaps])[0]


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
def test_swaps_of_a_cell_give_its_terms(kind: str, name: str) -> None:
    spec = zoo.spec(name)
    make_grid, terms = GRIDS[kind]
    grid, checked = make_grid(spec), 0
    assert all(any(row) for row in grid.cells)  # DeepSeek's groups leave no room for 8 experts
    assert layer_counts(grid.cells[0][0]) == layer_counts(terms(Counter(spec.layers), spec.dim))
    for i, j in sampled_cells(grid):
        choices = grid.rows[i], grid.columns[j]
        if grid.cells[i][j] is None:
            with pytest.raises(zoo.ZooError):
                after(spec, *choices)
        else:
            changed = after(spec, *choices)
            assert layer_counts(grid.cells[i][j]) == layer_counts(terms(Counter(changed.layers), spec.dim)), choices
            checked += 1
    assert checked >= (3 if contains(spec, *SWAPPED[kind]) else 1)


@over(zoo.names(), representatives())
def test_attention_and_feed_forward_costs_are_independent(name: str) -> None:
    """One cell of each grid and the terms outside the layers add up to the costs of a model with both swaps."""
    spec = zoo.spec(name)
    attention, experts = swap_grid.attention_grid(spec), swap_grid.expert_grid(spec)
    i, k = (max(i for i, row in enumerate(grid.cells) if row[0] is not None) for grid in (attention, experts))
    changed = after(spec, attention.rows[i], experts.rows[k])
    chosen = attention.cells[i][0], experts.cells[k][0]
    terms: list[tuple[int, CostTerms]] = [(1, outside_terms(spec)), *(chosen[0] or ()), *(chosen[1] or ())]
    assert sum(n * sum(each.params.values()) for n, each in terms) == changed.params()
    assert sum(n * each.flops(9000) for n, each in terms) == changed.flops(8999, 1)


@pytest.mark.parametrize("name", screen_of_families())
def test_positions_change_no_cost(name: str) -> None:
    spec = zoo.spec(name)
    choices = swap_grid.positions(spec)
    assert len(choices) > (1 if contains(spec, zoo.RoPE) else 0)
    models = [apply_swaps(spec, choice["swaps"])[0] for choice in choices]
    assert len({*models}) == len(models)
    for choice, changed in zip(choices, models, strict=True):
        without = sum("NoPE" in repr(layer) for layer in changed.layers)
        could = sum(any(node.role == "rope" for node in layer.walk()) for layer in changed.layers)
        some = "None of" if without == could else f"{without} of {could} layers"
        assert choice["note"].startswith(
            "Positions: " if spec.positions else some if without else f"All {could} layers"
        )
        assert (changed.params(), changed.flops(99, 1)) == (spec.params(), spec.flops(99, 1))
        assert changed.kv_bytes(99) == spec.kv_bytes(99)


AXES = ("kv", "window", "experts", "k", "positions")  # in the order of the swaps


def sampled_choices(choices: dict[str, list[swap_grid.Choice]]) -> list[dict[str, int]]:
    """Indices of choices: all choices of each axis with the others as released, and some combinations of all axes."""
    alone = [dict.fromkeys(AXES, 0) | {axis: i} for axis in AXES for i in range(len(choices[axis]))]
    steps = {axis: 1 + at for at, axis in enumerate(AXES)}
    return alone + [{axis: steps[axis] * i % len(choices[axis]) for axis in AXES} for i in range(1, 9)]


@pytest.mark.parametrize("name", screen_of_families())
def test_drawings_are_of_the_models_that_the_swaps_make(name: str) -> None:
    """This holds for any number of changes: layers one by one, the frames of their kinds, and the parts of their
    branches."""
    spec, parts = one(name).spec, dict[Fragment, int]()
    made, choices = swap_drawings(spec, lambda part: parts.setdefault(part, len(parts))), swap_grid.single_choices(spec)
    assert_complete(spec, made)
    held, checked = list(parts), 0
    drawn = partial(part, spec, layout="narrow")
    branch_drawn = cache(partial(branch_fragment, spec, layout="narrow"))
    for at in sampled_choices(choices):
        these = [choices[axis][at[axis]] for axis in AXES]
        chosen = made["attention"][at["kv"]], made["feed_forward"][at["experts"]][at["k"]]
        structures = chosen[1] and made["structures"][chosen[0]["group"]][chosen[1]["group"]]
        structure = structures and structures[at["window"]][at["positions"]]
        if structure is None:
            with pytest.raises(zoo.ZooError):
                after(spec, *these)
            continue
        changed, checked = after(spec, *these), checked + 1
        counts = Counter(changed.layers)
        kinds = list(counts)
        assert [kinds.index(layer) for layer in changed.layers] == [i for n, i in structure["runs"] for _ in range(n)]
        names = dict(zip(kinds, labels(changed.layers), strict=True))
        whole = folded([names[layer] for layer in changed.layers]) if len(kinds) > 1 else ""
        assert held[structure["pattern"]] == drawn("pattern", [look(layer, changed) for layer in kinds], whole)
        for layer, number in zip(kinds, structure["kinds"], strict=True):
            frame, seen = made["frames"][number], look(layer, changed)
            assert tuple(frame["look"]) == seen
            assert held[frame["top"]] == drawn("top", counts[layer], names[layer] if len(kinds) > 1 else "", seen)
            for role, choice in zip(("attn", "ffn"), chosen, strict=True):
                branch = dict(layer.branches()).get(role)
                assert (frame[role] is None) is (branch is None)
                if branch:
                    i, shown = frame[role]
                    assert held[choice["parts"][i][shown]] == branch_drawn(role, branch, SHOWN[shown])
            rest = [held[part] for _, part in made["rests"][frame["rest"]]]
            inputs = [branch_drawn("inputs", layer.inputs)] if layer.inputs else []
            assert rest == [*inputs, drawn("bottom", layer.output_scale, 1)]
    assert checked >= len(AXES)


def assert_complete(spec: Decoder, made: dict[str, Any]) -> None:
    """Every cell of the two grids is drawn, with any positions. A block is drawn in the frame of the kind that most
    layers with it are of; frames above and below say where."""
    attention, experts = swap_grid.attention_grid(spec), swap_grid.expert_grid(spec)
    choices = [each for row in made["feed_forward"] for each in row]
    assert [each is None for each in choices] == [cell is None for row in experts.cells for cell in row]
    for kv, row in zip(made["attention"], attention.cells, strict=True):
        for group in {each["group"] for each in choices if each}:
            structures = made["structures"][kv["group"]][group]
            for cell, by_positions in zip(row, structures, strict=True):
                assert [each is None for each in by_positions] == [cell is None] * len(by_positions)
    drawn = [each for groups in made["structures"] for rows in groups for row in rows for each in row if each]
    assert drawn
    for structure in drawn:
        frames, counts = [made["frames"][i] for i in structure["kinds"]], Counter[int]()
        for n, position in structure["runs"]:
            counts[position] += n
        for role in ("attn", "ffn"):
            held = [(position, *frame[role]) for position, frame in enumerate(frames) if frame[role]]
            for branch in {i for _, i, _ in held}:
                shown = {position: SHOWN[how] for position, i, how in held if i == branch}
                (home,) = [position for position, how in shown.items() if how == "here"]
                assert counts[home] == max(counts[position] for position in shown)
                assert all((how == "below") is (position < home) for position, how in shown.items())


@pytest.mark.parametrize("name", ["qwen3-next-80b-a3b", "nemotron3-nano-30b-a3b", "kimi-linear-48b-a3b"])
def test_choices_of_attention_leave_layers_with_a_state(name: str) -> None:
    spec = zoo.spec(name)
    states = [layer.attn for layer in spec.layers if layer.mixer and layer.mixer.cache_spec().state]
    for choice in swap_grid.single_choices(spec)["kv"]:
        held = [layer.attn for layer in after(spec, choice).layers]
        assert [held[i] for i, layer in enumerate(spec.layers) if layer.attn in states] == states


def test_a_model_without_attention_encodes_no_positions() -> None:
    spec = zoo.spec("nemotron3-nano-30b-a3b")
    states = replace(spec, layers=tuple(layer for layer in spec.layers if layer.mixer and layer.cache_spec().state))
    assert [choice["note"] for choice in swap_grid.positions(states)] == ["No layer encodes positions."]
