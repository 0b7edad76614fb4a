"""How checkpoints store each architecture: every parameter has a place, and the rules run both ways."""

import pytest
import torch

import zoo
from tests.presets import distinct, of_families, over
from weights.matching import TensorMapping, match, skipped
from zoo.architectures import families
from zoo.catalog import allocate, sizes
from zoo.errors import UsageError
from zoo.hf.checkpoint_layout import (
    COMMON,
    LayerPrefix,
    Rule,
    Rules,
    Skipped,
)


def layout(name: str) -> Rules:
    family = next(module for module in families().values() if name in module.SIZES)
    return (*getattr(family, "WEIGHTS", ()), *COMMON)


def moves(spec: zoo.Decoder, rules: Rules) -> list[TensorMapping]:
    return match(spec, dict(allocate(spec, "meta").named_parameters()), rules, stored=())


def stored_shapes(name: str, spec: zoo.Decoder) -> list[tuple[str, tuple[int, ...]]]:
    """The names and shapes that a checkpoint of a published size, or of its tiny form, is expected to hold."""
    parameters = dict(allocate(spec, "meta").named_parameters())
    return [pair for move in moves(spec, layout(name)) for pair in move.expected(parameters).items()]


@over(distinct(), of_families())
def test_a_checkpoint_holds_every_number_once_and_nothing_of_it_is_skipped(name: str) -> None:
    spec = zoo.spec(name, tiny=True)
    shapes = stored_shapes(name, spec)
    assert len(dict(shapes)) == len(shapes)
    assert sum(torch.Size(shape).numel() for _, shape in shapes) == spec.params()
    assert not skipped(spec, layout(name), [stored for stored, _ in shapes])


@pytest.mark.parametrize(
    ("name", "count"),
    [("qwen3-0.6b", 310), ("qwen3-14b", 443), ("qwen3-30b-a3b", 18_867), ("mistral-small-3.1-24b", 363)],
)
def test_released_files_hold_that_many_tensors(name: str, count: int) -> None:
    """The text part counts, without a second copy of a tied head."""
    shapes = stored_shapes(name, zoo.spec(name))
    assert len(shapes) == count
    assert sum(torch.Size(shape).numel() for _, shape in shapes) == sizes()[name].params


@over(distinct(), of_families())
def test_reading_undoes_writing(name: str) -> None:
    """Bit by bit, for every rule that has a parameter here: each of two ways to store the experts, too."""
    model = zoo.build(name, tiny=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    parameters = dict(model.named_parameters())
    covered: set[str] = set()
    prefix = next(rule for rule in layout(name) if isinstance(rule, LayerPrefix))
    for rule in layout(name):
        if not isinstance(rule, Rule):
            continue
        for move in moves_of(model.spec, (rule, prefix), parameters):
            held = [parameters[parameter] for parameter in move.module_names]
            stored = rule.write(held, move.layer)
            assert len(stored) == len(move.checkpoint_names)
            assert all(torch.equal(a, b) for a, b in zip(held, rule.read(list(stored), move.layer), strict=True))
            covered.update(move.module_names)
    assert covered == set(parameters)


def moves_of(spec: zoo.Decoder, rules: Rules, parameters: dict[str, torch.Tensor]) -> list[TensorMapping]:
    """The moves by these rules, of the parameters that they are for."""
    found = []
    for parameter in parameters:
        try:
            moves = match(spec, [parameter], rules, stored=())
        except UsageError:  # not by these rules
            continue
        found += [move for move in moves if parameters.keys() >= set(move.module_names)]
    return found


SKIPS = {  # pattern -> names that it is for, and names that it is not for
    "model.layers.{i}.rope.inv_freq": (
        ["model.layers.0.rope.inv_freq", "model.layers.61.rope.inv_freq"],
        ["model.layers.x.rope.inv_freq", "model.layers.0.rope.inv_freq.more", "model.layers.0.ropeXinv_freq"],
    ),
    "*.masked_bias": (["h.3.attn.masked_bias", "model.h.3.attn.masked_bias"], ["h.3.attn.bias", "masked_bias"]),
    "model.layers.{layers}.*": (["model.layers.2.x", "model.layers.2.x.y"], ["model.layers.1.x", "model.layers.21.x"]),
    "vision_tower.*": (["vision_tower.conv.weight"], ["a.vision_tower.conv.weight", "vision_towers.x"]),
    "(exact)[name]+": (["(exact)[name]+"], ["exact", "exactn"]),
}


@pytest.mark.parametrize("pattern", SKIPS)
def test_what_is_skipped_is_named_by_a_pattern(pattern: str) -> None:
    (matches, others), spec = SKIPS[pattern], zoo.spec("llama3", tiny=True)
    assert len(spec.layers) == 2
    assert skipped(spec, (Skipped(pattern, "it"), *COMMON), [*others, *matches]) == {"it": matches}


def test_what_is_skipped_may_be_of_layers_with_one_kind_of_mixer() -> None:
    spec, rule = zoo.spec("gemma4-e2b", tiny=True), Skipped("layers.{i}.k", "it", mixer=zoo.SharedKV)
    names = [f"layers.{i}.k" for i in range(len(spec.layers) + 1)]
    assert skipped(spec, (rule, *COMMON), names) == {"it": names[-6:-1]}
    assert not skipped(zoo.spec("gemma4-12b", tiny=True), (rule, *COMMON), [*names, "layers..k"])
