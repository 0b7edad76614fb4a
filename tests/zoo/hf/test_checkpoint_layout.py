"""How checkpoints store each architecture: every parameter has a place, and the rules run both ways."""

import pytest
import torch

import zoo
from tests.presets import distinct, of_families, over
from weights.matching import TensorMapping, match, skipped
from zoo.architectures import families
from zoo.blocks.gated_delta_net import GatedDeltaNet
from zoo.catalog import allocate, sizes
from zoo.errors import UsageError
from zoo.hf.checkpoint_layout import (
    COMMON,
    LayerPrefix,
    PackedRows,
    PairedRows,
    Rearranged,
    Rename,
    Rule,
    Rules,
    Skipped,
    fused_qkv,
)


def layout(name: str) -> Rules:
    family = next(module for module in families().values() if name in module.SIZES)
    return (*getattr(family, "WEIGHTS", ()), *COMMON)


def moves(spec: zoo.Decoder, rules: Rules) -> list[TensorMapping]:
    return match(spec, dict(allocate(spec, "meta").named_parameters()), rules, stored=())


def stored_shapes(name: str, spec: zoo.Decoder) -> list[tuple[str, tuple[int, ...]]]:
    """What a checkpoint of a published size, or of its tiny form, is expected to hold."""
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
    """Of the text part, a tied head's second copy not counted."""
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


# Rows of a head before the rotary ones, the rotary ones, and those behind -> the order of the rows of two heads.
PAIRS = {
    (1, 4, 0): [0, 1, 3, 2, 4, 5, 6, 8, 7, 9],
    (0, 4, 0): [0, 2, 1, 3, 4, 6, 5, 7],
    (0, 4, 2): [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11],
}


@pytest.mark.parametrize("widths", PAIRS)
def test_rotary_pairs_of_rows_become_halves(widths: tuple[int, int, int]) -> None:
    """Pairs (0, 1) and (2, 3) become (0, 2) and (1, 3); of the one head of a vector too, and of columns."""
    layer, order = zoo.spec("llama3", tiny=True).layers[0], PAIRS[widths]
    rule = PairedRows("attn.block.q", "q", lambda attn: widths)
    (rows,) = rule.read([torch.arange(len(order))[:, None].expand(-1, 3)], layer)
    assert rows[:, 0].tolist() == order
    (vector,) = rule.read([torch.arange(sum(widths))], layer)
    assert vector.tolist() == order[: sum(widths)]
    (columns,) = PairedRows("attn.block.q", "q", rule.widths, axis=-1).read([rows.T.contiguous().sort().values], layer)
    assert columns[0].tolist() == order


def test_qwen3_next_packs_the_rows_of_a_group_of_heads() -> None:
    """Two key heads of one row, three value heads of two rows for each: a group is query, key, values, gates."""
    mixer = GatedDeltaNet(key_heads=2, value_heads=6, key_dim=1, value_dim=2, conv=2, norm=zoo.RMSNorm(1e-6))
    layer = zoo.Layer(zoo.pre(zoo.RMSNorm(1e-6), mixer), None)
    rule = PackedRows(("qkv", "gate"), "in", "key_heads", lambda mixer: (mixer.mixed_widths, (12,)))
    stored = torch.arange(28)[:, None]  # 14 rows of each group
    qkv, gate = rule.read([stored], layer)
    assert qkv[:, 0].tolist() == [0, 14, 1, 15, *range(2, 8), *range(16, 22)]
    assert gate[:, 0].tolist() == [*range(8, 14), *range(22, 28)]
    assert torch.equal(rule.write([qkv, gate], layer)[0], stored)


def test_a_rule_for_one_kind_of_mixer_leaves_the_others() -> None:
    rules = (Rename("attn.block.o", "linear_attn.out_proj", mixer=GatedDeltaNet), *COMMON)
    spec = zoo.spec("qwen3-next-80b-a3b", tiny=True)
    outputs = [f"layers.{i}.attn.block.o.weight" for i in range(len(spec.layers))]
    names = [name for mapping in match(spec, outputs, rules, stored=()) for name in mapping.checkpoint_names]
    stored = ["linear_attn.out_proj", "linear_attn.out_proj", "linear_attn.out_proj", "self_attn.o_proj"]
    assert names == [f"model.layers.{i}.{name}.weight" for i, name in enumerate(stored)]


def test_fused_rows_are_those_of_queries_keys_and_values_in_turn() -> None:
    """Four heads of two, on one KV head of two."""
    norm = zoo.RMSNorm(1e-6)
    layer = zoo.Layer(zoo.pre(norm, zoo.GQA(4, 1, 2, rope=zoo.NoPE())), zoo.pre(norm, zoo.GLU(4)))
    rule, fused = fused_qkv("qkv"), torch.arange(12.0)[:, None].expand(12, 3)
    parts = rule.read([fused], layer)
    assert [part[:, 0].tolist() for part in parts] == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11]]
    assert torch.equal(rule.write(parts, layer)[0], fused)


def test_gpt2_holds_queries_keys_and_values_side_by_side() -> None:
    """One input, two outputs each."""
    rule = Rearranged(("q", "k", "v"), "c_attn", "inputs (qkv outputs) -> qkv outputs inputs")
    stored = torch.tensor([[1, 2, 3, 4, 5, 6]])
    parts = rule.read([stored], None)
    assert [part.tolist() for part in parts] == [[[1], [2]], [[3], [4]], [[5], [6]]]
    assert torch.equal(rule.write(list(parts), None)[0], stored)


def test_gpt_oss_experts_are_transposed_and_take_turns() -> None:
    """One expert, two inputs, three hidden: columns are gate, up, gate, up, gate, up."""
    rule = Rearranged(("gate", "up"), "gate_up", "e dim (hidden gate_up) -> gate_up e hidden dim")
    gate, up = rule.read([torch.tensor([[[1, 10, 2, 20, 3, 30], [4, 40, 5, 50, 6, 60]]])], None)
    assert gate.tolist() == [[[1, 4], [2, 5], [3, 6]]]
    assert up.tolist() == [[[10, 40], [20, 50], [30, 60]]]
    (down,) = Rearranged("down", "down", "e hidden dim -> e dim hidden").read([torch.tensor([[[1, 2], [3, 4]]])], None)
    assert down.tolist() == [[[1, 3], [2, 4]]]
